// Package exec runs a command in a container that runs already, by the OCI
// runtime's exec in the foreground.
//
// The command and everything that it starts lie in a cgroup of their own, a leaf
// below the container's. So a time-out ends all of it and nothing else, and a
// child that was left behind and still holds the output open makes nobody wait.
package exec

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	osexec "os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/pod"
	"github.com/gantry-cri/gantry/stage1/cgroup"
	"github.com/gantry-cri/gantry/stage1/ociruntime"
	"github.com/gantry-cri/gantry/stage1/proc"
)

const (
	// drainTime is how long output is waited for once the command has exited: what
	// it wrote itself is in the pipes by then.
	drainTime = 250 * time.Millisecond
	// reapTime is how long orphans of a killed command are waited for, which only
	// the container's init can reap; an init that does not is not waited for longer.
	reapTime = 500 * time.Millisecond
	// exitTime is what the runtime has to exit once its command is dead.
	exitTime = 3 * time.Second
	// killTime ends the clean-up, whatever the caller's deadline was.
	killTime = 10 * time.Second
)

// Spec says what is run where.
type Spec struct {
	Runtime *ociruntime.Client
	// ID is the container's id with the runtime.
	ID string
	// Process is the whole process: the runtime takes nothing from the container's.
	Process *specs.Process
	// Dir is an existing directory for a few small files while the command runs.
	Dir string
	// Cgroups are the node's hierarchies, Cgroup the container's path in them.
	Cgroups *cgroup.Hierarchy
	Cgroup  string
	// Timeout ends the command; zero never does.
	Timeout time.Duration
}

// TimeoutError says that the command took too long and that it, and all that it
// started, is dead. It is a context.DeadlineExceeded.
type TimeoutError struct {
	Command []string
	// Timeout is zero when the context's own deadline passed.
	Timeout time.Duration
}

// Error tells the command and its time.
func (e *TimeoutError) Error() string {
	if e.Timeout == 0 {
		return fmt.Sprintf("command %q timed out", strings.Join(e.Command, " "))
	}
	return fmt.Sprintf("command %q timed out after %v", strings.Join(e.Command, " "), e.Timeout)
}

// Unwrap returns context.DeadlineExceeded.
func (e *TimeoutError) Unwrap() error { return context.DeadlineExceeded }

// session is one command from the making of its cgroup to its removal.
type session struct {
	Spec
	dir  string // of our files
	leaf string // the command's cgroup
	cmd  *osexec.Cmd
	// exited is closed once the runtime's exec has been reaped.
	exited chan struct{}
	// dead is closed once the command's own process is dead, though the runtime may
	// wait for its output still.
	dead chan struct{}
}

// open makes what the command needs outside: call close whatever happens then.
func open(s Spec) (*session, error) {
	e := &session{Spec: s, exited: make(chan struct{}), dead: make(chan struct{})}
	if s.Process == nil || len(s.Process.Args) == 0 {
		return e, fmt.Errorf("no command: %w", errdefs.ErrInvalid)
	}
	if !s.Runtime.Has(s.ID) {
		return e, fmt.Errorf("container %s: %w", s.ID, errdefs.ErrNotFound)
	}
	var err error
	if e.dir, err = os.MkdirTemp(s.Dir, "exec-"); err != nil {
		return e, err
	}
	process, err := json.Marshal(s.Process)
	if err != nil {
		return e, err
	}
	if err := os.WriteFile(e.file("process.json"), process, 0o600); err != nil {
		return e, err
	}
	var suffix [6]byte
	_, _ = rand.Read(suffix[:]) // never fails
	e.leaf, err = s.Cgroups.CreateLeaf(s.Cgroup, "gantry-exec-"+hex.EncodeToString(suffix[:]), e.controllers()...)
	return e, err
}

func (e *session) file(name string) string { return filepath.Join(e.dir, name) }

