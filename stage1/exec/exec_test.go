package exec

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage1/ociruntime/runtimetest"
)

func TestUnderCrun(t *testing.T) { runtimetest.UnderCrun(t, "^TestExec") }

// newContainer runs a container without a monitor: nothing here needs one.
func newContainer(t *testing.T, args ...string) *runtimetest.Bundle {
	t.Helper()
	b := runtimetest.New(t, args, nil)
	cmd := osexec.Command(b.Runtime.Path, append(b.Runtime.Args(), "run", "--detach", "--bundle", b.Path, b.ID)...)
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	return b
}

func spec(b *runtimetest.Bundle, args ...string) Spec {
	return Spec{
		Runtime: b.Runtime, ID: b.ID, Process: runtimetest.Process(args...), Dir: b.Dir,
		Cgroups: b.Cgroups, Cgroup: b.Cgroup,
	}
}

// clean fails unless the container has its first processes alone and no leaf or file is left.
func clean(t *testing.T, b *runtimetest.Bundle, processes int) {
	t.Helper()
	pids, err := b.Cgroups.Procs(b.Cgroup)
	if err != nil || len(pids) != processes {
		t.Errorf("the container has the processes %v, want %d: %v", pids, processes, err)
	}
	for _, pattern := range []string{"/sys/fs/cgroup/*" + b.Cgroup + "/gantry-exec-*", b.Dir + "/exec-*"} {
		if left, _ := filepath.Glob(pattern); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	}
}

func TestExecSync(t *testing.T) {
	b := newContainer(t, "/bin/sleep", "600")
	tests := []struct {
		name           string
		args           []string
		code           int32
		stdout, stderr string
	}{
		{"output", []string{"/bin/sh", "-c", "echo out; echo err >&2; exit 3"}, 3, "out\n", "err\n"},
		{"quiet", []string{"true"}, 0, "", ""},
		{"killed", []string{"/bin/sh", "-c", "kill -9 $$"}, 137, "", ""},
		{"255 is a code", []string{"/bin/sh", "-c", "exit 255"}, 255, "", ""},
		{"no input", []string{"/bin/cat"}, 0, "", ""},
		{"no descriptors of ours", []string{"/bin/sh", "-c", "cd /proc/$$/fd; echo *"}, 0, "0 1 2 3\n", ""}, // the last is of the directory
		{"environment", []string{"/bin/sh", "-c", "echo $HOME"}, 0, "/\n", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, err := Sync(t.Context(), spec(b, tt.args...))
			if err != nil || r.ExitCode != tt.code || string(r.Stdout) != tt.stdout || string(r.Stderr) != tt.stderr {
				t.Fatalf("got %d %q %q %v, %v", r.ExitCode, r.Stdout, r.Stderr, r.Truncated, err)
			}
			clean(t, b, 1)
		})
	}
}

func TestExecSyncErrors(t *testing.T) {
	b := newContainer(t, "/bin/sleep", "600")
	if err := os.WriteFile(filepath.Join(b.Path, "rootfs", "tmp", "plain"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"/no/such/command", "nosuchcommand", "/tmp/plain"} {
		_, err := Sync(t.Context(), spec(b, name))
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
		t.Log(err)
		clean(t, b, 1)
	}
	s := spec(b, "/bin/true")
	s.ID = "0"
	if _, err := Sync(t.Context(), s); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("no such container: %v", err)
	}
	if _, err := Sync(t.Context(), spec(b)); !errors.Is(err, errdefs.ErrInvalid) {
		t.Errorf("no command: %v", err)
	}
}

// The command, its children and their children are in the leaf, and the leaf is
// in the container's cgroup wherever that is: no limit is escaped.
func TestExecCgroup(t *testing.T) {
	b := newContainer(t, "/bin/sleep", "600")
	r, err := Sync(t.Context(), spec(b, "/bin/sh", "-c", "cat /proc/self/cgroup; sh -c 'cat /proc/self/cgroup'"))
	if err != nil {
		t.Fatal(err)
	}
	leaves := 0
	for line := range strings.Lines(string(r.Stdout)) {
		path := strings.TrimSpace(line[strings.LastIndex(line, ":")+1:])
		if strings.HasPrefix(line, "0::") && path == "/" {
			continue // the v2 part of a hybrid, which crun's tests have unmounted
		}
		if !strings.HasPrefix(path, b.Cgroup) {
			t.Errorf("outside of the container: %s", line)
		}
		if strings.HasPrefix(path, b.Cgroup+"/gantry-exec-") {
			leaves++
		}
	}
	if leaves < 2 {
		t.Errorf("not in the leaf:\n%s", r.Stdout)
	}
	clean(t, b, 1)
}

