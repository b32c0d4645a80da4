package translate

import (
	"fmt"
	"slices"

	"github.com/appc/spec/schema/types"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/manifest"
)

// appcArches are those of a Linux that rkt runs images of. That the node is of the
// same is not asked: the kernel may run others.
var appcArches = []string{"amd64", "i386", "aarch64", "aarch64_be", "armv6l", "armv7l", "armv7b", "ppc64le"}

// fromAppc returns the app and the labels of an appc image. One without an app gets
// one that runs nothing as root.
func fromAppc(img Image) (*types.App, types.Labels, error) {
	if err := checkAppc(img); err != nil {
		return nil, nil, fmt.Errorf("image %s: %w", img.named(), err)
	}
	app := types.App{User: "0", Group: "0", Environment: types.Environment{}}
	if img.Appc.App != nil {
		app = *img.Appc.App
	}
	// The caller changes them.
	app.Exec, app.Isolators = slices.Clone(app.Exec), slices.Clone(app.Isolators)
	return &app, slices.Clone(img.Appc.Labels), nil
}

// checkAppc refuses what would not be what the image asks for.
func checkAppc(img Image) error {
	labels := img.Appc.Labels
	system, ok := labels.Get("os")
	if !ok {
		return fmt.Errorf("missing os label in the image manifest: %w", errdefs.ErrInvalid)
	}
	arch, ok := labels.Get("arch")
	switch {
	case !ok:
		return fmt.Errorf("missing arch label in the image manifest: %w", errdefs.ErrInvalid)
	case system != "linux":
		return fmt.Errorf("bad os %q: %w", system, errdefs.ErrUnsupported)
	case !slices.Contains(appcArches, arch):
		return fmt.Errorf("bad arch %q: %w", arch, errdefs.ErrUnsupported)
	}
	app := img.Appc.App
	if app == nil {
		return nil
	}
	for _, h := range app.EventHandlers {
		return fmt.Errorf("event handler %q: %w", h.Name, errdefs.ErrUnsupported)
	}
	for _, p := range app.Ports {
		if p.SocketActivated {
			return fmt.Errorf("port %q: socket activation: %w", p.Name, errdefs.ErrUnsupported)
		}
	}
	for _, i := range app.Isolators {
		// What is ours says what somebody asked for; an image asks for nothing.
		if !honoured[i.Name] || i.Name == manifest.CRIName || i.Name == manifest.OCIAdjustName {
			return fmt.Errorf("isolator %q: %w", i.Name, errdefs.ErrUnsupported)
		}
	}
	return nil
}
