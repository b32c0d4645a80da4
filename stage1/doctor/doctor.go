// Package doctor compares what the kernel has with what pods claim. A pod claims
// what bears its name for as long as it has intents that are not confirmed undone:
// they are written before anything is made. What no pod claims is a leak, by a
// fault of ours or of a program that we started.
//
// Only what bears the mark of these very directories is looked at, so that another data
// directory on the same node, and other runtimes, are left alone. The mark is a path below
// them: of a mount, in a command line, as the namespace of a network, as the owner of a cgroup.
package doctor

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/moby/sys/mountinfo"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/manifest"
	"github.com/gantry-cri/gantry/stage0/pod"
	"github.com/gantry-cri/gantry/stage1/cgroup"
	"github.com/gantry-cri/gantry/stage1/network"
)

// Kind says what was found.
type Kind string

// The kinds, in the order in which they are removed.
const (
	Process   Kind = "process"
	Cgroup    Kind = "cgroup"
	Network   Kind = "network" // CNI's cache of an ADD without its DEL
	Namespace Kind = "namespace"
	Mount     Kind = "mount"
	State     Kind = "runtime state" // of an OCI runtime, about a container
	RunDir    Kind = "run directory"
)

// order has what uses before what is used: plugins find their rules by what lies in the
// network namespace, and a run directory can go when nothing is mounted below it.
var order = []Kind{Process, Cgroup, Network, Namespace, Mount, State, RunDir}

// Finding is something that no pod claims.
type Finding struct {
	Kind Kind `json:"kind"`
	// Name is a path, of a cgroup relative to the mount points, or a pid and a program.
	Name string `json:"name"`
	// Pod is whose name it bears; the pod may be gone.
	Pod manifest.UUID `json:"pod"`
	// Fixed says that it was removed, Error why not.
	Fixed bool   `json:"fixed,omitempty"`
	Error string `json:"error,omitempty"`

	process pod.Process
}

// Doctor examines one data directory and its run directory.
type Doctor struct {
	pods    *pod.Pods
	dir     string // <data dir>/pods/by-id
	runDir  string // <run dir>
	cgroups *cgroup.Hierarchy
	network *network.Network
	mark    *regexp.Regexp // a path of ours, with the pod's UUID as its one group
}

const (
	uuidPattern = `([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})`
	hexPattern  = `([0-9a-f]{32})[0-9a-f]{32}`
)

// New returns the doctor of a data directory and a run directory, both absolute. n has
// the cache directory of the data directory's pods.
func New(pods *pod.Pods, n *network.Network, dir, runDir string) (*Doctor, error) {
	h, err := cgroup.Detect()
	if err != nil {
		return nil, fmt.Errorf("look at cgroups: %w", err)
	}
	d := &Doctor{pods: pods, dir: filepath.Join(dir, "pods", "by-id"), runDir: runDir, cgroups: h, network: n}
	d.mark = regexp.MustCompile("(?:" + regexp.QuoteMeta(d.dir) + "|" + regexp.QuoteMeta(pods.RunDir()) + ")/" + uuidPattern)
	return d, nil
}

// Examine returns what no pod claims, in the order in which it should be removed.
// What comes or goes while it looks is not reported.
func (d *Doctor) Examine() ([]Finding, error) {
	seen, err := d.look()
	if err != nil {
		return nil, err
	}
	// Claims are read after the kernel: whatever was seen had been claimed before.
	claimed, err := d.claims()
	if err != nil {
		return nil, err
	}
	again, err := d.look()
	if err != nil {
		return nil, err
	}
	found := slices.DeleteFunc(seen, func(f Finding) bool {
		return claimed[f.Pod] || !slices.Contains(again, f)
	})
	slices.SortFunc(found, byOrder)
	return found, nil
}

// byOrder has the deepest of mounts and cgroups first.
func byOrder(a, b Finding) int {
	return cmp.Or(slices.Index(order, a.Kind)-slices.Index(order, b.Kind), strings.Compare(b.Name, a.Name))
}

// claims are the pods that have something outside of their directory, or may, and
// those of other data directories that use this run directory.
func (d *Doctor) claims() (map[manifest.UUID]bool, error) {
	all, err := d.pods.List()
	if err != nil {
		return nil, err
	}
	claimed := map[manifest.UUID]bool{}
	for _, u := range all {
		if claimed[u], err = d.pods.Claims(u); err != nil {
			return nil, fmt.Errorf("intents of pod %s: %w", u, err)
		}
	}
	strays, err := d.pods.Strays()
	for _, u := range strays {
		claimed[u] = d.pods.Elsewhere(u)
	}
	return claimed, err
}

func (d *Doctor) look() ([]Finding, error) {
	var all []Finding
	for _, part := range []func() ([]Finding, error){d.processes, d.groups, d.mounts, d.states, d.runDirs, d.caches} {
		found, err := part()
		if err != nil {
			return nil, fmt.Errorf("examine: %w", err)
		}
		all = append(all, found...)
	}
	return all, nil
}

func (d *Doctor) mounts() ([]Finding, error) {
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(d.pods.RunDir()))
	if err != nil {
		return nil, err
	}
	var found []Finding
	for _, m := range infos {
		u := d.ownerOf(m.Mountpoint)
		if u == "" {
			continue
		}
		kind := Mount
		if m.FSType == "nsfs" {
			kind = Namespace
		}
		found = append(found, Finding{Kind: kind, Name: m.Mountpoint, Pod: u})
	}
	return found, nil
}

// ownerOf is the pod whose directory a text names; empty if it names none of ours.
func (d *Doctor) ownerOf(text string) manifest.UUID {
	m := d.mark.FindStringSubmatch(text)
	if m == nil {
		return ""
	}
	return manifest.UUID(m[1])
}

var stateName = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile("^" + hexPattern + "$") })

// fromHex is the pod of a container's id; ids of pods with several apps begin with
// the pod's UUID too.
func fromHex(name string) manifest.UUID {
	m := stateName().FindStringSubmatch(name)
	if m == nil {
		return ""
	}
	u, err := manifest.ID(name).UUID()
	if err != nil {
		return ""
	}
	return u
}

func (d *Doctor) states() ([]Finding, error) {
	paths, err := filepath.Glob(filepath.Join(d.runDir, "runtime", "*", "*"))
	if err != nil {
		return nil, err
	}
	var found []Finding
	for _, p := range paths {
		if u := fromHex(filepath.Base(p)); u != "" {
			found = append(found, Finding{Kind: State, Name: p, Pod: u})
		}
	}
	return found, nil
}

// runDirs are run directories of pods that are gone. A pod that ended keeps its own.
func (d *Doctor) runDirs() ([]Finding, error) {
	strays, err := d.pods.Strays()
	if err != nil {
		return nil, err
	}
	var found []Finding
	for _, u := range strays {
		found = append(found, Finding{Kind: RunDir, Name: d.pods.RunPath(u), Pod: u})
	}
	return found, nil
}

// caches are what libcni keeps until DEL has succeeded, of pods that are gone as well.
func (d *Doctor) caches() ([]Finding, error) {
	ids, err := d.network.Cached()
	if err != nil {
		return nil, err
	}
	var found []Finding
	for _, id := range ids {
		u := fromHex(id)
		if u == "" {
			continue
		}
		a, err := d.network.Remembered(id)
		if errors.Is(err, errdefs.ErrNotFound) || err == nil && !a.Within(id, d.pods.RunPath(u)) {
			continue // given back meanwhile, or not ours
		}
		found = append(found, Finding{Kind: Network, Name: d.network.CachePath(id), Pod: u})
	}
	return found, nil
}
