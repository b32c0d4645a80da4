package translate

import (
	"fmt"
	"path"

	"github.com/appc/spec/schema"
	"github.com/appc/spec/schema/types"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

const (
	kindHost  = "host"
	kindEmpty = "empty"
)

// toVolumes returns a volume and a mount for each checked CRI mount, in CRI's
// order, and of each CRI mount what appc cannot say.
//
// CRI mounts always bring along what is mounted below. So a volume is recursive
// where that is the whole story: writable, or read-only all the way down. CRI's
// plain readonly makes the topmost mount read-only and nothing below it, which appc
// has no word for: recursive stays unset, "implementation-specific" in appc.
func toVolumes(mounts []*runtimeapi.Mount, points []types.MountPoint) ([]types.Volume, []schema.Mount, []*runtimeapi.Mount) {
	taken := names{}
	for _, p := range points {
		taken[p.Name] = true // a volume of that name would be taken for the image's
	}
	volumes, appMounts := []types.Volume{}, []schema.Mount{}
	var rest []*runtimeapi.Mount
	for i, m := range mounts {
		readonly := m.Readonly
		v := types.Volume{
			Name:     taken.unique(acName(m.ContainerPath, "volume")),
			Kind:     kindHost,
			Source:   m.HostPath,
			ReadOnly: &readonly,
		}
		if !readonly || m.RecursiveReadOnly {
			recursive := true
			v.Recursive = &recursive
		}
		volumes = append(volumes, v)
		appMounts = append(appMounts, schema.Mount{Volume: v.Name, Path: m.ContainerPath})

		left := proto.Clone(m).(*runtimeapi.Mount)
		left.ContainerPath, left.HostPath, left.Readonly, left.RecursiveReadOnly = "", "", false, false
		left.ProtoReflect().SetUnknown(nil)
		rest = align(rest, i, left)
	}
	return volumes, appMounts, rest
}

// fromVolumes is the inverse of toVolumes.
func fromVolumes(pm *schema.PodManifest, ra *schema.RuntimeApp, rest []*runtimeapi.Mount) ([]*runtimeapi.Mount, error) {
	var mounts []*runtimeapi.Mount
	for i, am := range ra.Mounts {
		v, err := volumeOf(pm, am)
		if err != nil {
			return nil, err
		}
		m := at(rest, i, &runtimeapi.Mount{})
		m.ContainerPath, m.HostPath = am.Path, v.Source
		m.Readonly = v.ReadOnly != nil && *v.ReadOnly
		m.RecursiveReadOnly = m.Readonly && v.Recursive != nil && *v.Recursive
		mounts = append(mounts, m)
	}
	return mounts, nil
}

// volumeOf returns the volume of an app's mount.
func volumeOf(pm *schema.PodManifest, m schema.Mount) (types.Volume, error) {
	if m.AppVolume != nil {
		return *m.AppVolume, nil
	}
	if v, ok := volumeNamed(pm, m.Volume); ok {
		return v, nil
	}
	return types.Volume{}, fmt.Errorf("dangling mount point %q: volume %q not found: %w", m.Path, m.Volume, errdefs.ErrInvalid)
}

func volumeNamed(pm *schema.PodManifest, name types.ACName) (types.Volume, bool) {
	for _, v := range pm.Volumes {
		if v.Name == name {
			return v, true
		}
	}
	return types.Volume{}, false
}

// uncovered returns the image's mount points that no CRI mount takes the place of.
func uncovered(points []types.MountPoint, mounts []*runtimeapi.Mount) []types.MountPoint {
	var left []types.MountPoint
	for _, p := range points {
		covered := false
		for _, m := range mounts {
			covered = covered || path.Clean(m.GetContainerPath()) == path.Clean(p.Path)
		}
		if !covered {
			left = append(left, p)
		}
	}
	return left
}

// appMount is a mount of an app with all that is known of it.
type appMount struct {
	path     string
	volume   types.Volume
	readonly bool
	// seed is the path in the image whose content an implicit volume starts with.
	seed string
	// cri is what only CRI can say of the mount; nil for others.
	cri *runtimeapi.Mount
}

// appMounts matches mounts and volumes as rkt does: the app's mounts, then the
// image's mount points by path, then volumes by the mount point's name; what is
// left becomes an empty volume that starts with the image's content.
func appMounts(pm *schema.PodManifest, ra *schema.RuntimeApp, c *runtimeapi.ContainerConfig) ([]appMount, error) {
	var mounts []appMount
	seen := map[string]bool{}
	for i, m := range ra.Mounts {
		v, err := volumeOf(pm, m)
		if err != nil {
			return nil, err
		}
		am := appMount{path: m.Path, volume: v}
		for _, p := range ra.App.MountPoints {
			if path.Clean(p.Path) == path.Clean(m.Path) {
				am.readonly = p.ReadOnly
			}
		}
		if v.ReadOnly != nil {
			am.readonly = *v.ReadOnly
		}
		if c != nil {
			am.cri = at(c.GetMounts(), i, &runtimeapi.Mount{})
		}
		seen[path.Clean(m.Path)] = true
		mounts = append(mounts, am)
	}
	for _, p := range ra.App.MountPoints {
		if seen[path.Clean(p.Path)] {
			continue
		}
		mounts = append(mounts, imageMount(pm, ra.Name, p))
	}
	for _, m := range mounts {
		if !path.IsAbs(m.path) || path.Clean(m.path) == "/" {
			return nil, fmt.Errorf("mount %q: not an absolute path below the root: %w", m.path, errdefs.ErrInvalid)
		}
	}
	return mounts, nil
}

// imageMount finds or makes the volume of a mount point that no mount names.
func imageMount(pm *schema.PodManifest, app types.ACName, p types.MountPoint) appMount {
	am := appMount{path: p.Path, readonly: p.ReadOnly}
	if v, ok := volumeNamed(pm, p.Name); ok {
		am.volume = v
		if v.ReadOnly != nil {
			am.readonly = *v.ReadOnly
		}
		return am
	}
	mode, root := "0755", 0
	am.volume = types.Volume{Name: app + "-" + p.Name, Kind: kindEmpty, Mode: &mode, UID: &root, GID: &root}
	am.seed = p.Path
	return am
}
