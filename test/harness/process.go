package harness

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Process is a program that runs beside the test. Its output goes to a file,
// whose end is shown when the test fails.
type Process struct {
	Log    string // file of its standard output and error
	cmd    *exec.Cmd
	exited chan struct{}
}

// starter is one locked thread on which all processes are started: the kernel
// kills them when it ends, which is when the test binary ends, however it ends.
var starter = sync.OnceValue(func() chan<- func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range work {
			f()
		}
	}()
	return work
})

// StartProcess starts argv with its output appended to a log file named after
// name in dir. The caller sees to its end.
func StartProcess(tb testing.TB, dir, name string, argv []string, env ...string) *Process {
	tb.Helper()
	p := &Process{Log: filepath.Join(dir, name+".log"), exited: make(chan struct{})}
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		tb.Fatalf("open log of %s: %v", name, err)
	}
	defer log.Close()
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	starter() <- func() { started <- p.cmd.Start() }
	if err := <-started; err != nil {
		tb.Fatalf("start %s: %v", name, err)
	}
	go func() {
		_ = p.cmd.Wait() // the state is read where it matters
		close(p.exited)
	}()
	return p
}

// Finish stops the process and shows the end of its log when the test failed.
// It is what a cleanup calls.
func (p *Process) Finish(tb testing.TB) {
	tb.Helper()
	p.Stop(tb)
	if tb.Failed() {
		tb.Logf("end of %s:\n%s", p.Log, p.logTail())
	}
}

// PID is the process's id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Exited is closed when the process has ended and was waited for.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// Running reports whether the process has not ended.
func (p *Process) Running() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// Stop sends SIGTERM, waits, and after 20 s kills. It may be called twice.
func (p *Process) Stop(tb testing.TB) {
	tb.Helper()
	p.end(tb, syscall.SIGTERM)
}

// Kill sends SIGKILL and waits.
func (p *Process) Kill(tb testing.TB) {
	tb.Helper()
	p.end(tb, syscall.SIGKILL)
}

func (p *Process) end(tb testing.TB, signal os.Signal) {
	tb.Helper()
	if !p.Running() {
		return
	}
	_ = p.cmd.Process.Signal(signal) // it may end by itself just now
	select {
	case <-p.exited:
		return
	case <-time.After(20 * time.Second):
	}
	tb.Errorf("%s did not end within 20 s of %v", filepath.Base(p.cmd.Path), signal)
	_ = p.cmd.Process.Kill()
	<-p.exited
}

// logTail is the last 8 KiB of the log.
func (p *Process) logTail() []byte {
	data, err := os.ReadFile(p.Log)
	if err != nil {
		return []byte(err.Error())
	}
	if over := len(data) - 8192; over > 0 {
		data = data[over:]
		if i := bytes.IndexByte(data, '\n'); i >= 0 {
			data = data[i+1:]
		}
	}
	return data
}

// WaitFor waits until check succeeds, and fails the test when the process ends
// before that.
func (p *Process) WaitFor(tb testing.TB, timeout time.Duration, check func() error) {
	tb.Helper()
	Eventually(tb, timeout, func() string {
		err := check()
		if err == nil {
			return ""
		}
		if !p.Running() {
			tb.Fatalf("%s ended (%v) before it was ready:\n%s", p.cmd.Path, p.cmd.ProcessState, p.logTail())
		}
		return fmt.Sprintf("%s is not ready: %v\n%s", p.cmd.Path, err, p.logTail())
	})
}

// FreeAddr is a host:port on loopback that nobody listens on. It is none of those that
// the kernel gives to clients (net.ipv4.ip_local_port_range, from 32768): one of them
// could have it before who asks for it here, or while a daemon restarts.
func FreeAddr(tb testing.TB) string {
	tb.Helper()
	for {
		addr := fmt.Sprintf("127.0.0.1:%d", 20000+rand.IntN(12000))
		l, err := net.Listen("tcp", addr)
		if errors.Is(err, syscall.EADDRINUSE) {
			continue
		}
		if err != nil {
			tb.Fatalf("find a free port: %v", err)
		}
		l.Close()
		return addr
	}
}
