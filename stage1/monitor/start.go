// Package monitor runs conmon, the small program that stays with a container:
// it is the parent of the container's first process, writes its output to the
// log in the CRI format, offers the attach socket, and leaves the exit code in
// a file. It outlives the daemon, so nothing is lost when that is restarted.
//
// What is said about conmon's pipes, sockets and files was read in the sources
// of conmon 2.1.6 (github.com/containers/conmon).
package monitor

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/failpoint"
	"github.com/gantry-cri/gantry/stage0/pod"
	"github.com/gantry-cri/gantry/stage1/ociruntime"
	"github.com/gantry-cri/gantry/stage1/proc"
)

const (
	defaultTimeout = 60 * time.Second
	// killTimeout is what the clean-up of a failed start may take.
	killTimeout = 5 * time.Second
	// pipeDelay is how long a dead conmon's children may hold its stderr.
	pipeDelay = 500 * time.Millisecond
	// maxReport caps what is read from the sync pipe: conmon sends at most 8 KiB
	// of the runtime's stderr, escaped.
	maxReport = 64 << 10
	// consoleName is the longest name that conmon appends to TMPDIR for the socket
	// by which the runtime hands over a terminal.
	consoleName = "/conmon-term.XXXXXX"
	// sunPath is the size of a socket's path, its final zero included (unix(7)).
	sunPath = 108
)

// Spec is what a monitor is started with. Paths are absolute.
type Spec struct {
	// ID is the container's id with the runtime; Name is for humans, in process lists.
	ID, Name string
	// Conmon is the program's path, see Find.
	Conmon string
	// Runtime creates the container.
	Runtime *ociruntime.Client
	// Bundle is the OCI bundle; attach socket, control FIFO and the runtime's log are made in it.
	Bundle string
	// LogPath is the container's log, whose directory must exist; empty keeps no log.
	LogPath string
	// PIDFile and MonitorPIDFile are written with the pids of both processes.
	PIDFile, MonitorPIDFile string
	// ExitDir is where the file ID appears with the exit code, see ReadExit. It is made.
	ExitDir string
	// TmpDir is a directory with a path of at most 88 bytes for a socket that lives
	// for a moment while a terminal is handed over. Empty: the bundle if it is short
	// enough, else the system's.
	TmpDir string
	// Terminal gives the container a pseudo-terminal, Stdin keeps its standard input
	// open for attach, StdinOnce closes that when the first client leaves.
	Terminal, Stdin, StdinOnce bool
	// Timeout ends a start that hangs; zero is one minute.
	Timeout time.Duration
	// Place moves the monitor, before it does anything, into a cgroup of its own. May be nil.
	Place func(ctx context.Context, pid int) error
	// Kill ends everything in that cgroup when the start fails. May be nil; then
	// what the monitor started may be left.
	Kill func(ctx context.Context) error
}

// Started names the processes of a created container and the files by which its
// monitor is talked to.
type Started struct {
	Monitor, Init   pod.Process
	Attach, Control string
}

// AttachPath is the socket for Attach of a container with this bundle.
func AttachPath(bundle string) string { return filepath.Join(bundle, "attach") }

// ControlPath is the FIFO for ReopenLog and Resize of a container with this bundle.
func ControlPath(bundle string) string { return filepath.Join(bundle, "ctl") }

// RuntimeLog is where the runtime writes why it could not create the container.
func RuntimeLog(bundle string) string { return filepath.Join(bundle, "runtime.log") }

// Find returns conmon's path: the configured one, or that in PATH. A monitor
// that is missing is ErrUnsupported with what to install.
func Find(configured string) (string, error) {
	name := configured
	if name == "" {
		name = "conmon"
	}
	path, err := exec.LookPath(name)
	if err != nil && configured == "" {
		path, err = exec.LookPath("/usr/libexec/podman/conmon") // Fedora's older place
	}
	if err != nil {
		return "", fmt.Errorf("container monitor %q is not there or not executable: install conmon: %w", name, errdefs.ErrUnsupported)
	}
	return filepath.Abs(path)
}

// Start starts a monitor and has it create the container, which then waits for
// the runtime's start. The error of a runtime that refuses is in the error. On
// an error, and when conmon or the runtime hang past the deadline, the monitor
// and, with Spec.Kill, all that it started is killed before Start returns; the
// runtime's state and the container's cgroup are for the caller to undo.
func Start(ctx context.Context, s Spec) (Started, error) {
	timeout := s.Timeout
	if timeout == 0 {
		timeout = defaultTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	// For launch: the signal that ends conmon with us comes when this thread ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := s.prepare(); err != nil {
		return Started{}, fmt.Errorf("start monitor of %s: %w", s.ID, err)
	}
	l, err := s.launch()
	if err != nil {
		return Started{}, fmt.Errorf("start monitor of %s: %w", s.ID, err)
	}
	started, err := l.follow(ctx)
	if err != nil {
		return Started{}, fmt.Errorf("start monitor of %s: %w", s.ID, errors.Join(err, l.abort(ctx)))
	}
	return started, nil
}

