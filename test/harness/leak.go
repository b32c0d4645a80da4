package harness

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// set is a set of names.
type set map[string]bool

// LeakScope says what belongs to a test: other tests may run on the machine.
type LeakScope struct {
	Dirs   []string // mounts below them, and processes that name them
	Bridge string   // links attached to it
}

// Snapshot is what there was outside the file system at one moment.
type Snapshot struct {
	scope     LeakScope
	mounts    set // mount points, pinned namespaces among them
	links     set
	processes set // "pid: command line"
	cgroups   set
}

// leakGrace is how long things may take to go.
const leakGrace = 10 * time.Second

// TakeSnapshot looks at the machine.
func TakeSnapshot(scope LeakScope) (Snapshot, error) {
	s := Snapshot{scope: scope, mounts: set{}, links: set{}, processes: set{}}
	for _, dir := range scope.Dirs {
		mounts, err := MountsBelow(dir)
		if err != nil {
			return s, fmt.Errorf("list mounts: %w", err)
		}
		for _, m := range mounts {
			s.mounts[m] = true
		}
	}
	if scope.Bridge != "" {
		ports, err := filepath.Glob(filepath.Join("/sys/class/net", scope.Bridge, "brif", "*"))
		if err != nil {
			return s, fmt.Errorf("list links: %w", err)
		}
		for _, p := range ports {
			s.links[filepath.Base(p)] = true
		}
	}
	if err := s.readProcesses(scope); err != nil {
		return s, fmt.Errorf("list processes: %w", err)
	}
	var err error
	if s.cgroups, err = cgroups(); err != nil {
		return s, fmt.Errorf("list cgroups: %w", err)
	}
	return s, nil
}

// readProcesses finds the processes of the scope: those whose command line
// names one of its directories, and those that live on a root file system below.
func (s *Snapshot) readProcesses(scope LeakScope) error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	root := rootMount(string(mounts))
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		proc := filepath.Join("/proc", e.Name())
		cmdline, err := os.ReadFile(filepath.Join(proc, "cmdline"))
		if err != nil {
			continue // it has ended
		}
		evidence := string(cmdline)
		// One with a copy of our mounts sees those of all pods, and is none of them.
		mounts, _ := os.ReadFile(filepath.Join(proc, "mountinfo"))
		if rootMount(string(mounts)) != root {
			evidence += string(mounts)
		}
		if slices.ContainsFunc(scope.Dirs, func(d string) bool { return strings.Contains(evidence, d+"/") }) {
			s.processes[fmt.Sprintf("%d: %s", pid, strings.ReplaceAll(string(cmdline), "\x00", " "))] = true
		}
	}
	return nil
}

// rootMount is the device and the directory in it that the mounts of a process have at
// their root; empty if it has ended.
func rootMount(mountinfo string) string {
	for line := range strings.Lines(mountinfo) {
		if f := strings.Fields(line); len(f) > 4 && f[4] == "/" {
			return f[2] + " " + f[3]
		}
	}
	return ""
}

// Since lists what is there now and was not there at before. Cgroups count when
// no process is in them, or one of the scope: others are somebody else's, and so are
// those that gantry marked as another's. Those below one of MakeCgroup's are that one's
// business.
func (s Snapshot) Since(before Snapshot) []string {
	var found []string
	add := func(kind string, now, then set) {
		for _, name := range slices.Sorted(maps.Keys(now)) {
			if !then[name] {
				found = append(found, kind+" "+name)
			}
		}
	}
	add("mount", s.mounts, before.mounts)
	add("link", s.links, before.links)
	add("process", s.processes, before.processes)
	add("cgroup", s.ownCgroups(), before.cgroups)
	return found
}

func (s Snapshot) ownCgroups() set {
	own := set{}
	for dir := range s.cgroups {
		if strings.Contains(dir, "/"+namePrefix) || strings.Contains(dir, "/"+slicePrefix) {
			continue
		}
		if owner := cgroupOwner(dir); owner != "" && !slices.ContainsFunc(s.scope.Dirs, func(d string) bool { return strings.HasPrefix(owner, d+"/") }) {
			continue
		}
		pids := cgroupProcs(dir)
		if len(pids) == 0 || slices.ContainsFunc(pids, s.hasProcess) {
			own[dir] = true
		}
	}
	return own
}

func (s Snapshot) hasProcess(pid int) bool {
	prefix := strconv.Itoa(pid) + ": "
	for p := range s.processes {
		if strings.HasPrefix(p, prefix) {
			return true
		}
	}
	return false
}

// CheckLeaks fails the test when, at its end, something of the scope is left
// that was not there at the call, and then clears it away as far as it can.
func CheckLeaks(tb testing.TB, scope LeakScope) {
	tb.Helper()
	before, err := TakeSnapshot(scope)
	if err != nil {
		tb.Fatalf("take snapshot: %v", err)
	}
	tb.Cleanup(func() {
		after, left := Leaks(tb, scope, before)
		if len(left) > 0 {
			tb.Errorf("left behind:\n  %s", strings.Join(left, "\n  "))
			after.clear(before)
		}
	})
}

// Leaks waits until nothing is left since before, at most leakGrace, and
// returns what is.
func Leaks(tb testing.TB, scope LeakScope, before Snapshot) (Snapshot, []string) {
	tb.Helper()
	for deadline := time.Now().Add(leakGrace); ; time.Sleep(100 * time.Millisecond) {
		after, err := TakeSnapshot(scope)
		if err != nil {
			tb.Errorf("take snapshot: %v", err)
			return after, nil
		}
		left := after.Since(before)
		if len(left) == 0 || time.Now().After(deadline) {
			return after, left
		}
	}
}

// clear ends the processes and removes the mounts that are new, so that a
// failed test does not spoil the next. The processes' cgroups go with them.
func (s Snapshot) clear(before Snapshot) {
	own := s.ownCgroups()
	for p := range s.processes {
		pid, _, _ := strings.Cut(p, ":")
		if n, err := strconv.Atoi(pid); err == nil && !before.processes[p] {
			_ = syscall.Kill(n, syscall.SIGKILL)
		}
	}
	for _, m := range slices.Backward(slices.Sorted(maps.Keys(s.mounts))) {
		if !before.mounts[m] {
			_ = syscall.Unmount(m, syscall.MNT_DETACH)
		}
	}
	for link := range s.links {
		if !before.links[link] {
			_ = exec.Command("ip", "link", "del", link).Run()
		}
	}
	for dir := range own {
		if !before.cgroups[dir] {
			_ = removeCgroup(dir)
		}
	}
}
