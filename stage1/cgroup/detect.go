// Package cgroup makes, fills, watches, empties and removes control groups,
// on cgroup v1, on v2 and on a mixture of both.
//
// A path here is relative to the mount points of the hierarchies, begins with
// "/" and means the same group in each of them: "/kubepods/podX/ID" is
// /sys/fs/cgroup/memory/kubepods/podX/ID, /sys/fs/cgroup/pids/kubepods/podX/ID
// and so on. No controller is required: what is not mounted is left out.
package cgroup

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// Mode says which kinds of hierarchy a node has.
type Mode string

// V1 has controllers in hierarchies of their own, V2 one hierarchy for all, and
// Hybrid a v2 hierarchy, often without controllers, beside those of v1.
const (
	V1     Mode = "v1"
	V2     Mode = "v2"
	Hybrid Mode = "hybrid"
)

// namedSystemd is the v1 hierarchy without a controller, in which systemd keeps its units.
const namedSystemd = "name=systemd"

// Hierarchy is the set of cgroup hierarchies that are mounted on the node. It
// is a value of facts, found once; the files below are read anew each time.
type Hierarchy struct {
	// unified is the mount point of v2, or empty.
	unified string
	// v1 maps a controller, or "name=…", to its mount point; cpu and cpuacct
	// may share one or not.
	v1 map[string]string
}

// Detect reads the hierarchies from /proc/self/mountinfo. A node without any is
// ErrUnsupported.
func Detect() (*Hierarchy, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("detect cgroups: %w", err)
	}
	defer f.Close() //nolint:errcheck // read only
	return parse(f)
}

// known are the v1 controllers that may stand among a mount's options.
var known = []string{
	"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids",
	"hugetlb", "net_cls", "net_prio", "perf_event", "rdma", "misc",
}

// parse reads the hierarchies from a mountinfo. Of several mounts of the same
// hierarchy the first counts: others are usually a container's view of it.
func parse(r io.Reader) (*Hierarchy, error) {
	mounts, err := mountinfo.GetMountsFromReader(r, mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil, fmt.Errorf("detect cgroups: %w", err)
	}
	h := &Hierarchy{v1: map[string]string{}}
	for _, m := range mounts {
		if m.FSType == "cgroup2" {
			if h.unified == "" {
				h.unified = m.Mountpoint
			}
			continue
		}
		for o := range strings.SplitSeq(m.VFSOptions, ",") {
			if !slices.Contains(known, o) && !strings.HasPrefix(o, "name=") {
				continue
			}
			if _, seen := h.v1[o]; !seen {
				h.v1[o] = m.Mountpoint
			}
		}
	}
	if h.unified == "" && len(h.v1) == 0 {
		return nil, fmt.Errorf("no cgroup hierarchy is mounted: %w", errdefs.ErrUnsupported)
	}
	return h, nil
}

// Mode says which kinds of hierarchy there are.
func (h *Hierarchy) Mode() Mode {
	switch {
	case len(h.v1) == 0:
		return V2
	case h.unified == "":
		return V1
	default:
		return Hybrid
	}
}

// UnifiedControllers are the controllers that the v2 hierarchy holds: none
// where there is no such hierarchy.
func (h *Hierarchy) UnifiedControllers() []string {
	if h.unified == "" {
		return nil
	}
	b, err := os.ReadFile(filepath.Join(h.unified, "cgroup.controllers"))
	if err != nil {
		return nil
	}
	return strings.Fields(string(b))
}

// Controllers are the names of all controllers of both kinds, sorted.
func (h *Hierarchy) Controllers() []string {
	list := h.UnifiedControllers()
	for c := range h.v1 {
		if !strings.HasPrefix(c, "name=") {
			list = append(list, c)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// mounts are the distinct mount points of all hierarchies, sorted.
func (h *Hierarchy) mounts() []string {
	var list []string
	for _, m := range h.v1 {
		list = append(list, m)
	}
	if h.unified != "" {
		list = append(list, h.unified)
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// dirs are the directories of a group in all hierarchies, whether they exist or not.
func (h *Hierarchy) dirs(path string) []string {
	list := h.mounts()
	for i, m := range list {
		list[i] = filepath.Join(m, path)
	}
	return list
}

// dir is the directory of a group where a controller is: the v1 hierarchy of
// the controller if it has one, else v2. It is empty where there is neither.
func (h *Hierarchy) dir(controller, path string) (dir string, v2 bool) {
	if m, ok := h.v1[controller]; ok {
		return filepath.Join(m, path), false
	}
	if h.unified != "" && len(h.v1) == 0 {
		return filepath.Join(h.unified, path), true
	}
	return "", false
}
