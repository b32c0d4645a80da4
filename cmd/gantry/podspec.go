package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"

	"github.com/gantry-cri/gantry/cmd/gantry/podargs"
	"github.com/gantry-cri/gantry/stage0"
	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/fetch"
	"github.com/gantry-cri/gantry/stage0/imageref"
	"github.com/gantry-cri/gantry/stage0/manifest"
	"github.com/gantry-cri/gantry/stage0/pod"
	"github.com/gantry-cri/gantry/stage0/store"
	"github.com/gantry-cri/gantry/translate"
)

// prepare makes a prepared pod of a request: images, manifest, pod.
func prepare(ctx context.Context, p *stage0.Pipeline, r *podargs.Request, progress *progress) (manifest.UUID, error) {
	if r.Quiet {
		progress.mode, progress.show = progressNone, false
	}
	p.Observer = progress
	spec := stage0.PodSpec{Owner: pod.OwnerCLI, Kind: pod.KindPod, Rootfs: r.Rootfs, PrivateUsers: r.PrivateUsers}
	var images []translate.Image
	for _, app := range r.Apps {
		img, err := image(ctx, p, app, r.PullPolicy, progress)
		if err == nil {
			err = checkPlatform(img, app, progress)
		}
		if err != nil {
			return "", err
		}
		config, err := p.Images.Config(img.ID)
		if err != nil {
			return "", err
		}
		appc, err := stage0.AppcManifest(p.Images, img)
		if err != nil {
			return "", err
		}
		spec.Images = append(spec.Images, stage0.AppImage{Name: app.Image, Ref: imageRef(img, app), Image: img})
		images = append(images, translate.Image{
			ID: string(img.ID), AppcID: img.AppcID, Name: app.From.Ref.Name(), Config: config, Appc: appc,
		})
	}
	pm, notes, err := r.Manifest(images)
	if err != nil {
		return "", err
	}
	for _, note := range notes {
		progress.note("prepare: " + note)
	}
	raw, err := json.Marshal(pm)
	if err != nil {
		return "", fmt.Errorf("pod manifest: %w", err)
	}
	if r.PrivateUsers {
		raw = append(raw, " in a user namespace"...) // another request than without
	}
	spec.Manifest, spec.Request = pm, sha256.Sum256(raw)
	return p.Prepare(ctx, spec)
}

// image finds an app's image by the pull policy; an id is only looked for in the store.
func image(ctx context.Context, p *stage0.Pipeline, app podargs.App, policy stage0.PullPolicy, progress *progress) (store.Image, error) {
	from := app.From
	if from.ID != "" {
		e, err := p.Images.Lookup(from.ID)
		return e.Image, err
	}
	// An ACI is read in any case, as in rkt: whoever names a file means the file.
	if !from.At.IsZero() && from.At.Transport != imageref.ACI && policy == stage0.PullNever {
		return store.Image{}, fmt.Errorf("image %s is not read where the pull policy is %s: name an image of the store: %w", from, policy, errdefs.ErrInvalid)
	}
	progress.begin(from.String())
	var pulled stage0.Pulled
	var err error
	if from.At.IsZero() {
		pulled, err = p.Image(ctx, from.Ref, app.Platform, policy)
	} else {
		var e store.Entry
		e, err = p.Load(ctx, from.At, app.Platform)
		pulled = stage0.Pulled{Image: e.Image, Fetched: err == nil}
	}
	progress.end(pulled, err)
	return pulled.Image, err
}

// checkPlatform says of an image that it is not for the platform that its app is to have.
// One that was named by its id is refused if it does not run there and the command line
// says what it should be for; without that, whoever names an id or a file means it.
func checkPlatform(img store.Image, app podargs.App, progress *progress) error {
	fit := fetch.FitOf(img.Platform, app.Platform)
	if fit == fetch.Fits {
		return nil
	}
	what := fmt.Sprintf("image %s is for %s, not for %s", app.From, printable(fetch.PlatformName(&img.Platform)), fetch.PlatformName(app.Platform))
	if fit == fetch.Unfit && app.From.ID != "" && app.Platform != nil {
		return fmt.Errorf("%s: %w", what, errdefs.ErrInvalid)
	}
	progress.note("prepare: " + what)
	return nil
}

// imageRef is the repository digest that the app's name has, else the image's id.
func imageRef(img store.Image, app podargs.App) string {
	if app.From.Ref.IsZero() || img.ManifestDigest == "" {
		return string(img.ID)
	}
	return app.From.Ref.Canonical(img.ManifestDigest)
}
