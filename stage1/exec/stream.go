package exec

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	osexec "os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// endOfInput is what a terminal takes for the end of input (VEOF of termios(3)).
const endOfInput = 4

// IO is the client's side of a command. A nil stream is one that was not asked for.
type IO struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Resize has the sizes of the client's terminal; it is read until it is closed
	// or the command has ended, with a terminal or without.
	Resize <-chan specs.Box
}

// Stream runs a command with the client's streams, in a terminal if
// Spec.Process.Terminal says so, and returns its exit code. The end of Stdin is
// the end of the command's input. It returns when the command has exited, though
// Stdin stays open, and after all output was written. When the context ends, or
// the client cannot be written to, the command and what it started is killed;
// what it left behind on a normal exit, and does not hold its output, lives on in
// the container. Errors are those of Sync. A read of Stdin that is under way at
// the end is left to its owner, who closes it.
func Stream(ctx context.Context, s Spec, client IO) (int32, error) {
	own, cancel := s.deadline(ctx)
	defer cancel()
	s.firstSize(own, client.Resize)
	e, err := open(s)
	defer e.close()
	if err != nil {
		return 0, fmt.Errorf("exec in %s: %w", s.ID, err)
	}
	t, err := newTransport(s.Process, client)
	if err != nil {
		return 0, fmt.Errorf("exec in %s: %w", s.ID, err)
	}
	t.resized = e.resizeCommand
	err = e.start(t.configure, t.outputs()...)
	t.run(own)
	if err != nil {
		t.close()
		return 0, fmt.Errorf("exec in %s: %w", s.ID, err)
	}
	code, err := e.stream(ctx, own, t)
	if err != nil {
		return 0, fmt.Errorf("exec in %s: %w", s.ID, err)
	}
	return code, nil
}

func (e *session) stream(ctx, own context.Context, t *transport) (int32, error) {
	gone, leave := context.WithCancel(own)
	defer leave()
	go func() {
		select {
		case <-t.broken:
			leave()
		case <-gone.Done():
		}
	}()
	if e.wait(gone, t.drained) != nil {
		err := e.end(e.processes())
		t.close()
		if own.Err() != nil {
			return 0, errors.Join(e.timedOut(ctx, own), err)
		}
		return 0, errors.Join(t.failure(), err)
	}
	if err := e.release(t.drained); err != nil {
		t.close()
		return 0, err
	}
	// All output is in the pipes: it goes to the client as fast as that reads.
	select {
	case <-t.drained:
	case <-own.Done():
	case <-t.broken:
	}
	t.close()
	return e.result(t.errors.bytes())
}

