package stage0

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/gantry-cri/gantry/stage0/durable"
	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/idmap"
	"github.com/gantry-cri/gantry/stage0/overlay"
	"github.com/gantry-cri/gantry/stage0/pod"
	"github.com/gantry-cri/gantry/stage0/render"
	"github.com/gantry-cri/gantry/stage0/store"
)

// Rootfs is a way to lay a root filesystem.
type Rootfs int

const (
	// RootfsAuto is RootfsOverlay where that works, else RootfsCopy.
	RootfsAuto Rootfs = iota
	// RootfsOverlay stacks the image's trees below a writable directory.
	RootfsOverlay
	// RootfsCopy copies them into it, which takes longer and the disk space again.
	RootfsCopy
)

// rootfs decides how the pod's root filesystems are laid. That overlay does not
// work is told to the observer.
func (p *Pipeline) rootfs(ctx context.Context, spec PodSpec) (Rootfs, error) {
	if spec.Rootfs != RootfsAuto || len(spec.Images) == 0 {
		return spec.Rootfs, nil
	}
	support, err := p.overlaySupport(ctx, spec)
	if err != nil {
		return 0, err
	}
	for _, a := range spec.Images {
		if n := len(a.Image.Trees()); support.OK && n > overlay.MaxStack {
			support = overlay.Support{Reason: fmt.Sprintf("%d layers of image %s, the kernel stacks %d", n, a.Name, overlay.MaxStack)}
		}
	}
	if support.OK {
		return RootfsOverlay, nil
	}
	if p.Observer != nil {
		p.Observer.OverlayDisabled(support.Reason)
	}
	return RootfsCopy, nil
}

// overlaySupport asks whether the site carries overlays of what the spec names.
func (p *Pipeline) overlaySupport(ctx context.Context, spec PodSpec) (overlay.Support, error) {
	if !spec.mapped() {
		return p.Overlay.Detect(ctx)
	}
	var trees []string
	for _, a := range spec.Images {
		for _, name := range a.Image.Trees() {
			trees = append(trees, p.Trees.Path(name))
		}
	}
	return p.Overlay.DetectIDMapped(ctx, trees)
}

// stacked are the trees of an image that a pod's root filesystem goes on using.
func (r Rootfs) stacked(i store.Image) []string {
	if r == RootfsCopy {
		return []string{}
	}
	return i.Trees()
}

// layRootfs makes the writable side of each app's root filesystem: an empty one,
// or a copy of all that is below it. The trees themselves are only looked at: they
// were extracted when the image was fetched.
func (p *Pipeline) layRootfs(ctx context.Context, d *pod.Dir, spec PodSpec, r Rootfs) error {
	for i, a := range d.Record().Apps {
		trees := spec.Images[i].Image.Trees()
		err := p.ensureTrees(a, trees)
		if err == nil && r == RootfsCopy {
			err = p.copyTrees(ctx, d, a.Name, trees, spec.ids())
		}
		if err == nil {
			plan := overlay.Plan{Lower: p.Trees.Lower(a.Layers), Upper: d.Path("upper", a.Name), Work: d.Path("work", a.Name), IDs: spec.ids()}
			err = overlay.Make(p.Trees.Dir(), plan)
		}
		if err != nil {
			return fmt.Errorf("app %s: %w", a.Name, err)
		}
	}
	return nil
}

// ensureTrees checks that every layer is there.
func (p *Pipeline) ensureTrees(a pod.AppRecord, trees []string) error {
	if len(trees) == 0 {
		return fmt.Errorf("image %s has no layers: %w", a.ImageName, errdefs.ErrInvalid)
	}
	for _, name := range trees {
		if _, err := os.Stat(p.Trees.Path(name)); err != nil {
			return fmt.Errorf("image %s (%s): layer tree %s is missing, fetch the image again: %w", a.ImageName, a.ImageID, name, errdefs.ErrNotFound)
		}
	}
	return nil
}

// copyTrees makes the app's upper directory a copy of the trees.
func (p *Pipeline) copyTrees(ctx context.Context, d *pod.Dir, app string, trees []string, ids *idmap.Map) error {
	job := render.Job{To: d.Path("upper", app), Survival: durable.PowerCut, IDs: ids}
	if d.Record().Owner == pod.OwnerCRI {
		job.Survival = durable.Kill // such a pod cannot outlive a boot
	}
	for _, name := range trees {
		job.Roots = append(job.Roots, p.Trees.Root(name))
	}
	if err := os.MkdirAll(filepath.Dir(job.To), 0o700); err != nil {
		return fmt.Errorf("make upper directory: %w", durable.NoSpace(err))
	}
	return job.Run(ctx)
}