// prepare removes what an earlier start left, so that it is not taken for ours.
func (s Spec) prepare() error {
	if s.LogPath != "" {
		if _, err := os.Stat(filepath.Dir(s.LogPath)); err != nil {
			return fmt.Errorf("log directory: %w", err)
		}
	}
	if err := os.MkdirAll(s.ExitDir, 0o700); err != nil {
		return err
	}
	if err := os.MkdirAll(s.Runtime.Root, 0o700); err != nil {
		return err
	}
	for _, f := range []string{s.PIDFile, s.MonitorPIDFile, RuntimeLog(s.Bundle), filepath.Join(s.ExitDir, s.ID)} {
		if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// launched is a conmon that has not said yet how it went.
type launched struct {
	spec   Spec
	cmd    *exec.Cmd
	stderr *bytes.Buffer
	// report is our end of the sync pipe, gate that of the start pipe: conmon
	// waits for a byte there before it forks.
	report, gate *os.File
	// exited is closed when the first process, which only forks, has been reaped.
	exited chan struct{}
}

func (s Spec) launch() (*launched, error) {
	report, reportW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	gateR, gate, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, report.Close(), reportW.Close())
	}
	l := &launched{spec: s, stderr: &bytes.Buffer{}, report: report, gate: gate, exited: make(chan struct{})}
	l.cmd = exec.Command(s.Conmon, s.args()...)
	l.cmd.Dir = s.Bundle // conmon leaves a file "oom" in its working directory
	l.cmd.Env = append(ociruntime.Environ(), "_OCI_SYNCPIPE=3", "_OCI_STARTPIPE=4", "TMPDIR="+s.tmpDir())
	l.cmd.ExtraFiles = []*os.File{reportW, gateR}
	l.cmd.Stderr = l.stderr
	// conmon takes the end of the start pipe for the word to go on. If we are killed
	// before we gave it, conmon, in no cgroup yet, must not create a container that
	// nobody finds. What it forks once it may go on does not inherit the signal.
	l.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	l.cmd.WaitDelay = pipeDelay
	err = errors.Join(l.cmd.Start(), reportW.Close(), gateR.Close())
	if err != nil {
		return nil, errors.Join(err, report.Close(), gate.Close())
	}
	go func() {
		_ = l.cmd.Wait() // how it ended is on the sync pipe and stderr
		close(l.exited)
	}()
	return l, nil
}

func (s Spec) args() []string {
	log := "null" // conmon's driver that keeps none
	if s.LogPath != "" {
		log = "k8s-file:" + s.LogPath
	}
	args := []string{
		"--api-version", "1",
		"--cid", s.ID, "--cuuid", s.ID, "--name", s.Name,
		"--runtime", s.Runtime.Path,
		"--bundle", s.Bundle, "--full-attach",
		"--container-pidfile", s.PIDFile, "--conmon-pidfile", s.MonitorPIDFile,
		"--exit-dir", s.ExitDir,
		"--log-path", log,
		// The log is not synced on rotation and at the end: fsync takes seconds on a
		// busy disk, and ReopenContainerLog waits for it.
		"--no-sync-log",
	}
	if s.Terminal {
		args = append(args, "--terminal")
	}
	if s.Stdin {
		args = append(args, "--stdin")
		if !s.StdinOnce {
			args = append(args, "--leave-stdin-open")
		}
	}
	// With a log, crun says why only there, and not on the stderr that conmon sends us.
	for _, a := range append(s.Runtime.Args(), "--log", RuntimeLog(s.Bundle), "--log-format", "json") {
		args = append(args, "--runtime-arg", a)
	}
	return args
}

func (s Spec) tmpDir() string {
	for _, dir := range []string{s.TmpDir, s.Bundle} {
		if dir != "" && len(dir)+len(consoleName) < sunPath {
			return dir
		}
	}
	return os.TempDir()
}