// release lets processes that the command left behind live on in the container,
// unless they hold the output: then the runtime, or the client, would wait for them.
func (e *session) release(drained <-chan struct{}) error {
	if !closed(e.exited) {
		return e.end(nil)
	}
	left := e.processes()
	if len(left) > 0 && !closed(drained) {
		return e.end(nil)
	}
	for _, p := range left {
		_ = e.Cgroups.AddProcess(e.Cgroup, p.PID) // it may have gone by itself
	}
	return nil
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// transport is the streams between a client and the runtime's exec.
type transport struct {
	client IO
	// resized is told each size, after our side of the terminal has it.
	resized func(specs.Box)
	// configure gives the command its ends, which run closes.
	configure func(*osexec.Cmd)
	ends      []*os.File
	// master is our side of the terminal, else nil; in, out and err are the pipes.
	master, in, out, err *os.File
	// errors keeps the beginning of standard error, in case that it is the runtime's.
	errors head
	// drained is closed when all output went to the client, broken when it could not.
	drained, broken chan struct{}
	breakOnce       sync.Once
	cause           error // set before broken is closed
}

func newTransport(p *specs.Process, client IO) (*transport, error) {
	t := &transport{client: client, drained: make(chan struct{}), broken: make(chan struct{})}
	if p.Terminal {
		return t, t.openTerminal(p.ConsoleSize)
	}
	err := t.openPipes()
	if err != nil {
		t.close()
		closeAll(t.ends)
	}
	return t, err
}

// openTerminal makes a terminal for the runtime, which makes another one inside
// the container, copies between the two, and follows the size of ours.
func (t *transport) openTerminal(size *specs.Box) error {
	master, tty, err := openPTY()
	if err != nil {
		return fmt.Errorf("terminal: %w", err)
	}
	t.master, t.ends = master, []*os.File{tty}
	if size != nil {
		_ = setSize(master, *size) // the command begins without then
	}
	t.configure = func(c *osexec.Cmd) {
		c.Stdin, c.Stdout, c.Stderr = tty, tty, tty
		// As the session's leader with this terminal it gets SIGWINCH from the kernel.
		c.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
	}
	return nil
}

func (t *transport) openPipes() error {
	var stdin, stdout, stderr *os.File
	var err error
	if t.client.Stdin != nil {
		if stdin, t.in, err = os.Pipe(); err != nil {
			return err
		}
		t.ends = append(t.ends, stdin)
	}
	if t.out, stdout, err = os.Pipe(); err != nil {
		return err
	}
	t.ends = append(t.ends, stdout)
	if t.err, stderr, err = os.Pipe(); err != nil {
		return err
	}
	t.ends = append(t.ends, stderr)
	t.configure = func(c *osexec.Cmd) {
		c.Stdout, c.Stderr = stdout, stderr
		if stdin != nil { // a nil *os.File is not a nil io.Reader
			c.Stdin = stdin
		}
	}
	return nil
}

// outputs are the pipes that the command writes to. A terminal has none: with our
// side of it the command is hung up on.
func (t *transport) outputs() []*os.File {
	if t.master != nil {
		return nil
	}
	return []*os.File{t.out, t.err}
}

// run gives up the command's ends and begins to copy.
func (t *transport) run(ctx context.Context) {
	closeAll(t.ends)
	go t.resize(ctx)
	var wg sync.WaitGroup
	if t.master != nil {
		wg.Go(func() { t.copyOut(t.client.Stdout, t.master) })
		go t.copyIn(t.master)
	} else {
		wg.Go(func() { t.copyOut(t.client.Stdout, t.out) })
		wg.Go(func() { t.copyOut(t.client.Stderr, io.TeeReader(t.err, &t.errors)) })
		go t.copyIn(t.in)
	}
	go func() {
		wg.Wait()
		close(t.drained)
	}()
}

// copyOut copies until the command's side is closed: a terminal gives EIO then.
func (t *transport) copyOut(client io.Writer, command io.Reader) {
	if client == nil {
		client = io.Discard
	}
	buf := make([]byte, 32<<10)
	for {
		n, err := command.Read(buf)
		if n > 0 {
			if _, werr := client.Write(buf[:n]); werr != nil {
				t.breakOnce.Do(func() {
					t.cause = fmt.Errorf("write to the client: %w", werr)
					close(t.broken)
				})
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (t *transport) failure() error {
	<-t.broken
	return t.cause
}

// copyIn copies the client's input. Its end closes a pipe; to a terminal it is a
// character.
func (t *transport) copyIn(command *os.File) {
	if t.client.Stdin == nil || command == nil {
		return
	}
	_, _ = io.Copy(command, t.client.Stdin) // a command that closed its input is no error
	if command == t.master {
		_, _ = command.Write([]byte{endOfInput})
		return
	}
	_ = command.Close()
}

// resize follows the client's terminal, and empties the channel without one.
func (t *transport) resize(ctx context.Context) {
	for {
		select {
		case size, ok := <-t.client.Resize:
			if !ok {
				return
			}
			if t.master != nil {
				_ = setSize(t.master, size)
				t.resized(size)
			}
		case <-ctx.Done():
			return
		}
	}
}

// close ends the copying of what can still come, after a moment for what has.
func (t *transport) close() {
	select {
	case <-t.drained:
	case <-t.broken:
	case <-time.After(drainTime):
	}
	closeAll([]*os.File{t.master, t.in, t.out, t.err})
}

func closeAll(files []*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close() // twice is harmless
		}
	}
}

// head keeps the first bytes that are written to it.
type head struct {
	mu  sync.Mutex // guards buf
	buf []byte
}

// Write never fails.
func (h *head) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if room := 4096 - len(h.buf); room > 0 {
		h.buf = append(h.buf, p[:min(room, len(p))]...)
	}
	return len(p), nil
}

func (h *head) bytes() []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]byte(nil), h.buf...)
}
