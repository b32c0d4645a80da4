package monitor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage1/cgroup"
	"github.com/gantry-cri/gantry/stage1/ociruntime/runtimetest"
	"github.com/gantry-cri/gantry/stage1/proc"
)

func TestUnderCrun(t *testing.T) { runtimetest.UnderCrun(t, "^TestContainer") }

// container is a bundle with a monitor to be started.
type container struct {
	*runtimetest.Bundle
	spec    Spec
	started Started
}

func newContainer(t *testing.T, modify func(*specs.Spec), args ...string) *container {
	t.Helper()
	conmon, err := Find("")
	if err != nil {
		t.Skip(err)
	}
	b := runtimetest.New(t, args, modify)
	m := b.Cgroups.Monitor(cgroup.Cgroupfs, b.ID)
	t.Cleanup(func() {
		if err := errors.Join(m.Kill(context.Background()), m.Remove(context.Background())); err != nil {
			t.Error(err)
		}
		if b.Cgroups.Exists(m.Path) {
			t.Errorf("cgroup %s is left", m.Path)
		}
	})
	logs := filepath.Join(b.Dir, "logs")
	if err := os.Mkdir(logs, 0o755); err != nil {
		t.Fatal(err)
	}
	return &container{Bundle: b, spec: Spec{
		ID: b.ID, Name: "test", Conmon: conmon, Runtime: b.Runtime, Bundle: b.Path,
		LogPath: filepath.Join(logs, "0.log"), PIDFile: filepath.Join(b.Dir, "init.pid"),
		MonitorPIDFile: filepath.Join(b.Dir, "monitor.pid"), ExitDir: filepath.Join(b.Dir, "exit"),
		Timeout: 20 * time.Second, Place: m.Place, Kill: m.Kill,
	}}
}

// run creates and starts the container.
func (c *container) run(t *testing.T) {
	t.Helper()
	var err error
	if c.started, err = Start(t.Context(), c.spec); err != nil {
		t.Fatal(err)
	}
	if err := c.Runtime.Start(t.Context(), c.ID); err != nil {
		t.Fatal(err)
	}
}

// exit waits for the exit file.
func (c *container) exit(t *testing.T) Exit {
	t.Helper()
	var e Exit
	eventually(t, "exit file", func() bool {
		var ok bool
		var err error
		if e, ok, err = ReadExit(c.spec.ExitDir, c.ID); err != nil {
			t.Fatal(err)
		}
		return ok
	})
	return e
}

func (c *container) log(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(c.spec.LogPath)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no %s in time", what)
		}
	}
}

