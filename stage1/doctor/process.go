package doctor

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/gantry-cri/gantry/stage0/manifest"
	"github.com/gantry-cri/gantry/stage1/proc"
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

// cgroupNames are the names that pods' and monitors' cgroups have with either driver.
// They are compiled when they are wanted: every start of the program would wait for it.
var cgroupNames = sync.OnceValue(func() []*regexp.Regexp {
	return []*regexp.Regexp{
		regexp.MustCompile("^/gantry/" + uuidPattern + "$"),
		regexp.MustCompile("^/gantry-monitor/" + hexPattern + "$"),
		regexp.MustCompile(`^/gantry\.slice/gantry-([0-9a-f]{32})\.slice$`),
		regexp.MustCompile(`^/system\.slice/gantry-monitor-` + hexPattern + `\.scope$`),
	}
})

// groups are cgroups that bear a pod's name and our mark, and hold no process. Those
// of ours are found as processes, and then the group is empty; others may be of a pod that
// is claimed, whose containers lie in the cgroup of one that is not.
func (d *Doctor) groups() ([]Finding, error) {
	var found []Finding
	for _, parent := range []string{"/gantry", "/gantry-monitor", "/gantry.slice", "/system.slice"} {
		names, err := d.cgroups.Children(parent)
		if err != nil {
			return nil, err
		}
		for _, n := range names {
			f, ok := cgroupOf(parent + "/" + n)
			if !ok {
				continue
			}
			if alive, err := d.cgroups.Populated(f.Name); err != nil || alive {
				continue // what cannot be read has gone
			}
			ours, err := d.owns(f.Name)
			if err != nil {
				return nil, err
			}
			if ours {
				found = append(found, f)
			}
		}
	}
	return found, nil
}

// owns says whether a cgroup bears our mark. systemd makes slices, without a mark, so
// that there the name must do.
func (d *Doctor) owns(group string) (bool, error) {
	owner, err := d.cgroups.Owner(group)
	return owner == d.pods.RunDir() || owner == "" && strings.HasSuffix(group, ".slice"), err
}

func cgroupOf(path string) (Finding, bool) {
	for _, r := range cgroupNames() {
		m := r.FindStringSubmatch(path)
		if m == nil {
			continue
		}
		hex := strings.ReplaceAll(m[1], "-", "")
		u, err := manifest.ID(hex + strings.Repeat("0", 32)).UUID()
		return Finding{Kind: Cgroup, Name: path, Pod: u}, err == nil
	}
	return Finding{}, false
}
