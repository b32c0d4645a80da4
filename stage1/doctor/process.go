package doctor

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/gantry-cri/gantry/stage0/manifest"
	"github.com/gantry-cri/gantry/stage1/cgroup"
	"github.com/gantry-cri/gantry/stage1/proc"
	"github.com/gantry-cri/gantry/translate"
)

// programs are those that we start and that name our directories: an editor that
// does so too is none of them.
var programs = []string{"conmon", "crun", "runc"}

// processes are monitors and runtimes that name a pod's directory, and processes
// whose root lies on a pod's upper directory.
func (d *Doctor) processes() ([]Finding, error) {
	pids, err := processIDs()
	if err != nil {
		return nil, err
	}
	node, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return nil, err
	}
	var found []Finding
	for _, pid := range pids {
		u, program := d.processOf(pid, node)
		if u == "" {
			continue
		}
		p, err := proc.Read(pid)
		if err != nil {
			continue // it has ended
		}
		found = append(found, Finding{Kind: Process, Name: fmt.Sprintf("%d %s", pid, program), Pod: u, process: p})
	}
	return found, nil
}

// processOf says to which pod a process belongs; what cannot be read has ended.
func (d *Doctor) processOf(pid int, nodeNS string) (u manifest.UUID, program string) {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	cmdline, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if err != nil {
		return "", ""
	}
	program, _, _ = strings.Cut(string(cmdline), "\x00")
	if ns, err := os.Readlink(filepath.Join(dir, "ns", "mnt")); err == nil && ns != nodeNS {
		return d.rootOf(dir), program
	}
	if !slices.Contains(programs, filepath.Base(program)) {
		return "", ""
	}
	return d.ownerOf(string(cmdline)), program
}

// rootOf is the pod on whose upper directory a process's root lies.
func (d *Doctor) rootOf(procDir string) manifest.UUID {
	raw, err := os.ReadFile(filepath.Join(procDir, "mountinfo"))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(raw)) {
		if f := strings.Fields(line); len(f) > 4 && f[4] == "/" {
			return d.ownerOf(line)
		}
	}
	return ""
}

func processIDs() ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// groupNames say how the cgroups of pods and monitors are called with either driver, by
// what they lie in. They are compiled when they are wanted: every start of the program
// would wait for it.
var groupNames = sync.OnceValue(func() map[string]*regexp.Regexp {
	return map[string]*regexp.Regexp{
		"/gantry":         regexp.MustCompile("^" + uuidPattern + "$"),
		"/gantry-monitor": regexp.MustCompile("^" + hexPattern + "$"),
		"/gantry.slice":   regexp.MustCompile(`^gantry-([0-9a-f]{32})\.slice$`),
		"/system.slice":   regexp.MustCompile(`^gantry-monitor-` + hexPattern + `\.scope$`),
	}
})

// containerName is how a container's cgroup is called: the id, or the scope with it.
var containerName = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^(?:gantry-)?` + hexPattern + `(?:\.scope)?$`)
})

// groups are cgroups that bear a pod's name and our mark, and hold no process. Those
// of ours are found as processes, and then the group is empty; others may be of a pod that
// is claimed, whose containers lie in the cgroup of one that is not.
func (d *Doctor) groups() ([]Finding, error) {
	names, err := d.places()
	if err != nil {
		return nil, err
	}
	var found []Finding
	for parent, name := range names {
		children, err := d.cgroups.Children(parent)
		if err != nil {
			return nil, err
		}
		for _, c := range children {
			f, ok := groupOf(parent, c, name)
			if !ok {
				continue
			}
			if alive, err := d.cgroups.Populated(f.Name); err != nil || alive {
				continue // what cannot be read has gone
			}
			owner, err := d.cgroups.Owner(f.Name)
			if err != nil {
				return nil, err
			}
			if owner == d.pods.RunDir() {
				found = append(found, f)
			}
		}
	}
	return found, nil
}

// places are groupNames, and the cgroups that a kubelet made for sandboxes, in which their
// containers lie. Where those of a sandbox whose directory is gone lay nobody knows: the
// kubelet removes its cgroup with all that is below.
func (d *Doctor) places() (map[string]*regexp.Regexp, error) {
	all, err := d.pods.List()
	if err != nil {
		return nil, err
	}
	names := maps.Clone(groupNames())
	for _, u := range all {
		pm, err := d.pods.Manifest(u)
		if err != nil {
			continue // never committed, deleted meanwhile, or damaged: it names no cgroup
		}
		config, _, err := translate.SandboxConfig(pm)
		asked := config.GetLinux().GetCgroupParent()
		if err != nil || asked == "" {
			continue // no sandbox, or one with a cgroup of its own
		}
		// The driver may have been another when the sandbox was run.
		for _, driver := range []cgroup.Driver{cgroup.Cgroupfs, cgroup.Systemd} {
			parent, err := cgroup.ParentPath(driver, asked)
			if err == nil && parent != "/" && names[parent] == nil {
				names[parent] = containerName()
			}
		}
	}
	return names, nil
}

// groupOf is the finding about a cgroup, if a name such as this one is ours.
func groupOf(parent, child string, name *regexp.Regexp) (Finding, bool) {
	m := name.FindStringSubmatch(child)
	if m == nil {
		return Finding{}, false
	}
	hex := strings.ReplaceAll(m[1], "-", "")
	u, err := manifest.ID(hex + strings.Repeat("0", 32)).UUID()
	return Finding{Kind: Cgroup, Name: filepath.Join(parent, child), Pod: u}, err == nil
}
