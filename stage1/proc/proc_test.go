package proc

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/pod"
)

func start(t *testing.T, argv ...string) (*exec.Cmd, pod.Process) {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	p, err := Read(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	return cmd, p
}

func TestParseStat(t *testing.T) {
	tail := " 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20"
	tests := []struct {
		name, in string
		want     stat
		bad      bool
	}{
		{name: "plain", in: "7 (sh) S" + tail, want: stat{'S', 1, 4711}},
		{name: "spaces and parentheses", in: "7 (a) Z (b) R" + tail, want: stat{'R', 1, 4711}},
		{name: "no command", in: "7", bad: true},
		{name: "short", in: "7 (sh) S 1 2", bad: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseStat(tt.in)
			if (err != nil) != tt.bad || got != tt.want {
				t.Fatalf("got %v, %v", got, err)
			}
		})
	}
}

func TestWait(t *testing.T) {
	cmd, p := start(t, "sleep", "60")
	if !Alive(p) || !Exists(p) {
		t.Fatal("a running process is not alive")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := Wait(ctx, p); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("wait for a running process: %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- Wait(t.Context(), p) }()
	time.Sleep(20 * time.Millisecond)
	if err := Signal(p, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("wait did not return")
	}
	if Alive(p) || !Exists(p) {
		t.Fatal("a zombie must exist and not be alive")
	}
	if err := Wait(t.Context(), p); err != nil {
		t.Fatalf("wait for a zombie: %v", err)
	}
	_ = cmd.Wait()
	if Exists(p) {
		t.Fatal("a reaped process exists")
	}
	if err := Wait(t.Context(), p); err != nil {
		t.Fatalf("wait for a reaped process: %v", err)
	}
	if err := Signal(p, unix.SIGKILL); !errors.Is(err, errdefs.ErrNotFound) {
		t.Fatalf("signal to a reaped process: %v", err)
	}
}

func TestChildren(t *testing.T) {
	cmd, p := start(t, "sleep", "60")
	list, err := Children(os.Getpid())
	if err != nil || !slices.Contains(list, p) {
		t.Fatalf("%v, %v", list, err)
	}
	_ = cmd.Process.Kill()
	if err := Wait(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if list, err := Children(os.Getpid()); err != nil || slices.Contains(list, p) {
		t.Fatalf("with a zombie: %v, %v", list, err)
	}
}

func TestReusedPID(t *testing.T) {
	_, p := start(t, "sleep", "60")
	p.StartTime++
	if Alive(p) || Exists(p) {
		t.Fatal("another start time is another process")
	}
	if err := Signal(p, unix.SIGKILL); !errors.Is(err, errdefs.ErrNotFound) {
		t.Fatalf("signal to a reused pid: %v", err)
	}
	if err := Wait(t.Context(), p); err != nil {
		t.Fatal(err)
	}
}

// Many waits at once must not cost a thread each: they are parked with the
// runtime's poller, in no system call. (Counting threads would not tell: those
// that the opening took for a moment stay.)
func TestWaitThreads(t *testing.T) {
	_, p := start(t, "sleep", "60")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 200)
	for range cap(done) {
		go func() { done <- Wait(ctx, p) }()
	}
	for limit := time.Now().Add(20 * time.Second); parked() < cap(done); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("%d of %d waits are parked with the poller", parked(), cap(done))
		}
	}
	cancel()
	for range cap(done) {
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	}
}

// parked counts the goroutines in Wait whose state is that of the poller.
func parked() int {
	stacks := make([]byte, 4<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	n := 0
	for g := range strings.SplitSeq(string(stacks), "\n\n") {
		if strings.Contains(g, " [IO wait") && strings.Contains(g, "proc.Wait(") {
			n++
		}
	}
	return n
}
