package harness

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// hierarchy is one mounted cgroup file system.
type hierarchy struct {
	mount  string
	cpuset bool // v1 with the cpuset controller
}

// hierarchies lists the v1 hierarchies and the v2 one.
func hierarchies() ([]hierarchy, error) {
	lines, err := readLines("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var all []hierarchy
	for _, line := range lines {
		before, after, _ := strings.Cut(line, " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if len(left) < 5 || len(right) < 3 || !strings.HasPrefix(right[0], "cgroup") {
			continue
		}
		all = append(all, hierarchy{
			mount:  left[4],
			cpuset: right[0] == "cgroup" && slices.Contains(strings.Split(right[2], ","), "cpuset"),
		})
	}
	return all, nil
}

// cgroups lists every cgroup directory of the machine.
func cgroups() (set, error) {
	all := set{}
	hs, err := hierarchies()
	if err != nil {
		return nil, err
	}
	for _, h := range hs {
		err := filepath.WalkDir(h.mount, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) {
				return nil // removed meanwhile
			}
			if err == nil && d.IsDir() {
				all[path] = true
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}

// CgroupsBelow lists the directories, in every hierarchy, below a cgroup ("/NAME").
func CgroupsBelow(cgroup string) ([]string, error) {
	all, err := cgroups()
	if err != nil {
		return nil, err
	}
	var below []string
	for dir := range all {
		if strings.Contains(dir, cgroup+"/") {
			below = append(below, dir)
		}
	}
	return below, nil
}

// cgroupOwner is whose mark a cgroup directory or the nearest one above it has: gantry's
// pods and monitors have that of their run directory.
func cgroupOwner(dir string) string {
	for ; len(dir) > 1; dir = filepath.Dir(dir) {
		mark := make([]byte, 4096)
		if n, err := syscall.Getxattr(dir, "trusted.gantry", mark); err == nil {
			return string(mark[:n])
		}
	}
	return ""
}

// cgroupProcs lists the processes in a cgroup directory and below.
func cgroupProcs(dir string) []int {
	var pids []int
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != "cgroup.procs" {
			return nil // what has gone has no processes
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return nil
		}
		for field := range strings.FieldsSeq(string(data)) {
			if pid, err := strconv.Atoi(field); err == nil {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	return pids
}

// CgroupDriver is who makes the cgroups of pods: cgroupfs, or what
// $GANTRY_CGROUP_DRIVER says (systemd, on a node that runs it).
func CgroupDriver() string { return cmp.Or(os.Getenv("GANTRY_CGROUP_DRIVER"), "cgroupfs") }

// MakeCgroup makes a cgroup at the top of every hierarchy, fit for processes
// and for children, a parent for pods. It returns its path, "/NAME", or
// "/NAME.slice" where systemd makes cgroups. The test fails at its end when there
// still are children, so call it before the runtime is started.
func MakeCgroup(tb testing.TB) string {
	tb.Helper()
	if CgroupDriver() == "systemd" {
		return makeSlice(tb)
	}
	hs, err := hierarchies()
	if err != nil {
		tb.Fatalf("find cgroup hierarchies: %v", err)
	}
	name := fmt.Sprintf("%s%d-%d", namePrefix, os.Getpid(), madeCgroups.Add(1))
	for _, h := range hs {
		dir := filepath.Join(h.mount, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			tb.Fatalf("make cgroup: %v", err)
		}
		tb.Cleanup(func() {
			if err := syscall.Rmdir(dir); err != nil {
				tb.Errorf("remove cgroup %s: %v, children %q", dir, err, children(dir))
				_ = removeCgroup(dir) // so that the next test finds none
			}
		})
		if h.cpuset {
			copyCpuset(tb, h.mount, dir)
		}
	}
	return "/" + name
}

// makeSlice has systemd make a slice, and remove it at the end of the test.
func makeSlice(tb testing.TB) string {
	tb.Helper()
	slice := fmt.Sprintf("%s%d_%d.slice", slicePrefix, os.Getpid(), madeCgroups.Add(1))
	systemctl := func(verb string) {
		if out, err := exec.Command("systemctl", verb, slice).CombinedOutput(); err != nil {
			tb.Errorf("%s %s: %v: %s", verb, slice, err, out)
		}
	}
	systemctl("start")
	// A controller that systemd does not know, and that a kubelet wants of its root.
	if err := os.WriteFile("/sys/fs/cgroup/cgroup.subtree_control", []byte("+hugetlb"), 0o644); err != nil {
		tb.Errorf("enable hugetlb: %v", err)
	}
	tb.Cleanup(func() {
		if left := children(filepath.Join("/sys/fs/cgroup", slice)); len(left) > 0 {
			tb.Errorf("%s has children %q", slice, left)
		}
		systemctl("stop")
	})
	return "/" + slice
}

// ContainerCgroup is how the last element of a container's cgroup is called.
func ContainerCgroup(id string) string {
	if CgroupDriver() == "systemd" {
		return "gantry-" + id + ".scope"
	}
	return id
}

// madeCgroups numbers the cgroups of this process.
var madeCgroups atomic.Int32

// children lists the cgroups directly below one.
func children(dir string) []string {
	var names []string
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names
}

// copyCpuset gives a v1 cpuset its parent's processors and memory nodes: without
// them no process can enter.
func copyCpuset(tb testing.TB, parent, dir string) {
	tb.Helper()
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		data, err := os.ReadFile(filepath.Join(parent, file))
		if err != nil {
			tb.Fatalf("read cpuset: %v", err)
		}
		if err := os.WriteFile(filepath.Join(dir, file), data, 0o644); err != nil {
			tb.Fatalf("write cpuset: %v", err)
		}
	}
}

// RemoveCgroup removes a cgroup ("/NAME/CHILD") and those below it from every
// hierarchy.
func RemoveCgroup(cgroup string) error {
	hs, err := hierarchies()
	if err != nil {
		return err
	}
	var errs []error
	for _, h := range hs {
		errs = append(errs, removeCgroup(filepath.Join(h.mount, cgroup)))
	}
	return errors.Join(errs...)
}

// removeCgroup removes a cgroup directory and those below it, the lowest first, and gives
// the kernel 2 s to forget processes that have just ended.
func removeCgroup(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	if err != nil {
		return err
	}
	slices.Reverse(dirs)
	for _, d := range dirs {
		err := syscall.Rmdir(d)
		for try := 0; errors.Is(err, syscall.EBUSY) && try < 40; try++ {
			time.Sleep(50 * time.Millisecond)
			err = syscall.Rmdir(d)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return &fs.PathError{Op: "rmdir", Path: d, Err: err}
		}
	}
	return nil
}