func TestContainerExitAndLog(t *testing.T) {
	tests := []struct {
		name, script string
		code         int32
	}{
		{"zero", "echo out; echo err >&2; exit 0", 0},
		{"code", "echo out; echo err >&2; exit 42", 42},
		{"signal", "echo out; echo err >&2; kill -9 $$", 137},
	}
	line := regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}(Z|[+-]\d\d:\d\d) (stdout|stderr) (F|P) (.*)$`)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			// A process 1 cannot kill itself by a signal: the script is its child.
			c := newContainer(t, nil, "/bin/sh", "-c", "sh -c '"+tt.script+"'; exit $?")
			c.run(t)
			if e := c.exit(t); e.Code != tt.code || time.Since(e.Time) > time.Minute {
				t.Fatalf("exit %+v", e)
			}
			got := map[string]string{}
			for l := range strings.Lines(c.log(t)) {
				m := line.FindStringSubmatch(strings.TrimSuffix(l, "\n"))
				if m == nil {
					t.Fatalf("not a line of a CRI log: %q", l)
				}
				got[m[2]+m[3]] += m[4]
			}
			if got["stdoutF"] != "out" || !strings.Contains(got["stderrF"], "err") {
				t.Fatalf("log %q", got)
			}
			if err := proc.Wait(t.Context(), c.started.Monitor); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestContainerProcesses(t *testing.T) {
	c := newContainer(t, nil, "/bin/sleep", "600")
	c.run(t)
	if !proc.Alive(c.started.Init) || !proc.Alive(c.started.Monitor) {
		t.Fatalf("%+v", c.started)
	}
	if _, ok, err := ReadExit(c.spec.ExitDir, c.ID); ok || err != nil {
		t.Fatalf("exit of a running container: %v, %v", ok, err)
	}
	m := c.Cgroups.Monitor(cgroup.Cgroupfs, c.ID)
	pids, err := c.Cgroups.Procs(m.Path)
	if err != nil || len(pids) != 1 || pids[0] != c.started.Monitor.PID {
		t.Fatalf("the monitor's cgroup holds %v, %v", pids, err)
	}
	pids, err = c.Cgroups.Procs(c.Cgroup)
	if err != nil || len(pids) != 1 || pids[0] != c.started.Init.PID {
		t.Fatalf("the container's cgroup holds %v, %v", pids, err)
	}
	st, err := c.Runtime.State(t.Context(), c.ID)
	if err != nil || st.Status != specs.StateRunning || st.Pid != c.started.Init.PID {
		t.Fatalf("%+v, %v", st, err)
	}
	quota := int64(50000)
	if err := c.Runtime.Update(t.Context(), c.ID, &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: &quota}}); err != nil {
		t.Fatal(err)
	}
	if err := c.Runtime.Kill(t.Context(), c.ID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if e := c.exit(t); e.Code != 137 {
		t.Fatalf("exit %+v", e)
	}
	for range 2 {
		if err := c.Runtime.Delete(t.Context(), c.ID); err != nil {
			t.Fatal(err)
		}
	}
	for name, err := range map[string]error{
		"start": c.Runtime.Start(t.Context(), c.ID),
		"kill":  c.Runtime.Kill(t.Context(), c.ID, unix.SIGKILL),
	} {
		if !errors.Is(err, errdefs.ErrNotFound) {
			t.Errorf("%s of what is not there: %v", name, err)
		}
	}
}

func TestContainerBadCommand(t *testing.T) {
	c := newContainer(t, nil, "/no/such/command")
	_, err := Start(t.Context(), c.spec)
	if err == nil { // runc looks for it in create, another runtime may in start
		err = c.Runtime.Start(t.Context(), c.ID)
	}
	if err == nil || !strings.Contains(err.Error(), "/no/such/command") || !strings.Contains(err.Error(), "no such file") &&
		!strings.Contains(err.Error(), "not found") && !strings.Contains(err.Error(), "No such file") {
		t.Fatalf("the reason is not in %v", err)
	}
	t.Log(err)
}

func TestContainerBadSpec(t *testing.T) {
	c := newContainer(t, func(s *specs.Spec) { s.Root.Path = "nowhere" }, "/bin/true")
	_, err := Start(t.Context(), c.spec)
	if err == nil || !strings.Contains(err.Error(), "nowhere") {
		t.Fatalf("the reason is not in %v", err)
	}
	t.Log(err)
}

func TestRuntimeMissing(t *testing.T) {
	c := newContainer(t, nil, "/bin/true")
	r := *c.Runtime
	r.Path = "/no/such/runtime"
	c.spec.Runtime = &r
	_, err := Start(t.Context(), c.spec)
	if err == nil || !strings.Contains(err.Error(), "/no/such/runtime") {
		t.Fatalf("the reason is not in %v", err)
	}
	t.Log(err)
}

// conmon looks for the runtime before it waits to be let go, and may be gone by the
// time that it is to be placed.
func TestRuntimeMissingBeforePlaced(t *testing.T) {
	c := newContainer(t, nil, "/bin/true")
	r := *c.Runtime
	r.Path = "/no/such/runtime"
	c.spec.Runtime = &r
	c.spec.Place = func(_ context.Context, pid int) error {
		for unix.Kill(pid, 0) == nil {
			time.Sleep(time.Millisecond)
		}
		return fmt.Errorf("move process %d: %w", pid, errdefs.ErrNotFound)
	}
	_, err := Start(t.Context(), c.spec)
	if err == nil || !strings.Contains(err.Error(), "/no/such/runtime") {
		t.Fatalf("the reason is not in %v", err)
	}
	t.Log(err)
}

// A runtime that fails and says nothing must not look like one that hangs.
func TestRuntimeMute(t *testing.T) {
	c := newContainer(t, nil, "/bin/true")
	r := *c.Runtime
	r.Path = "/bin/false"
	c.spec.Runtime = &r
	_, err := Start(t.Context(), c.spec)
	if err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
	t.Log(err)
}

func TestFind(t *testing.T) {
	if _, err := Find("/no/such/conmon"); !errors.Is(err, errdefs.ErrUnsupported) || !strings.Contains(err.Error(), "/no/such/conmon") {
		t.Fatalf("got %v", err)
	}
}

// hang is a runtime that never answers, with a child that holds its streams.
func TestRuntimeHangs(t *testing.T) {
	c := newContainer(t, nil, "/bin/true")
	path := filepath.Join(c.Dir, "hang")
	if err := os.WriteFile(path, []byte("#!/bin/sh\nsleep 987654 &\nwait\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	r := *c.Runtime
	r.Path = path
	c.spec.Runtime, c.spec.Timeout = &r, 500*time.Millisecond
	begin := time.Now()
	_, err := Start(t.Context(), c.spec)
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) > 5*time.Second {
		t.Fatalf("after %v: %v", time.Since(begin), err)
	}
	if out, _ := exec.Command("pgrep", "-f", "sleep 987654").Output(); len(out) > 0 {
		t.Fatalf("left: %s", out)
	}
}

// A conmon that is stopped in its tracks, before it forks and after.
func TestMonitorStopped(t *testing.T) {
	for _, name := range []string{"before the fork", "after the fork"} {
		t.Run(name, func(t *testing.T) {
			c := newContainer(t, nil, "/bin/true")
			c.spec.Timeout = 700 * time.Millisecond
			place := c.spec.Place
			if name == "before the fork" {
				c.spec.Place = func(ctx context.Context, pid int) error {
					return errors.Join(place(ctx, pid), unix.Kill(pid, unix.SIGSTOP))
				}
			} else {
				path := filepath.Join(c.Dir, "stop")
				if err := os.WriteFile(path, []byte("#!/bin/sh\nkill -STOP $PPID\nsleep 987655\n"), 0o700); err != nil {
					t.Fatal(err)
				}
				r := *c.Runtime
				r.Path = path
				c.spec.Runtime = &r
			}
			begin := time.Now()
			_, err := Start(t.Context(), c.spec)
			if !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) > 5*time.Second {
				t.Fatalf("after %v: %v", time.Since(begin), err)
			}
		})
	}
}

func TestContainerReopenLog(t *testing.T) {
	c := newContainer(t, nil, "/bin/sh", "-c", "i=0; while true; do echo line-$i; i=$((i+1)); usleep 2000; done")
	c.run(t)
	spec := ReopenSpec{Control: c.started.Control, LogPath: c.spec.LogPath, Monitor: c.started.Monitor}
	eventually(t, "log", func() bool { return strings.Contains(c.log(t), "line-5") })
	// Not rotated: nothing may be lost.
	if err := ReopenLog(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	var whole string
	for range 3 {
		old := c.spec.LogPath + ".old"
		if err := os.Rename(c.spec.LogPath, old); err != nil {
			t.Fatal(err)
		}
		if err := ReopenLog(t.Context(), spec); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(c.spec.LogPath); err != nil {
			t.Fatal("no new log when the call returned")
		}
		b, err := os.ReadFile(old)
		if err != nil {
			t.Fatal(err)
		}
		whole += string(b)
		eventually(t, "lines in the new log", func() bool { return len(c.log(t)) > 0 })
	}
	if err := proc.Signal(c.started.Init, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	c.exit(t)
	whole += c.log(t)
	next := 0
	for l := range strings.Lines(whole) {
		if want := "line-" + itoa(next); !strings.HasSuffix(l, " "+want+"\n") {
			t.Fatalf("want %s, got %q", want, l)
		}
		next++
	}
	if err := ReopenLog(t.Context(), spec); !errors.Is(err, errdefs.ErrState) {
		eventually(t, "end of the monitor", func() bool { return !proc.Exists(c.started.Monitor) })
		if err := ReopenLog(t.Context(), spec); !errors.Is(err, errdefs.ErrState) {
			t.Fatalf("reopen without a monitor: %v", err)
		}
	}
}

func itoa(n int) string { return strings.TrimSpace(string(appendInt(n))) }

func appendInt(n int) []byte {
	if n < 10 {
		return []byte{byte('0' + n)}
	}
	return append(appendInt(n/10), byte('0'+n%10))
}

// buffer is a bytes.Buffer for two goroutines.
type buffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func TestContainerAttachStdinOnce(t *testing.T) {
	c := newContainer(t, nil, "/bin/sh")
	c.spec.Stdin, c.spec.StdinOnce = true, true
	c.run(t)
	// A watcher that leaves must not end the input.
	ctx, cancel := context.WithCancel(t.Context())
	watcher := make(chan error, 1)
	go func() { watcher <- Attach(ctx, c.started.Attach, AttachIO{Stdout: io.Discard, StdinOnce: true}) }()
	time.Sleep(50 * time.Millisecond)
	cancel()
	if err := <-watcher; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	in, w := io.Pipe()
	var out, errs buffer
	done := make(chan error, 1)
	go func() {
		done <- Attach(t.Context(), c.started.Attach, AttachIO{Stdin: in, Stdout: &out, Stderr: &errs, StdinOnce: true})
	}()
	if _, err := io.WriteString(w, "echo -n hello; echo -n oops >&2\n"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "output", func() bool { return out.String() == "hello" && errs.String() == "oops" })
	_ = w.Close() // half-close: the shell ends, and so does attach
	select {
	case err := <-done:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("attach goes on after the end of the input")
	}
	if e := c.exit(t); e.Code != 0 || out.String() != "hello" {
		t.Fatalf("%+v %q", e, out.String())
	}
}

func TestContainerAttachAgain(t *testing.T) {
	c := newContainer(t, nil, "/bin/cat")
	c.spec.Stdin = true
	c.run(t)
	for _, word := range []string{"one\n", "two\n"} {
		in, w := io.Pipe()
		var out buffer
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- Attach(ctx, c.started.Attach, AttachIO{Stdin: in, Stdout: &out}) }()
		if _, err := io.WriteString(w, word); err != nil {
			t.Fatal(err)
		}
		eventually(t, "echo", func() bool { return out.String() == word })
		_ = w.Close()
		cancel()
		<-done
	}
	if !proc.Alive(c.started.Init) {
		t.Fatal("the container ended with its client")
	}
}

// stuck is a client that takes nothing until it is let go.
type stuck struct{ free chan struct{} }

func (s stuck) Write(p []byte) (int, error) {
	<-s.free
	return 0, io.ErrClosedPipe
}

func TestContainerAttachStalls(t *testing.T) {
	c := newContainer(t, nil, "/bin/sh", "-c", "yes 0123456789012345678901234567890123456789 | head -n 300000; echo end-of-it")
	c.spec.Timeout = 20 * time.Second
	var err error
	if c.started, err = Start(t.Context(), c.spec); err != nil {
		t.Fatal(err)
	}
	client := stuck{make(chan struct{})}
	defer close(client.free)
	done := make(chan error, 1)
	go func() { done <- Attach(t.Context(), c.started.Attach, AttachIO{Stdout: client}) }()
	time.Sleep(50 * time.Millisecond)
	if err := c.Runtime.Start(t.Context(), c.ID); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, errStalled) {
		t.Fatalf("got %v", err)
	}
	c.exit(t)
	if !strings.HasSuffix(c.log(t), " end-of-it\n") {
		t.Fatal("the log is not whole")
	}
}

func TestContainerTerminal(t *testing.T) {
	c := newContainer(t, func(s *specs.Spec) { s.Process.Terminal = true }, "/bin/sh", "-c",
		"read go; stty size; echo done; sleep 600")
	c.spec.Terminal, c.spec.Stdin = true, true
	c.run(t)
	in, w := io.Pipe()
	defer w.Close() // a test's pipe
	var out buffer
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	sizes := make(chan specs.Box, 2)
	go func() {
		_ = Attach(ctx, c.started.Attach, AttachIO{Stdin: in, Stdout: &out, Resize: sizes, Control: c.started.Control})
	}()
	sizes <- specs.Box{Height: 24, Width: 80}
	sizes <- specs.Box{Height: 33, Width: 77}
	time.Sleep(200 * time.Millisecond)
	if _, err := io.WriteString(w, "go\n"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "size", func() bool { return strings.Contains(out.String(), "33 77") && strings.Contains(out.String(), "done") })
	// A rotation right after a resize must not be lost.
	if err := os.Rename(c.spec.LogPath, c.spec.LogPath+".old"); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if err := Resize(t.Context(), c.started.Control, specs.Box{Height: 10, Width: 20}); err != nil {
			t.Fatal(err)
		}
	}
	if err := ReopenLog(t.Context(), ReopenSpec{c.started.Control, c.spec.LogPath, c.started.Monitor}); err != nil {
		t.Fatal(err)
	}
}

// Sockets have short addresses, pod directories have long names.
func TestContainerLongPath(t *testing.T) {
	c := newContainer(t, nil, "/bin/cat")
	long := filepath.Join(c.Dir, strings.Repeat("long", 30), strings.Repeat("path", 30))
	if err := os.MkdirAll(filepath.Dir(long), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(c.Path, long); err != nil {
		t.Fatal(err)
	}
	c.spec.Bundle, c.spec.Stdin, c.spec.StdinOnce = long, true, true
	c.run(t)
	var out buffer
	if err := Attach(t.Context(), c.started.Attach, AttachIO{Stdin: strings.NewReader("far away"), Stdout: &out, StdinOnce: true}); err != nil {
		t.Fatal(err)
	}
	if out.String() != "far away" {
		t.Fatalf("got %q", out.String())
	}
}

func TestReadExit(t *testing.T) {
	tests := []struct {
		name, content string
		code          int32
		ok            bool
	}{
		{"code", "137", 137, true}, {"zero", "0\n", 0, true}, {"empty", "", 0, false}, {"torn", "x", 0, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "id"), []byte(tt.content), 0o600); err != nil {
				t.Fatal(err)
			}
			e, ok, err := ReadExit(dir, "id")
			if err != nil || ok != tt.ok || e.Code != tt.code {
				t.Fatalf("got %+v %v %v", e, ok, err)
			}
		})
	}
	if _, ok, err := ReadExit(t.TempDir(), "id"); ok || err != nil {
		t.Fatalf("missing: %v %v", ok, err)
	}
}
