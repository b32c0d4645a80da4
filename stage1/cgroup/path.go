package cgroup

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// Driver says who makes the cgroups of containers: the kubelet and the runtime must agree.
type Driver string

// Cgroupfs makes directories; Systemd asks systemd for slices and scopes.
const (
	Cgroupfs Driver = "cgroupfs"
	Systemd  Driver = "systemd"
)

// The parents of what names none.
const (
	defaultParent = "/gantry"
	defaultSlice  = "gantry.slice"
	rootSlice     = "-.slice"
	scopePrefix   = "gantry"
)

// ParseDriver reads a driver's name from a configuration.
func ParseDriver(s string) (Driver, error) {
	if d := Driver(s); d == Cgroupfs || d == Systemd {
		return d, nil
	}
	return "", fmt.Errorf("cgroup driver %q is neither %q nor %q: %w", s, Cgroupfs, Systemd, errdefs.ErrInvalid)
}

// Paths are the two spellings of a container's cgroup.
type Paths struct {
	// OCI is linux.cgroupsPath of the OCI configuration: "/parent/id", or
	// "slice:gantry:id" for systemd.
	OCI string
	// Path is where the group lies, relative to the mount points.
	Path string
}

// ContainerPath says where the container id belongs below parent, which is a
// sandbox's cgroup_parent: a path for cgroupfs, a slice for systemd, empty for
// the default. A parent that is not one of the driver's is ErrInvalid.
func ContainerPath(d Driver, parent, id string) (Paths, error) {
	if id == "" || strings.ContainsAny(id, "/:") {
		return Paths{}, fmt.Errorf("container id %q: %w", id, errdefs.ErrInvalid)
	}
	dir, err := ParentPath(d, parent)
	if err != nil {
		return Paths{}, err
	}
	if d == Systemd {
		slice := filepath.Base(dir)
		if dir == "/" {
			slice = rootSlice
		}
		return Paths{
			OCI:  strings.Join([]string{slice, scopePrefix, id}, ":"),
			Path: filepath.Join(dir, scopePrefix+"-"+id+".scope"),
		}, nil
	}
	p := filepath.Join(dir, id)
	return Paths{OCI: p, Path: p}, nil
}

// ParentPath is the path of a sandbox's cgroup_parent itself, relative to the
// mount points: for systemd the slice is expanded, "a-b.slice" to "/a.slice/a-b.slice".
func ParentPath(d Driver, parent string) (string, error) {
	switch d {
	case Cgroupfs:
		return cgroupfsParent(parent)
	case Systemd:
		return systemdParent(parent)
	default:
		return "", fmt.Errorf("cgroup driver %q: %w", d, errdefs.ErrInvalid)
	}
}

func cgroupfsParent(parent string) (string, error) {
	if parent == "" {
		return defaultParent, nil
	}
	if strings.HasSuffix(parent, ".slice") && !strings.Contains(strings.Trim(parent, "/"), "/") {
		return "", misfit(Cgroupfs, parent, "it names a systemd slice; use --cgroup-driver systemd")
	}
	for e := range strings.SplitSeq(parent, "/") {
		if e == ".." || strings.ContainsAny(e, ":\n") {
			return "", misfit(Cgroupfs, parent, "it is not a clean path")
		}
	}
	return filepath.Join("/", parent), nil
}

func systemdParent(parent string) (string, error) {
	if parent == "" {
		parent = defaultSlice
	}
	name := strings.TrimPrefix(parent, "/")
	if !strings.HasSuffix(name, ".slice") {
		return "", misfit(Systemd, parent, "it must be the name of a slice; use --cgroup-driver cgroupfs for paths")
	}
	// The kubelet hands over the last element; whole paths are taken when they agree with it.
	base := filepath.Base(name)
	dir, err := expandSlice(base)
	if err != nil {
		return "", misfit(Systemd, parent, err.Error())
	}
	if name != base && "/"+name != dir {
		return "", misfit(Systemd, parent, fmt.Sprintf("systemd keeps %s in %s", base, dir))
	}
	return dir, nil
}

func misfit(d Driver, parent, why string) error {
	return fmt.Errorf("cgroup parent %q does not fit the cgroup driver %q: %s: %w", parent, d, why, errdefs.ErrInvalid)
}

// expandSlice turns a slice's name into its path (systemd.slice(5)): each dash
// is one level. "-.slice" is the root.
func expandSlice(name string) (string, error) {
	if name == rootSlice {
		return "/", nil
	}
	stem := strings.TrimSuffix(name, ".slice")
	var dir, prefix string
	for e := range strings.SplitSeq(stem, "-") {
		if e == "" || strings.ContainsAny(e, ":/\n") {
			return "", fmt.Errorf("%q is not a slice's name", name)
		}
		dir += "/" + prefix + e + ".slice"
		prefix += e + "-"
	}
	return dir, nil
}