// follow lets conmon go on and reads from it what became of the container.
func (l *launched) follow(ctx context.Context) (Started, error) {
	s := l.spec
	failpoint.Hit(failpoint.MonitorForked)
	if s.Place != nil {
		if err := s.Place(ctx, l.cmd.Process.Pid); err != nil {
			return Started{}, l.early(ctx, fmt.Errorf("place: %w", err))
		}
	}
	failpoint.Hit(failpoint.MonitorPlaced)
	if _, err := l.gate.Write([]byte{1}); err != nil {
		return Started{}, l.early(ctx, fmt.Errorf("start pipe: %w", err))
	}
	pid, err := l.readReport(ctx)
	if err != nil {
		return Started{}, err
	}
	select {
	case <-l.exited:
	case <-ctx.Done():
		return Started{}, ctx.Err()
	}
	monitor, err := proc.ReadPIDFile(s.MonitorPIDFile)
	if err != nil {
		return Started{}, fmt.Errorf("monitor: %w", err)
	}
	started := Started{Attach: AttachPath(s.Bundle), Control: ControlPath(s.Bundle)}
	if started.Monitor, err = proc.Read(monitor); err != nil {
		return Started{}, fmt.Errorf("monitor: %w", err)
	}
	if started.Init, err = proc.Read(pid); err != nil {
		return Started{}, fmt.Errorf("init: %w", err)
	}
	return started, errors.Join(l.report.Close(), l.gate.Close())
}

// readReport reads the line that conmon writes to the sync pipe: {"data": pid},
// or with a negative pid and the runtime's stderr as message. conmon writes
// nothing when a runtime fails without a word.
func (l *launched) readReport(ctx context.Context) (int, error) {
	stop := context.AfterFunc(ctx, func() { _ = l.report.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	line, err := bufio.NewReader(io.LimitReader(l.report, maxReport)).ReadBytes('\n')
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return 0, fmt.Errorf("no answer from conmon and %s: %w", l.spec.Runtime.Name, ctx.Err())
	}
	var answer struct {
		Data    int    `json:"data"`
		Message string `json:"message"`
	}
	if err == nil {
		// conmon's escapes are not always JSON's; what cannot be read is shown as it is.
		if json.Unmarshal(line, &answer) != nil {
			answer.Data, answer.Message = -1, string(line)
		}
	}
	if err == nil && answer.Data > 0 {
		return answer.Data, nil
	}
	select { // for what it wrote to stderr
	case <-l.exited:
	case <-ctx.Done():
	}
	return 0, fmt.Errorf("%s create: %s", l.spec.Runtime.Name, l.cause(answer.Message))
}

// cause is the best account of a failure: the runtime's log, its stderr as
// conmon passed it on, conmon's own stderr.
func (l *launched) cause(message string) string {
	if log, err := os.ReadFile(RuntimeLog(l.spec.Bundle)); err == nil {
		if r := ociruntime.Reason(log); r != "" {
			return r
		}
	}
	if r := ociruntime.Reason([]byte(message)); r != "" {
		return r
	}
	return l.words()
}

func (l *launched) words() string {
	select {
	case <-l.exited: // nobody writes to the buffer any more
		if r := ociruntime.Reason(l.stderr.Bytes()); r != "" {
			return r
		}
	default:
	}
	return "conmon ended without a word"
}

// early explains a failure before conmon was let go: when the cause is that it has
// ended by itself, as it does when it finds no runtime, its own words come first.
func (l *launched) early(ctx context.Context, err error) error {
	if !errors.Is(err, errdefs.ErrNotFound) && !errors.Is(err, unix.EPIPE) {
		return err
	}
	select {
	case <-l.exited:
	case <-time.After(killTimeout): // it lives: what is gone is something else
		return err
	case <-ctx.Done():
		return err
	}
	return fmt.Errorf("%s: %w", l.words(), err)
}

// abort kills what was launched: the first process, the one that it forked, and
// by Spec.Kill everything below.
func (l *launched) abort(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
	defer cancel()
	_ = l.cmd.Process.Kill() // already reaped is fine
	var errs []error
	if l.spec.Kill != nil {
		errs = append(errs, l.spec.Kill(ctx))
	}
	select {
	case <-l.exited:
	case <-ctx.Done():
		errs = append(errs, fmt.Errorf("kill conmon: %w", ctx.Err()))
	}
	if pid, err := proc.ReadPIDFile(l.spec.MonitorPIDFile); err == nil {
		if p, err := proc.Read(pid); err == nil {
			_ = proc.Signal(p, unix.SIGKILL)
			errs = append(errs, proc.Wait(ctx, p))
		}
	}
	// Only now: conmon takes the end of the start pipe for the word to go on.
	return errors.Join(append(errs, l.report.Close(), l.gate.Close())...)
}
