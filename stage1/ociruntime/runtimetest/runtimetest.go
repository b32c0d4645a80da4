// Package runtimetest makes small real containers for tests: a root file system
// with Debian's static busybox, an OCI configuration beside it, and a check that
// nothing of them is left when the test ends.
package runtimetest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/gantry-cri/gantry/stage1/cgroup"
	"github.com/gantry-cri/gantry/stage1/ociruntime"
	"github.com/gantry-cri/gantry/stage1/proc"
)

// underCrun names the variable by which UnderCrun tells its child to use crun.
const underCrun = "GANTRY_TEST_CRUN"

// applets are the busybox commands that the root file system has.
var applets = []string{
	"sh", "sleep", "cat", "echo", "ps", "true", "false", "id", "yes", "dd", "stty", "kill", "head", "seq",
	"touch", "rm", "setsid", "printf", "tr", "pgrep", "ls", "trap", "usleep", "env",
}

var serial atomic.Int64

// Bundle is an OCI bundle that no runtime knows yet.
type Bundle struct {
	// ID is 64 hex digits, as CRI's ids.
	ID string
	// Dir is a directory of the test's; Path is the bundle in it.
	Dir, Path string
	Runtime   *ociruntime.Client
	Cgroups   *cgroup.Hierarchy
	// Cgroup is the container's path, below a parent of the test's own.
	Cgroup string
	parent string
}

// New makes a bundle whose process is args, changed by modify when that is not
// nil. The test is skipped without root, busybox or a runtime, and fails if a
// process, a mount or a cgroup of the container is left at its end.
func New(t *testing.T, args []string, modify func(*specs.Spec)) *Bundle {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	h, err := cgroup.Detect()
	if err != nil {
		t.Skip(err)
	}
	configured := ""
	if os.Getenv(underCrun) != "" {
		configured = "crun"
	}
	r, err := ociruntime.Choose(t.Context(), configured, h)
	if err != nil {
		t.Skip(err)
	}
	n := serial.Add(1)
	dir := t.TempDir()
	b := &Bundle{
		ID:      fmt.Sprintf("%064x", uint64(os.Getpid())<<32+uint64(n)),
		Dir:     dir,
		Path:    filepath.Join(dir, "bundle"),
		Runtime: &ociruntime.Client{Runtime: r, Root: filepath.Join(dir, "runtime")},
		Cgroups: h,
		parent:  fmt.Sprintf("/gantry-test-%d-%d", os.Getpid(), n),
	}
	paths, err := cgroup.ContainerPath(cgroup.Cgroupfs, b.parent, b.ID)
	if err != nil {
		t.Fatal(err)
	}
	b.Cgroup = paths.Path
	t.Cleanup(func() { b.checkLeft(t) })
	b.layRootfs(t)
	s := b.spec(args, paths.OCI)
	if modify != nil {
		modify(s)
	}
	config, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.Path, "config.json"), config, 0o600); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *Bundle) layRootfs(t *testing.T) {
	t.Helper()
	bin := filepath.Join(b.Path, "rootfs", "bin")
	for _, d := range []string{bin, filepath.Join(b.Path, "rootfs", "proc"), filepath.Join(b.Path, "rootfs", "dev"), filepath.Join(b.Path, "rootfs", "tmp")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	src, err := os.Open("/usr/bin/busybox")
	if err != nil {
		t.Skip("needs the package busybox-static: ", err)
	}
	dst, err := os.OpenFile(filepath.Join(bin, "busybox"), os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(dst, src)
	if err := errors.Join(err, dst.Close(), src.Close()); err != nil {
		t.Fatal(err)
	}
	for _, a := range applets {
		if err := os.Symlink("busybox", filepath.Join(bin, a)); err != nil {
			t.Fatal(err)
		}
	}
}

// Process is a process for the container, as package exec wants it.
func Process(args ...string) *specs.Process {
	caps := []string{"CAP_KILL", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_SETUID", "CAP_SETGID"}
	return &specs.Process{
		Args: args, Cwd: "/", Env: []string{"PATH=/bin", "HOME=/"},
		Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
	}
}

func (b *Bundle) spec(args []string, cgroupsPath string) *specs.Spec {
	return &specs.Spec{
		Version:  "1.0.2",
		Process:  Process(args...),
		Root:     &specs.Root{Path: "rootfs"},
		Hostname: "test",
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"mode=755"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"newinstance", "ptmxmode=0666", "mode=0620"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: cgroupsPath,
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace},
				{Type: specs.MountNamespace},
				{Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace},
				{Type: specs.NetworkNamespace},
			},
			Resources: &specs.LinuxResources{},
		},
	}
}

// Undo ends and removes all of the container. It is idempotent.
func (b *Bundle) Undo(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := errors.Join(
		b.Cgroups.Kill(ctx, b.Cgroup), b.Runtime.Delete(ctx, b.ID), b.Cgroups.Remove(ctx, b.parent),
	); err != nil {
		t.Error(err)
	}
}

// checkLeft fails the test for whatever of it is left.
func (b *Bundle) checkLeft(t *testing.T) {
	b.Undo(t)
	if b.Cgroups.Exists(b.parent) {
		t.Errorf("cgroup %s is left", b.parent)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Error(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, b.Dir) {
			t.Errorf("mount is left: %s", line)
		}
	}
	deadline := time.Now().Add(3 * time.Second)
	for {
		left := processes(b.Dir, b.ID)
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("processes are left: %v", left)
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// processes are those whose command line names one of the words; zombies have none.
func processes(words ...string) []string {
	var found []string
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		cmdline, _ := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		for _, w := range words {
			if !strings.Contains(string(cmdline), w) {
				continue
			}
			if p, err := proc.Read(pid); err == nil && proc.Alive(p) {
				found = append(found, fmt.Sprintf("%d %q", pid, cmdline))
			}
			break
		}
	}
	return found
}

// UnderCrun runs this test binary's tests that pattern matches again, with crun.
// Where a hybrid hierarchy makes crun refuse, the child lives in a mount
// namespace of its own without the v2 mount.
func UnderCrun(t *testing.T, pattern string) {
	t.Helper()
	if os.Getenv(underCrun) != "" {
		t.Skip("this is the child")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if _, err := exec.LookPath("crun"); err != nil {
		t.Skip(err)
	}
	h, err := cgroup.Detect()
	if err != nil {
		t.Skip(err)
	}
	script := `exec "$0" "$@"`
	if h.Mode() == cgroup.Hybrid {
		script = "umount /sys/fs/cgroup/unified && " + script
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("unshare", "-m", "sh", "-c", script, self, "-test.run", pattern, "-test.v", "-test.timeout", "4m")
	cmd.Env = append(os.Environ(), underCrun+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if !strings.Contains(string(out), "--- PASS") {
		t.Fatalf("nothing was run:\n%s", out)
	}
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, "--- ") {
			t.Log(strings.TrimSpace(line))
		}
	}
}
