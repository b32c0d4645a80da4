package podargs

import (
	"fmt"
	"path"
	"slices"

	"github.com/appc/spec/schema"
	"github.com/appc/spec/schema/types"

	"github.com/gantry-cri/gantry/translate"
)

// Manifest makes the pod manifest of the request. images are those of the apps,
// in their order. notes are worth a line each to the user.
func (r *Request) Manifest(images []translate.Image) (pm *schema.PodManifest, notes []string, err error) {
	pm = schema.BlankPodManifest()
	pm.Volumes = append([]types.Volume{}, r.Volumes...)
	pm.Isolators, pm.Annotations = []types.Isolator{}, types.Annotations{}
	if err := r.nameApps(images); err != nil {
		return nil, nil, err
	}
	for i := range r.Apps {
		app, appNotes, err := r.app(&r.Apps[i], images[i])
		if err != nil {
			return nil, nil, fmt.Errorf("app %s: %w", r.Apps[i].Name, err)
		}
		pm.Apps = append(pm.Apps, app)
		notes = append(notes, appNotes...)
	}
	if pm.Ports, err = bindPorts(r.Ports, pm.Apps); err != nil {
		return nil, nil, err
	}
	return pm, notes, nil
}

// nameApps names the apps that are named by their images' manifests.
func (r *Request) nameApps(images []translate.Image) error {
	taken := map[types.ACName]bool{}
	for i := range r.Apps {
		a := &r.Apps[i]
		if a.Name == "" && images[i].Appc != nil {
			name, err := toACName(path.Base(images[i].Appc.Name.String()))
			if err != nil {
				return invalid("image %q: no app name can be made of %q (%v): give one with --name", a.Image, images[i].Appc.Name, err)
			}
			a.Name = name
		}
		if taken[a.Name] {
			return invalid("multiple apps with name %q: tell them apart with --name", a.Name)
		}
		taken[a.Name] = true
	}
	return nil
}

// app merges one image with what the command line overrides in it.
func (r *Request) app(a *App, img translate.Image) (app schema.RuntimeApp, notes []string, err error) {
	app, err = translate.ImageApp(a.Name, img)
	if err != nil {
		return app, nil, err
	}
	if err := a.override(app.App); err != nil {
		return app, nil, err
	}
	app.App.Environment = r.environment(app.App.Environment, a.env)
	app.ReadOnlyRootFS = a.readOnly
	app.Mounts, notes = r.appMounts(a, app.App.MountPoints)
	return app, notes, nil
}

// override replaces in an image's app what the command line said about it.
func (a *App) override(app *types.App) error {
	if a.exec != nil {
		app.Exec = types.Exec{*a.exec}
	}
	app.Exec = append(app.Exec, a.args...)
	if len(app.Exec) == 0 {
		return invalid("the image %q does not say what to run: give --exec or arguments", a.Image)
	}
	if a.user != "" {
		app.User = a.user
	}
	if a.group != "" {
		app.Group = a.group
	}
	if a.gids != nil {
		app.SupplementaryGIDs = a.gids
	}
	if a.workingDir != "" {
		app.WorkingDirectory = a.workingDir
	}
	if a.annotations != nil {
		app.UserAnnotations = a.annotations
	}
	if a.labels != nil {
		app.UserLabels = a.labels
	}
	return a.overrideCapabilities(app)
}

// overrideCapabilities replaces every capability isolator of the image, of
// either kind, by the one of the command line.
func (a *App) overrideCapabilities(app *types.App) error {
	isolator, err := a.capabilityIsolator()
	if isolator == nil || err != nil {
		return err
	}
	app.Isolators = slices.DeleteFunc(app.Isolators, func(i types.Isolator) bool {
		return i.Name == types.LinuxCapabilitiesRetainSetName || i.Name == types.LinuxCapabilitiesRevokeSetName
	})
	app.Isolators = append(app.Isolators, *isolator)
	return nil
}

func (a *App) capabilityIsolator() (*types.Isolator, error) {
	switch {
	case a.retain != nil:
		set, err := types.NewLinuxCapabilitiesRetainSet(a.retain...)
		if err != nil {
			return nil, invalid("--caps-retain: %v", err)
		}
		return set.AsIsolator()
	case a.drop != nil:
		set, err := types.NewLinuxCapabilitiesRevokeSet(a.drop...)
		if err != nil {
			return nil, invalid("--caps-remove: %v", err)
		}
		return set.AsIsolator()
	default:
		return nil, nil
	}
}
