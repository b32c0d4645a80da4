package stage0

import (
	"context"
	"errors"
	"fmt"

	"github.com/gantry-cri/gantry/stage0/errdefs"
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
	store.Entry
	// Fetched tells that the registry was asked, and answered.
	Fetched bool
	// Unavailable is why the registry did not answer, when the policy is update
	// and the image comes from the store instead. The caller should say so.
	Unavailable error
}

// Image finds or fetches an image for the command line, with the credentials that
// the source is configured with. It returns
// ErrInvalid for an unknown policy, ErrNotFound for what the policy does not
// find, and the errors of Fetch.
func (p *Pipeline) Image(ctx context.Context, ref imageref.Ref, policy PullPolicy) (Pulled, error) {
	if _, err := ParsePullPolicy(string(policy)); err != nil {
		return Pulled{}, err
	}
	if policy == PullUpdate {
		return p.update(ctx, ref)
	}
	e, err := p.Images.Lookup(ref.Name())
	if policy == PullNever && errors.Is(err, errdefs.ErrNotFound) {
		return Pulled{}, fmt.Errorf("image %s is not in the store and the pull policy is %s: %w", ref, policy, errdefs.ErrNotFound)
	}
	if policy == PullNever || !errors.Is(err, errdefs.ErrNotFound) {
		return Pulled{Entry: e}, err
	}
	e, err = p.Fetch(ctx, FetchRequest{Ref: ref})
	return Pulled{Entry: e, Fetched: err == nil}, err
}

func (p *Pipeline) update(ctx context.Context, ref imageref.Ref) (Pulled, error) {
	e, err := p.Fetch(ctx, FetchRequest{Ref: ref})
	if !errors.Is(err, errdefs.ErrUnavailable) || ctx.Err() != nil {
		return Pulled{Entry: e, Fetched: err == nil}, err
	}
	stored, lookupErr := p.Images.Lookup(ref.Name())
	if lookupErr != nil {
		return Pulled{}, err // that nothing answered is what the user must know
	}
	return Pulled{Entry: stored, Unavailable: err}, nil
}
