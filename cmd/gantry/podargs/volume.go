package podargs

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/appc/spec/schema"
	"github.com/appc/spec/schema/types"
)

// parseVolume reads NAME,kind=…: appc's syntax, and what appc leaves for the
// start of the pod to find out.
func parseVolume(s string) (types.Volume, error) {
	v, err := types.VolumeFromString(s)
	if err != nil {
		return types.Volume{}, invalid("%v", err)
	}
	if v.Mode != nil {
		mode, err := strconv.ParseUint(*v.Mode, 8, 32)
		if err != nil || mode > 0o7777 {
			return types.Volume{}, invalid("mode %q is not an octal file mode", *v.Mode)
		}
	}
	for _, id := range []*int{v.UID, v.GID} {
		if id != nil && *id < 0 {
			return types.Volume{}, invalid("%d is not a user or group id", *id)
		}
	}
	return *v, nil
}

// parseMount reads volume=NAME,target=PATH.
func parseMount(s string) (schema.Mount, error) {
	var m schema.Mount
	for part := range strings.SplitSeq(s, ",") {
		key, value, ok := strings.Cut(part, "=")
		switch {
		case !ok:
			return m, invalid("%q has a label without a value", part)
		case key == "volume" && m.Volume == "":
			name, err := types.NewACName(value)
			if err != nil {
				return m, invalid("volume %q: %v", value, err)
			}
			m.Volume = *name
		case key == "target" && m.Path == "":
			if !path.IsAbs(value) {
				return m, invalid("target %q must be absolute", value)
			}
			m.Path = path.Clean(value)
		case key == "volume" || key == "target":
			return m, invalid("%s is given twice", key)
		default:
			return m, invalid("unknown mount parameter %q", key)
		}
	}
	if m.Volume == "" || m.Path == "" {
		return m, invalid("a mount is volume=NAME,target=PATH")
	}
	return m, nil
}

// checkVolumes finds volumes with one name and mounts of volumes that there are not.
func (r *Request) checkVolumes() error {
	names := map[types.ACName]bool{}
	for _, v := range r.Volumes {
		if names[v.Name] {
			return invalid("duplicate volume name %q", v.Name)
		}
		names[v.Name] = true
	}
	mounts := slices.Clone(r.mounts)
	for _, app := range r.Apps {
		mounts = append(mounts, app.mounts...)
	}
	for _, m := range mounts {
		if !names[m.Volume] {
			return invalid("dangling mount point %q: volume %q not found", m.Path, m.Volume)
		}
	}
	return nil
}

// appMounts joins an app's own mounts and the pod's, one a path, the first of
// them winning. Notes tell of the image's mount points that no volume is for:
// they get an empty one each when the pod runs.
func (r *Request) appMounts(a *App, points []types.MountPoint) (mounts []schema.Mount, notes []string) {
	taken := map[string]bool{}
	mounts = []schema.Mount{}
	for _, m := range slices.Concat(a.mounts, r.mounts) {
		if !taken[m.Path] {
			taken[m.Path] = true
			mounts = append(mounts, m)
		}
	}
	for _, point := range points {
		declared := slices.ContainsFunc(r.Volumes, func(v types.Volume) bool { return v.Name == point.Name })
		if !declared && !taken[path.Clean(point.Path)] {
			notes = append(notes, fmt.Sprintf("app %s: no volume for mount point %s (%s): using an empty one", a.Name, point.Name, point.Path))
		}
	}
	return mounts, notes
}
