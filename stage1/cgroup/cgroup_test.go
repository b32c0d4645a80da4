package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// newGroup returns the node's hierarchies and the path of a group of the test's
// own, and fails the test if something of it is left at its end.
func newGroup(t *testing.T) (*Hierarchy, string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	h, err := Detect()
	if err != nil {
		t.Skip(err)
	}
	path := fmt.Sprintf("/gantry-test-%d/%s", os.Getpid(), strings.ToLower(t.Name()))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := errors.Join(h.Kill(ctx, path), h.Remove(ctx, path)); err != nil {
			t.Error(err)
		}
		h.RemoveEmpty(filepath.Dir(path))
		if h.Exists(filepath.Dir(path)) {
			t.Errorf("%s is left", filepath.Dir(path))
		}
	})
	return h, path
}

// run starts a shell command in the group.
func run(t *testing.T, h *Hierarchy, path, script string) *exec.Cmd {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", "read go; "+script)
	cmd.Stdin = r
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = r.Close()
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	if err := h.AddProcess(path, cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteString("go\n"); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	return cmd
}

func TestLife(t *testing.T) {
	h, path := newGroup(t)
	for range 2 { // twice: idempotent
		if err := h.Create(path + "/child"); err != nil {
			t.Fatal(err)
		}
	}
	if alive, err := h.Populated(path); alive || err != nil {
		t.Fatalf("a new group: %v, %v", alive, err)
	}
	cmd := run(t, h, path+"/child", "sleep 60")
	if alive, err := h.Populated(path); !alive || err != nil {
		t.Fatalf("a group with a process below: %v, %v", alive, err)
	}
	pids, err := h.Procs(path)
	if err != nil || len(pids) == 0 || pids[0] != cmd.Process.Pid {
		t.Fatalf("processes %v, %v", pids, err)
	}
	if got, err := h.Of(cmd.Process.Pid); h.Mode() == V2 && (err != nil || got != path+"/child") {
		t.Errorf("group of the process: %s, %v", got, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := h.Remove(ctx, path); err == nil {
		t.Fatal("a group with processes was removed")
	}
	if err := h.Kill(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Fatal("the process was not killed")
	}
	for range 2 {
		if err := h.Remove(t.Context(), path); err != nil {
			t.Fatal(err)
		}
	}
	if h.Exists(path) {
		t.Fatal("the group is still there")
	}
	if err := h.Kill(t.Context(), path); err != nil {
		t.Fatalf("kill of nothing: %v", err)
	}
	if _, err := h.Stats(path); !errors.Is(err, errdefs.ErrNotFound) {
		t.Fatalf("statistics of nothing: %v", err)
	}
	if _, err := h.OOMKills(path); !errors.Is(err, errdefs.ErrNotFound) {
		t.Fatalf("oom kills of nothing: %v", err)
	}
	if err := h.AddProcess(path, os.Getpid()); !errors.Is(err, errdefs.ErrNotFound) {
		t.Fatalf("add to nothing: %v", err)
	}
}

func TestForkBomb(t *testing.T) {
	h, path := newGroup(t)
	if err := h.Create(path); err != nil {
		t.Fatal(err)
	}
	if dir, _ := h.dir("pids", path); dir != "" {
		if err := write(filepath.Join(dir, "pids.max"), "200"); err != nil {
			t.Fatal(err)
		}
	}
	cmd := run(t, h, path, `b() { b & b & }; trap "" TERM INT HUP; b 2>/dev/null; sleep 60`)
	deadline := time.Now().Add(time.Minute)
	for {
		pids, err := h.Procs(path)
		if err != nil {
			t.Fatal(err)
		}
		if len(pids) > 50 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the bomb made %d processes only", len(pids))
		}
		time.Sleep(5 * time.Millisecond)
	}
	if err := h.Kill(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
}

// A group that was frozen, by itself or in a child, dies all the same.
func TestKillFrozen(t *testing.T) {
	h, path := newGroup(t)
	if err := h.Create(path + "/child"); err != nil {
		t.Fatal(err)
	}
	cmd := run(t, h, path+"/child", "sleep 60")
	file, value := "freezer.state", "FROZEN"
	dir, v2 := h.dir("freezer", path+"/child")
	if v2 {
		file, value = "cgroup.freeze", "1"
	}
	if err := write(filepath.Join(dir, file), value); err != nil {
		t.Skip(err)
	}
	if err := h.Kill(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
}

func TestKillRefusesItself(t *testing.T) {
	h, path := newGroup(t)
	for _, p := range []string{"", "/", "/a/..", "a", "/a/"} {
		if err := h.Kill(t.Context(), p); !errors.Is(err, errdefs.ErrInvalid) {
			t.Errorf("kill of %q: %v", p, err)
		}
		if err := h.Remove(t.Context(), p); !errors.Is(err, errdefs.ErrInvalid) {
			t.Errorf("remove of %q: %v", p, err)
		}
	}
	_ = path
}

func TestOOMKills(t *testing.T) {
	h, path := newGroup(t)
	if err := h.Create(path + "/child"); err != nil {
		t.Fatal(err)
	}
	dir, v2 := h.dir("memory", path)
	if dir == "" {
		t.Skip("no memory controller")
	}
	file := "memory.limit_in_bytes"
	if v2 {
		file = "memory.max"
	}
	if err := write(filepath.Join(dir, file), "15728640"); err != nil {
		t.Skip(err)
	}
	s, err := h.Stats(path)
	if err != nil || s.Memory.Limit != 15728640 {
		t.Fatalf("%+v, %v", s, err)
	}
	if n, err := h.OOMKills(path); n != 0 || err != nil {
		t.Fatalf("before: %d, %v", n, err)
	}
	cmd := run(t, h, path+"/child", "dd if=/dev/zero of=/dev/null bs=20M count=1 2>/dev/null")
	_ = cmd.Wait()
	if n, err := h.OOMKills(path); n != 1 || err != nil {
		t.Fatalf("after: %d, %v", n, err)
	}
}

func TestStats(t *testing.T) {
	h, path := newGroup(t)
	if err := h.Create(path); err != nil {
		t.Fatal(err)
	}
	run(t, h, path, `a=$(dd if=/dev/zero bs=1M count=8 2>/dev/null | tr "\0" x); i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; sleep 60`)
	deadline := time.Now().Add(time.Minute)
	var s Stats
	for time.Now().Before(deadline) {
		var err error
		if s, err = h.Stats(path); err != nil {
			t.Fatal(err)
		}
		if s.Memory.RSS > 8<<20 && s.CPU.UsageNano > 10e6 && s.PIDs.Current == 2 {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	m := s.Memory
	if s.Timestamp.IsZero() || s.CPU.UsageNano < 10e6 || s.PIDs.Current != 2 || m.RSS < 8<<20 ||
		m.WorkingSet == 0 || m.WorkingSet > m.Usage || m.PageFaults == 0 || m.Limit != 0 || m.Available != 0 {
		t.Fatalf("%+v", s)
	}
}

func TestOwner(t *testing.T) {
	h, path := newGroup(t)
	want := func(when, want string) {
		t.Helper()
		if got, err := h.Owner(path); got != want || err != nil {
			t.Errorf("%s: %q, %v; want %q", when, got, err, want)
		}
	}
	want("not there", "")
	if err := h.SetOwner(path, "/run/gantry"); err != nil { // as of one that another has just removed
		t.Error(err)
	}
	if err := h.Create(path); err != nil {
		t.Fatal(err)
	}
	want("made", "")
	if err := h.SetOwner(path, "/run/gantry"); err != nil {
		t.Fatal(err)
	}
	want("marked", "/run/gantry")
	if _, err := h.Owner("x"); !errors.Is(err, errdefs.ErrInvalid) {
		t.Errorf("not a path: %v", err)
	}
}

func TestMonitorGroup(t *testing.T) {
	h, path := newGroup(t)
	m := h.Monitor(Cgroupfs, filepath.Base(path))
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := m.Place(t.Context(), cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if alive, err := h.Populated(m.Path); !alive || err != nil {
		t.Fatalf("%v, %v", alive, err)
	}
	if err := m.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	for range 2 {
		if err := m.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if h.Exists(m.Path) {
		t.Fatal("the monitor's group is left")
	}
}

// systemd keeps an empty slice until it is told to stop it.
func TestStopSlice(t *testing.T) {
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		t.Skip("needs systemd")
	}
	h, err := Detect()
	if err != nil {
		t.Fatal(err)
	}
	unit := fmt.Sprintf("gantrytest%d.slice", os.Getpid())
	if out, err := exec.Command("systemctl", "start", unit).CombinedOutput(); err != nil {
		t.Fatalf("start %s: %v\n%s", unit, err, out)
	}
	if !h.Exists("/" + unit) {
		t.Fatalf("%s has no group", unit)
	}
	for range 2 { // twice: idempotent
		if err := h.StopSlice(t.Context(), "/"+unit); err != nil {
			t.Fatal(err)
		}
	}
	if h.Exists("/" + unit) {
		t.Errorf("the group of %s is left", unit)
	}
	if out, err := exec.Command("systemctl", "list-units", "--all", "--plain", "--no-legend", unit).Output(); err != nil || len(out) > 0 {
		t.Errorf("systemd still has %s, %v", out, err)
	}
}

// Detecting without systemd must say so.
func TestSystemdMissing(t *testing.T) {
	if _, err := os.Stat("/run/systemd/system"); err == nil {
		t.Skip("systemd runs here")
	}
	err := (&Hierarchy{}).Monitor(Systemd, "x").Place(t.Context(), os.Getpid())
	if !errors.Is(err, errdefs.ErrUnsupported) {
		t.Fatal(err)
	}
}
