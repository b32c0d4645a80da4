// Package doctor compares what the kernel has with what pods claim. A pod claims
// what bears its name for as long as it has intents that are not confirmed undone:
// they are written before anything is made. What no pod claims is a leak, by a
// fault of ours or of a program that we started.
//
// Only what bears the mark of these very directories is looked at, so that
// another data directory on the same node, and other runtimes, are left alone.
package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/manifest"
	"github.com/gantry-cri/gantry/stage0/pod"
	"github.com/gantry-cri/gantry/stage1/cgroup"
	"github.com/gantry-cri/gantry/stage1/proc"
)

// Kind says what was found.
type Kind string

// The kinds, in the order in which they are removed.
const (
	Process   Kind = "process"
	Cgroup    Kind = "cgroup"
	Namespace Kind = "namespace"
	Mount     Kind = "mount"
	State     Kind = "runtime state" // of an OCI runtime, about a container
	RunDir    Kind = "run directory"
	Network   Kind = "network" // CNI's cache of a result that nobody gave back
)

var order = []Kind{Process, Cgroup, Namespace, Mount, State, RunDir, Network}

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
	mark    *regexp.Regexp // a path of ours, with the pod's UUID as its one group
}

const (
	uuidPattern = `([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})`
	hexPattern  = `([0-9a-f]{32})[0-9a-f]{32}`
)

// New returns the doctor of a data directory and a run directory, both absolute.
func New(pods *pod.Pods, dir, runDir string) (*Doctor, error) {
	h, err := cgroup.Detect()
	if err != nil {
		return nil, fmt.Errorf("look at cgroups: %w", err)
	}
	d := &Doctor{pods: pods, dir: filepath.Join(dir, "pods", "by-id"), runDir: runDir, cgroups: h}
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
	slices.SortFunc(found, func(a, b Finding) int {
		// Of mounts and cgroups the deepest first.
		return cmp.Or(slices.Index(order, a.Kind)-slices.Index(order, b.Kind), strings.Compare(b.Name, a.Name))
	})
	return found, nil
}

// claims are the pods that have something outside of their directory, or may.
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
	return claimed, nil
}

func (d *Doctor) look() ([]Finding, error) {
	var all []Finding
	for _, part := range []func() ([]Finding, error){d.processes, d.monitors, d.mounts, d.states, d.runDirs, d.caches} {
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

var stateName = regexp.MustCompile("^" + hexPattern + "$")

// fromHex is the pod of a container's id; ids of pods with several apps begin with
// the pod's UUID too.
func fromHex(name string) manifest.UUID {
	m := stateName.FindStringSubmatch(name)
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
	entries, err := os.ReadDir(d.pods.RunDir())
	if err != nil {
		return nil, err
	}
	var found []Finding
	for _, e := range entries {
		u, err := manifest.ParseUUID(e.Name())
		if err != nil {
			continue
		}
		if _, err := os.Lstat(d.pods.Path(u)); errors.Is(err, fs.ErrNotExist) {
			found = append(found, Finding{Kind: RunDir, Name: d.pods.RunPath(u), Pod: u})
		}
	}
	return found, nil
}

// caches are results that libcni keeps until DEL has succeeded.
func (d *Doctor) caches() ([]Finding, error) {
	paths, err := filepath.Glob(filepath.Join(d.dir, "*", "cni", "results", "*"))
	if err != nil {
		return nil, err
	}
	var found []Finding
	for _, p := range paths {
		if u := d.ownerOf(p); u != "" {
			found = append(found, Finding{Kind: Network, Name: p, Pod: u})
		}
	}
	return found, nil
}

// Fix removes what Examine found and says of each finding how that went.
func (d *Doctor) Fix(ctx context.Context, found []Finding) []Finding {
	fixed := slices.Clone(found)
	for i := range fixed {
		if err := d.remove(ctx, fixed[i]); err != nil {
			fixed[i].Error = err.Error()
		} else {
			fixed[i].Fixed = true
		}
	}
	return fixed
}

func (d *Doctor) remove(ctx context.Context, f Finding) error {
	switch f.Kind {
	case Process:
		if err := proc.Signal(f.process, unix.SIGKILL); err != nil {
			return err
		}
		return proc.Wait(ctx, f.process)
	case Cgroup:
		if strings.HasSuffix(f.Name, ".slice") {
			return d.cgroups.StopSlice(ctx, f.Name)
		}
		return d.cgroups.Remove(ctx, f.Name)
	case Namespace, Mount:
		return unix.Unmount(f.Name, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	case State, RunDir:
		return removeUnmounted(f.Name)
	case Network:
		return errors.New("ask the plugin: only it knows what it gave")
	}
	return fmt.Errorf("%s: nothing is known about how to remove it", f.Kind)
}

// removeUnmounted never goes through a mount: what lies behind it is not ours.
func removeUnmounted(dir string) error {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return err
	}
	if len(mounts) > 0 {
		return fmt.Errorf("%s is still mounted", mounts[0].Mountpoint)
	}
	return os.RemoveAll(dir)
}
