package stage0

import (
	"context"
	"errors"
	"fmt"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/fetch"
	"github.com/gantry-cri/gantry/stage0/imageref"
	"github.com/gantry-cri/gantry/stage0/store"
)

// PullPolicy says when the command line asks the registry for an image. The CRI
// side has none: the kubelet's own policies end in Fetch or in no call at all.
type PullPolicy string

// The policies of the command line, as in rkt.
const (
	PullNever  PullPolicy = "never"  // what the store has
	PullNew    PullPolicy = "new"    // the store, and the registry for what it has not
	PullUpdate PullPolicy = "update" // the registry, and the store when no registry answers
)

// ParsePullPolicy takes one of the three words; anything else is ErrInvalid.
func ParsePullPolicy(s string) (PullPolicy, error) {
	switch p := PullPolicy(s); p {
	case PullNever, PullNew, PullUpdate:
		return p, nil
	}
	return "", fmt.Errorf("pull policy %q: want %s, %s or %s: %w", s, PullNever, PullNew, PullUpdate, errdefs.ErrInvalid)
}

// Pulled is an image and how it was come by.
type Pulled struct {
	Image store.Image
	// Fetched tells that the registry was asked, and answered.
	Fetched bool
	// Unavailable is why the registry did not answer, when it had to be asked and the
	// image comes from the store instead. The caller should say so.
	Unavailable error
}

// Image finds or fetches an image for the command line, with the credentials that
// the source is configured with. A name stands for the image that was fetched last by
// it, which may be of another platform than the one that is asked for (nil is the
// node's): the registry is asked then as if the store had none, and where that is
// not allowed, or no registry answers, one that is not best for the platform but runs
// there is taken. It returns ErrInvalid for an unknown policy, ErrNotFound for what
// the policy does not find, and the errors of Fetch.
func (p *Pipeline) Image(ctx context.Context, ref imageref.Ref, platform *ocispec.Platform, policy PullPolicy) (Pulled, error) {
	if _, err := ParsePullPolicy(string(policy)); err != nil {
		return Pulled{}, err
	}
	if policy == PullUpdate {
		return p.update(ctx, ref, platform)
	}
	img, err := p.Images.Find(ref)
	if err != nil && !errors.Is(err, errdefs.ErrNotFound) {
		return Pulled{}, err
	}
	found := err == nil
	fit := fetch.FitOf(img.Platform, platform)
	switch {
	case found && (fit == fetch.Fits || fit == fetch.Lesser && policy == PullNever):
		return Pulled{Image: img}, nil
	case found && policy == PullNever:
		return Pulled{}, fmt.Errorf("image %s in the store is for %s, not for %s, and the pull policy is %s: %w",
			ref, fetch.PlatformName(&img.Platform), fetch.PlatformName(platform), policy, errdefs.ErrNotFound)
	case policy == PullNever:
		return Pulled{}, fmt.Errorf("image %s is not in the store and the pull policy is %s: %w", ref, policy, errdefs.ErrNotFound)
	}
	return p.update(ctx, ref, platform)
}

// update asks the registry, and the store when no registry answers.
func (p *Pipeline) update(ctx context.Context, ref imageref.Ref, platform *ocispec.Platform) (Pulled, error) {
	e, err := p.Fetch(ctx, FetchRequest{Ref: ref, Platform: platform})
	if !errors.Is(err, errdefs.ErrUnavailable) || ctx.Err() != nil {
		return Pulled{Image: e.Image, Fetched: err == nil}, err
	}
	stored, findErr := p.Images.Find(ref)
	if findErr != nil || fetch.FitOf(stored.Platform, platform) == fetch.Unfit {
		return Pulled{}, err // that nothing answered is what the user must know
	}
	return Pulled{Image: stored, Unavailable: err}, nil
}