// controllers are the v1 hierarchies in which the leaf is made; none means all.
// runc takes a leaf for single controllers: the two by which processes are
// stopped and counted, while memory and the rest stay the container's. crun
// 1.8.1 wants the leaf in every hierarchy: where it finds none it leaves the
// process outside of the container's cgroups and says nothing.
func (e *session) controllers() []string {
	if e.Runtime.Name == "crun" {
		return nil
	}
	return slices.DeleteFunc([]string{"freezer", "pids"}, func(c string) bool { return !e.Cgroups.HasV1(c) })
}

// start starts the runtime; cmd has its streams and its session already. outputs are
// our ends of the command's output.
func (e *session) start(configure func(*osexec.Cmd), outputs ...*os.File) error {
	leaf := filepath.Base(e.leaf)
	if c := e.controllers(); len(c) > 0 {
		leaf = strings.Join(c, ",") + ":" + leaf
	}
	args := append(e.Runtime.Args(), "--log", e.file("log"), "--log-format", "json", "exec",
		"--cgroup", leaf, "--pid-file", e.file("pid"), "--process", e.file("process.json"))
	if e.Process.Terminal {
		args = append(args, "--tty")
	}
	e.cmd = osexec.Command(e.Runtime.Path, append(args, e.ID)...)
	e.cmd.Env = ociruntime.Environ()
	e.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	configure(e.cmd)
	defer func() { closeAll(e.cmd.ExtraFiles) }()
	for _, o := range outputs {
		held, err := hold(o)
		if err != nil {
			return err
		}
		e.cmd.ExtraFiles = append(e.cmd.ExtraFiles, held)
	}
	if err := e.cmd.Start(); err != nil {
		return err
	}
	go e.watchRuntime()
	go e.watchCommand()
	return nil
}

// hold opens our end of an output once more. The runtime has it as long as the
// command runs, and keeps it from the command: one that goes on after the daemon's
// end would be killed by SIGPIPE at its next word if nobody had it open.
func hold(output *os.File) (held *os.File, err error) {
	raw, err := output.SyscallConn()
	if err != nil {
		return nil, err
	}
	// Not by a duplicate, which would share the mode in which reads do not block.
	cerr := raw.Control(func(fd uintptr) {
		held, err = os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
	})
	if err = errors.Join(cerr, err); err != nil {
		return nil, fmt.Errorf("hold output: %w", err)
	}
	return held, nil
}

// watchRuntime reaps the runtime, waiting for it without a thread.
func (e *session) watchRuntime() {
	if p, err := proc.Read(e.cmd.Process.Pid); err == nil {
		_ = proc.Wait(context.Background(), p) // an error means that Wait below waits
	}
	_ = e.cmd.Wait() // the status is in ProcessState
	close(e.exited)
}

// watchCommand waits for the pid that the runtime writes when the command has
// started, then for that process. A runtime that ends first has ended all.
func (e *session) watchCommand() {
	defer close(e.dead)
	for wait := 2 * time.Millisecond; ; wait = min(2*wait, 20*time.Millisecond) {
		if p, ok := e.command(); ok {
			_ = proc.Wait(context.Background(), p)
			return
		}
		select {
		case <-e.exited:
			return
		case <-time.After(wait):
		}
	}
}

// command is the command's own process, once it is known. A process that has
// gone already is named with a start time of zero: nobody's.
func (e *session) command() (pod.Process, bool) {
	pid, err := proc.ReadPIDFile(e.file("pid"))
	if err != nil {
		return pod.Process{}, false // not written yet
	}
	p, err := proc.Read(pid)
	if err != nil {
		return pod.Process{PID: pid}, true
	}
	return p, true
}

// wait waits for the end of the command, for its output, and for the context.
// drained is closed when the output has ended.
func (e *session) wait(ctx context.Context, drained <-chan struct{}) error {
	select {
	case <-e.dead:
	case <-ctx.Done():
		return ctx.Err()
	}
	enough, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	select {
	case <-drained:
	case <-enough.Done():
	}
	select { // with the output at its end, the runtime has nothing left to wait for
	case <-e.exited:
	case <-enough.Done():
	}
	return nil
}

