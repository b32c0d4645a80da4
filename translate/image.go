package translate

import (
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/appc/spec/schema"
	"github.com/appc/spec/schema/types"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// FromImage returns what an OCI configuration is in appc's words: its app and the
// labels os, arch and version (the tag). Exec is empty where the image has neither
// entry point nor command. Ports and volumes that appc cannot hold are left out:
// in an image they only document. Of an appc image it is what its manifest says.
func FromImage(img Image) (*types.App, types.Labels, error) {
	if img.Appc != nil {
		return fromAppc(img)
	}
	cfg := img.Config.Config
	user, group := splitUser(cfg.User)
	if group == "" {
		group = user
	}
	app := &types.App{
		Exec:             append(append(types.Exec{}, cfg.Entrypoint...), cfg.Cmd...),
		User:             user,
		Group:            group,
		WorkingDirectory: path.Join("/", cfg.WorkingDir),
		MountPoints:      imageMountPoints(cfg.Volumes),
		Ports:            imagePorts(cfg.ExposedPorts),
		UserLabels:       types.UserLabels(maps.Clone(cfg.Labels)),
	}
	app.Environment, _ = imageEnvironment(cfg.Env)
	labels, err := imageLabels(img)
	return app, labels, err
}

// ImageApp returns the whole runtime app of an image: what a command-line pod
// starts from, and a CRI container is merged into.
func ImageApp(name types.ACName, img Image) (schema.RuntimeApp, error) {
	app, labels, err := FromImage(img)
	if err != nil {
		return schema.RuntimeApp{}, err
	}
	id, err := types.NewHash(img.AppcID)
	if err != nil {
		return schema.RuntimeApp{}, fmt.Errorf("image %s: appc id %q: %w: %w", img.named(), img.AppcID, errdefs.ErrInvalid, err)
	}
	ra := schema.RuntimeApp{
		Name:   name,
		Image:  schema.RuntimeImage{ID: *id, Labels: labels},
		App:    app,
		Mounts: []schema.Mount{},
	}
	if img.Appc != nil {
		ra.Image.Name = &img.Appc.Name
		return ra, nil
	}
	repository, _ := splitName(img.Name)
	if s, err := types.SanitizeACIdentifier(repository); err == nil {
		identifier := types.ACIdentifier(s)
		ra.Image.Name = &identifier
	}
	if s := img.Config.Config.StopSignal; s != "" {
		ra.Annotations.Set(annotationStopSignal, s)
	}
	if _, refused := imageEnvironment(img.Config.Config.Env); len(refused) > 0 {
		raw, err := json.Marshal(refused)
		if err != nil {
			return schema.RuntimeApp{}, fmt.Errorf("image %s: %w", img.named(), err)
		}
		ra.Annotations.Set(annotationEnv, string(raw))
	}
	return ra, nil
}

// named is how an error calls the image.
func (i Image) named() string {
	if i.Name != "" {
		return strconv.Quote(i.Name)
	}
	if i.Appc != nil {
		return strconv.Quote(i.Appc.Name.String())
	}
	return strconv.Quote(i.ID)
}

// splitUser splits USER into user and group; no user is root, no group is empty.
func splitUser(s string) (user, group string) {
	user, group, _ = strings.Cut(s, ":")
	switch {
	case s == "":
		return "0", "0"
	case user == "":
		user = "0"
	}
	return user, group
}

// splitName splits a reference into repository and tag; a digest is cut off.
func splitName(name string) (repository, tag string) {
	name, _, _ = strings.Cut(name, "@")
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		return name[:i], name[i+1:]
	}
	return name, ""
}

// imageLabels returns os, arch and version. An architecture that appc has no word
// for is left out.
func imageLabels(img Image) (types.Labels, error) {
	var labels types.Labels
	platform := img.Config.Platform
	flavor := strings.TrimPrefix(platform.Variant, "v")
	if platform.Architecture != "arm" {
		flavor = ""
	}
	if platform.OS != "" && platform.OS != "linux" {
		return nil, fmt.Errorf("image %s is for %s: %w", img.named(), platform.OS, errdefs.ErrUnsupported)
	}
	if system, arch, err := types.ToAppcOSArch("linux", platform.Architecture, flavor); err == nil {
		labels = append(labels, types.Label{Name: "arch", Value: arch}, types.Label{Name: "os", Value: system})
	} else {
		labels = append(labels, types.Label{Name: "os", Value: "linux"})
	}
	if _, tag := splitName(img.Name); tag != "" {
		labels = append(labels, types.Label{Name: "version", Value: tag})
	}
	return labels, nil
}

// imageMountPoints names the volumes of an image: /var/lib/Data is volume-var-lib-data.
func imageMountPoints(volumes map[string]struct{}) []types.MountPoint {
	var points []types.MountPoint
	taken := names{}
	for _, p := range slices.Sorted(maps.Keys(volumes)) {
		if clean := path.Join("/", p); clean != "/" {
			points = append(points, types.MountPoint{Name: taken.unique(acName("volume-"+clean, "volume")), Path: clean})
		}
	}
	return points
}

// imagePorts names the ports of an image: 80/tcp is 80-tcp, a bare 443 is 443.
func imagePorts(exposed map[string]struct{}) []types.Port {
	var ports []types.Port
	taken := names{}
	for _, e := range slices.Sorted(maps.Keys(exposed)) {
		number, protocol, ok := strings.Cut(e, "/")
		if !ok {
			protocol = "tcp"
		}
		low, high, ranged := strings.Cut(number, "-")
		if !ranged {
			high = low
		}
		from, err := strconv.ParseUint(low, 10, 16)
		to, err2 := strconv.ParseUint(high, 10, 16)
		if err != nil || err2 != nil || from == 0 || to < from || protocol == "" {
			continue
		}
		ports = append(ports, types.Port{
			Name:     taken.unique(acName(e, "port")),
			Protocol: strings.ToLower(protocol),
			Port:     uint(from),
			Count:    uint(to-from) + 1,
		})
	}
	slices.SortStableFunc(ports, func(a, b types.Port) int { return int(a.Port) - int(b.Port) })
	return ports
}

// StopSignal returns the signal that asks an app to end, as "SIGTERM" or
// "SIGRTMIN+3", or as a number where the image gives one: the signal that CRI asked
// for, else the image's, else SIGTERM.
func StopSignal(pm *schema.PodManifest, app string) string {
	ra := pm.Apps.Get(types.ACName(app))
	if ra == nil {
		return "SIGTERM"
	}
	if ra.App != nil {
		if c, err := containerRest(ra); err == nil && c.GetStopSignal() != 0 {
			name := strings.TrimPrefix(c.GetStopSignal().String(), "SIGNAL_")
			name = strings.Replace(name, "PLUS", "+", 1)
			return strings.Replace(name, "MINUS", "-", 1)
		}
	}
	if s, ok := ra.Annotations.Get(annotationStopSignal.String()); ok {
		return signalName(s)
	}
	return "SIGTERM"
}

// signalName spells an image's STOPSIGNAL as CRI does; a number stays one.
func signalName(s string) string {
	s = strings.ToUpper(strings.TrimSpace(s))
	if _, err := strconv.Atoi(s); err == nil || strings.HasPrefix(s, "SIG") {
		return s
	}
	return "SIG" + s
}
