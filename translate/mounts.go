package translate

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// mounts lays the standard mounts, then the pod's files and the app's volumes,
// parents before what lies in them. A volume replaces the standard mounts of its
// place and below, which it would hide, and the pod's file of its place.
func (o *ociSpec) mounts() error {
	app, err := appMounts(o.pm, o.ra, o.cri)
	if err != nil {
		return err
	}
	var volumes []specs.Mount
	for _, m := range app {
		mount, err := o.volumeMount(m)
		if err != nil {
			return err
		}
		if mount != nil {
			volumes = append(volumes, *mount)
		}
	}
	for _, m := range o.standardMounts() {
		if !covered(m.Destination, volumes) {
			o.spec.Mounts = append(o.spec.Mounts, m)
		}
	}
	var binds []specs.Mount
	for _, m := range o.fileMounts() {
		if !slices.ContainsFunc(volumes, func(v specs.Mount) bool { return path.Clean(v.Destination) == m.Destination }) {
			binds = append(binds, m)
		}
	}
	binds = append(binds, volumes...)
	slices.SortStableFunc(binds, func(a, b specs.Mount) int { return depth(a.Destination) - depth(b.Destination) })
	o.spec.Mounts = append(o.spec.Mounts, binds...)
	return nil
}

func depth(p string) int { return strings.Count(path.Clean(p), "/") }

// covered says whether a path lies at or below one of the mounts.
func covered(p string, by []specs.Mount) bool {
	return slices.ContainsFunc(by, func(m specs.Mount) bool {
		d := path.Clean(m.Destination)
		return p == d || strings.HasPrefix(p, d+"/")
	})
}

// standardMounts are what every app finds.
func (o *ociSpec) standardMounts() []specs.Mount {
	access := "ro"
	if o.privileged() {
		access = "rw"
	}
	cgroup := []string{"nosuid", "noexec", "nodev", "relatime", access}
	if !o.cgroupNamespace() && o.node.CgroupV2 {
		cgroup = append(cgroup, o.node.CgroupMountOptions...)
	}
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		o.shm(),
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", access}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: cgroup},
	}
}

// shm is the node's /dev/shm in the node's IPC namespace, the pod's, or one of the
// app's own.
func (o *ociSpec) shm() specs.Mount {
	source := o.place.Shm
	if o.nodeIPC() {
		source = "/dev/shm"
	}
	options := []string{"nosuid", "noexec", "nodev"}
	if source == "" {
		return specs.Mount{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: append(options, "mode=1777", "size=65536k")}
	}
	return specs.Mount{Destination: "/dev/shm", Type: "bind", Source: source, Options: append([]string{"rbind", "rprivate"}, options...)}
}

// fileMounts are the pod's files in /etc, read-only when the root filesystem is.
func (o *ociSpec) fileMounts() []specs.Mount {
	access := "rw"
	if o.ra.ReadOnlyRootFS {
		access = "ro"
	}
	var mounts []specs.Mount
	for _, f := range []struct{ destination, source string }{
		{"/etc/hostname", o.place.Hostname},
		{"/etc/hosts", o.place.Hosts},
		{"/etc/resolv.conf", o.place.ResolvConf},
	} {
		if f.source != "" {
			mounts = append(mounts, specs.Mount{Destination: f.destination, Type: "bind", Source: f.source, Options: []string{"rbind", "rprivate", access}})
		}
	}
	return mounts
}

// volumeMount returns the mount of a volume; nil for an implicit one without a
// directory, whose path stays in the root filesystem.
func (o *ociSpec) volumeMount(m appMount) (*specs.Mount, error) {
	source := o.place.Volumes[m.volume.Name.String()]
	switch {
	case source != "":
	case m.volume.Kind == kindHost:
		source = m.volume.Source
	case m.seed != "":
		return nil, nil
	default:
		return nil, fmt.Errorf("volume %s has no directory: %w", m.volume.Name, errdefs.ErrState)
	}
	propagation, err := o.propagation(m)
	if err != nil {
		return nil, err
	}
	access, err := o.access(m)
	if err != nil {
		return nil, err
	}
	bind := "rbind"
	if m.volume.Recursive != nil && !*m.volume.Recursive {
		bind = "bind"
	}
	options := append([]string{bind, propagation, access}, m.cri.GetMountOptions()...)
	return &specs.Mount{Destination: m.path, Type: "bind", Source: source, Options: options}, nil
}

// propagation returns the mount option, and lets the root mount follow: mounts of
// the node reach the app only through a root that is a slave or shared.
func (o *ociSpec) propagation(m appMount) (string, error) {
	switch p := m.cri.GetPropagation(); p {
	case runtimeapi.MountPropagation_PROPAGATION_PRIVATE:
		return "rprivate", nil
	case runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
		if o.spec.Linux.RootfsPropagation == "" {
			o.spec.Linux.RootfsPropagation = "rslave"
		}
		return "rslave", nil
	case runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		o.spec.Linux.RootfsPropagation = "rshared"
		return "rshared", nil
	default:
		return "", fmt.Errorf("mount %q: propagation %v: %w", m.path, p, errdefs.ErrUnsupported)
	}
}

// access returns rw, ro, or rro where everything below is to be read-only too: a
// volume that is recursive in so many words.
func (o *ociSpec) access(m appMount) (string, error) {
	switch recursive := m.volume.Recursive != nil && *m.volume.Recursive; {
	case !m.readonly:
		return "rw", nil
	case !recursive:
		return "ro", nil
	case !o.node.RecursiveReadOnly:
		return "", fmt.Errorf("mount %q: the OCI runtime has no recursive read-only mounts: %w", m.path, errdefs.ErrUnsupported)
	}
	return "rro", nil
}