func TestExecTimeout(t *testing.T) {
	b := newContainer(t, "/bin/sh", "-c", "while true; do sleep 1; done") // a shell reaps orphans
	tests := []struct {
		name string
		args []string
	}{
		{"one process", []string{"/bin/sleep", "4321"}},
		{"that ignores signals", []string{"/bin/sh", "-c", "trap '' TERM INT HUP; sleep 4321"}},
		{"with children", []string{"/bin/sh", "-c", "sleep 4321 & sleep 4321"}},
		{"with orphans in a session of their own", []string{"/bin/sh", "-c", "(setsid sh -c 'sleep 4321 & sleep 4321' &) ; sleep 4321"}},
		{"that writes", []string{"/bin/sh", "-c", "yes & yes"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := spec(b, tt.args...)
			s.Timeout = 700 * time.Millisecond
			begin := time.Now()
			_, err := Sync(t.Context(), s)
			took := time.Since(begin)
			var timeout *TimeoutError
			if !errors.Is(err, context.DeadlineExceeded) || !errors.As(err, &timeout) || took > 4*time.Second {
				t.Fatalf("after %v: %v", took, err)
			}
			r, err := Sync(t.Context(), spec(b, "/bin/sh", "-c", "ps -o pid,stat,args | grep -v grep | grep 4321 || true"))
			if err != nil || len(r.Stdout) > 0 {
				t.Fatalf("left, or not reaped: %q, %v", r.Stdout, err)
			}
			clean(t, b, 2)
		})
	}
}

// The deadline may pass at any moment of the runtime's own start.
func TestExecTimeoutEarly(t *testing.T) {
	b := newContainer(t, "/bin/sleep", "600")
	for _, d := range []time.Duration{time.Millisecond, 5 * time.Millisecond, 10 * time.Millisecond, 20 * time.Millisecond, 30 * time.Millisecond, 40 * time.Millisecond, 60 * time.Millisecond, 100 * time.Millisecond} {
		s := spec(b, "/bin/sh", "-c", "sleep 4321 & sleep 4321")
		s.Timeout = d
		begin := time.Now()
		if _, err := Sync(t.Context(), s); !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) > 5*time.Second {
			t.Fatalf("%v after %v: %v", d, time.Since(begin), err)
		}
		clean(t, b, 1)
	}
}

func TestExecCancel(t *testing.T) {
	b := newContainer(t, "/bin/sleep", "600")
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(300*time.Millisecond, cancel)
	_, err := Sync(ctx, spec(b, "/bin/sleep", "4321"))
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	clean(t, b, 1)
}

// A child in the background holds the output and lives long: nobody waits for it.
func TestExecBackground(t *testing.T) {
	b := newContainer(t, "/bin/sh", "-c", "while true; do sleep 1; done")
	for _, script := range []string{"echo hi; sleep 600 & exit 5", "echo hi; setsid sleep 600 & usleep 100000; exit 5", "echo hi; setsid sleep 600 >/dev/null 2>&1 & exit 5"} {
		begin := time.Now()
		r, err := Sync(t.Context(), spec(b, "/bin/sh", "-c", script))
		if err != nil || r.ExitCode != 5 || string(r.Stdout) != "hi\n" || time.Since(begin) > 3*time.Second {
			t.Fatalf("%s: after %v: %d %q %v", script, time.Since(begin), r.ExitCode, r.Stdout, err)
		}
		clean(t, b, 2)
	}
}