// end kills what is left of the command and waits for the runtime, and until the
// named processes, which died with it, have been reaped too.
func (e *session) end(left []pod.Process) error {
	ctx, cancel := context.WithTimeout(context.Background(), killTime)
	defer cancel()
	if _, started := e.command(); !started {
		// The runtime may be about to put the process into the leaf: it goes first.
		e.killRuntime()
	}
	err := e.Cgroups.Kill(ctx, e.leaf)
	select {
	case <-e.exited:
	case <-time.After(exitTime):
		e.killRuntime()
		err = errors.Join(err, e.Cgroups.Kill(ctx, e.leaf))
	}
	reapCtx, cancelReap := context.WithTimeout(ctx, reapTime)
	defer cancelReap()
	for _, p := range left {
		awaitReaped(reapCtx, p)
	}
	return err
}

// killRuntime kills the runtime's exec with what it has forked, which may be on
// its way into the leaf and in a session of its own already, and waits for it. The
// runtime is stopped first, or it would fork on.
func (e *session) killRuntime() {
	if closed(e.exited) {
		return
	}
	pid := e.cmd.Process.Pid
	_ = unix.Kill(-pid, unix.SIGSTOP)
	for range 100 { // a child may fork too; the stopped parent reaps none
		children, err := proc.Children(pid)
		if err != nil || len(children) == 0 {
			break
		}
		for _, c := range children {
			_ = proc.Signal(c, unix.SIGKILL)
			_ = proc.Wait(context.Background(), c)
		}
	}
	_ = unix.Kill(-pid, unix.SIGKILL)
	<-e.exited
}

func (e *session) processes() []pod.Process {
	pids, _ := e.Cgroups.Procs(e.leaf)
	var list []pod.Process
	for _, pid := range pids {
		if p, err := proc.Read(pid); err == nil {
			list = append(list, p)
		}
	}
	return list
}

func awaitReaped(ctx context.Context, p pod.Process) {
	for wait := time.Millisecond; proc.Exists(p); wait = min(2*wait, 20*time.Millisecond) {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// result is the command's exit code, or why the runtime could not run it.
// output is what the runtime wrote where the command would have.
func (e *session) result(output []byte) (int32, error) {
	log, _ := os.ReadFile(e.file("log"))
	_, started := e.command()
	code := exitCode(e.cmd.ProcessState)
	if started && (code == 0 || !hasError(log)) {
		return code, nil
	}
	reason := ociruntime.Reason(log)
	if reason == "" {
		reason = ociruntime.Reason(output)
	}
	if reason == "" {
		reason = fmt.Sprintf("the runtime ended with %v", e.cmd.ProcessState)
	}
	return 0, fmt.Errorf("%s exec of %q: %s", e.Runtime.Name, e.Process.Args[0], reason)
}

func hasError(log []byte) bool {
	return strings.Contains(string(log), `"level":"error"`) || strings.Contains(string(log), `"level":"fatal"`)
}

func exitCode(st *os.ProcessState) int32 {
	if ws, ok := st.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int32(ws.Signal())
	}
	return int32(st.ExitCode())
}

// close removes the leaf and our files. A leaf that cannot be removed goes with
// the container's cgroup.
func (e *session) close() {
	if e.leaf != "" {
		_ = e.Cgroups.Remove(context.Background(), e.leaf)
	}
	if e.dir != "" {
		_ = os.RemoveAll(e.dir)
	}
}

// timedOut turns the end of a context into what the caller must tell apart.
func (s Spec) timedOut(ctx, own context.Context) error {
	if ctx.Err() == nil || errors.Is(ctx.Err(), context.DeadlineExceeded) {
		timeout := s.Timeout
		if ctx.Err() != nil {
			timeout = 0
		}
		return &TimeoutError{Command: s.Process.Args, Timeout: timeout}
	}
	return own.Err()
}

func (s Spec) deadline(ctx context.Context) (context.Context, context.CancelFunc) {
	if s.Timeout > 0 {
		return context.WithTimeout(ctx, s.Timeout)
	}
	return context.WithCancel(ctx)
}