func TestExecOutputCapped(t *testing.T) {
	b := newContainer(t, "/bin/sleep", "600")
	r, err := Sync(t.Context(), spec(b, "/bin/sh", "-c", "yes | head -c 20000000; echo -n end >&2"))
	if err != nil || !r.Truncated || len(r.Stdout)+len(r.Stderr) != maxOutput {
		t.Fatalf("%d %d %v, %v", len(r.Stdout), len(r.Stderr), r.Truncated, err)
	}
	r, err = Sync(t.Context(), spec(b, "/bin/sh", "-c", "seq 100000"))
	if err != nil || r.Truncated || len(r.Stdout) != 588895 || !strings.HasSuffix(string(r.Stdout), "\n100000\n") {
		t.Fatalf("%d %v, %v", len(r.Stdout), r.Truncated, err)
	}
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

func TestExecStream(t *testing.T) {
	b := newContainer(t, "/bin/sleep", "600")
	var out, errs buffer
	code, err := Stream(t.Context(), spec(b, "/bin/sh", "-c", "cat; echo bye >&2; exit 4"),
		IO{Stdin: strings.NewReader("hello"), Stdout: &out, Stderr: &errs})
	if err != nil || code != 4 || out.String() != "hello" || errs.String() != "bye\n" {
		t.Fatalf("%d %q %q, %v", code, out.String(), errs.String(), err)
	}
	in, w := io.Pipe() // an input that stays open
	defer w.Close()    // a test's pipe
	if code, err := Stream(t.Context(), spec(b, "/bin/sh", "-c", "exit 6"), IO{Stdin: in}); code != 6 || err != nil {
		t.Fatalf("%d, %v", code, err)
	}
	if _, err := Stream(t.Context(), spec(b, "/no/such/command"), IO{Stdout: &out}); err == nil || !strings.Contains(err.Error(), "/no/such/command") {
		t.Fatal(err)
	}
	var whole buffer
	if _, err := Stream(t.Context(), spec(b, "/bin/seq", "100000"), IO{Stdout: &whole}); err != nil || len(whole.String()) != 588895 {
		t.Fatalf("%d bytes, %v", len(whole.String()), err)
	}
	clean(t, b, 1)
}

func TestExecStreamEnds(t *testing.T) {
	b := newContainer(t, "/bin/sh", "-c", "while true; do sleep 1; done")
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if _, err := Stream(ctx, spec(b, "/bin/sh", "-c", "sleep 4321 & sleep 4321"), IO{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	clean(t, b, 2)
	if _, err := Stream(t.Context(), spec(b, "/bin/yes"), IO{Stdout: gone{}}); !errors.Is(err, io.ErrClosedPipe) {
		t.Fatal(err)
	}
	clean(t, b, 2)
	// What holds the output is ended, what does not may stay.
	begin := time.Now()
	if code, err := Stream(t.Context(), spec(b, "/bin/sh", "-c", "sleep 4321 & exit 7"), IO{Stdout: io.Discard}); code != 7 || err != nil || time.Since(begin) > 3*time.Second {
		t.Fatalf("%d, %v", code, err)
	}
	clean(t, b, 2)
	if code, err := Stream(t.Context(), spec(b, "/bin/sh", "-c", "setsid sleep 4321 </dev/null >/dev/null 2>&1 & exit 7"), IO{Stdout: io.Discard}); code != 7 || err != nil {
		t.Fatalf("%d, %v", code, err)
	}
	clean(t, b, 3)
}

type gone struct{}

func (gone) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestExecTerminal(t *testing.T) {
	b := newContainer(t, "/bin/sleep", "600")
	s := spec(b, "/bin/sh")
	s.Process.Terminal = true
	in, w := io.Pipe() // stays open
	defer w.Close()    // a test's pipe
	var out buffer
	sizes := make(chan specs.Box, 2)
	sizes <- specs.Box{Height: 24, Width: 80}
	type result struct {
		code int32
		err  error
	}
	done := make(chan result, 1)
	go func() {
		code, err := Stream(t.Context(), s, IO{Stdin: in, Stdout: &out, Resize: sizes})
		done <- result{code, err}
	}()
	type step struct{ send, want string }
	for _, st := range []step{{"stty size; echo \"a\"b\n", "ab"}, {"stty size; echo \"c\"d\n", "cd"}} {
		if _, err := io.WriteString(w, st.send); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(10 * time.Second); !strings.Contains(out.String(), st.want); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("no %q in %q", st.want, out.String())
			}
		}
		sizes <- specs.Box{Height: 33, Width: 77}
		time.Sleep(300 * time.Millisecond)
	}
	if !strings.Contains(out.String(), "24 80") || !strings.Contains(out.String(), "33 77") {
		t.Fatalf("sizes in %q", out.String())
	}
	if _, err := io.WriteString(w, "exit 9\n"); err != nil {
		t.Fatal(err)
	}
	select {
	case r := <-done:
		if r.code != 9 || r.err != nil {
			t.Fatalf("%+v", r)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the terminal goes on after its shell")
	}
	clean(t, b, 1)
	s = spec(b, "/no/such/command")
	s.Process.Terminal = true
	if _, err := Stream(t.Context(), s, IO{Stdout: &out}); err == nil || !strings.Contains(err.Error(), "/no/such/command") {
		t.Fatal(err)
	}
	// The end of the input ends a reader. The command lives on for a moment, since crun
	// passes on nothing of what its terminal still holds when the command has ended.
	s = spec(b, "/bin/sh", "-c", "cat; sleep 0.5")
	s.Process.Terminal = true
	var echo buffer
	if code, err := Stream(t.Context(), s, IO{Stdin: strings.NewReader("hello\n"), Stdout: &echo}); code != 0 || err != nil || !strings.Contains(echo.String(), "hello\r\nhello\r\n") {
		t.Fatalf("%d %q, %v", code, echo.String(), err)
	}
	clean(t, b, 1)
}
