package exec

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	osexec "os/exec"
	"sync"
	"time"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/pod"
)

// maxOutput caps standard output and standard error together, so that both fit
// into a gRPC message of 16 MiB.
const maxOutput = 16<<20 - 64<<10

// Result is what a command left.
type Result struct {
	// ExitCode is 128 and the signal's number for a command that was killed.
	ExitCode       int32
	Stdout, Stderr []byte
	// Truncated says that the command wrote more than is kept.
	Truncated bool
}

// Sync runs a command without input and returns its exit code and output. When
// it returns nothing of the command is left: what it started and left behind is
// killed. A time-out is a *TimeoutError, with the output so far; the container
// goes on. A command that cannot be run, for want of the binary for example, is
// an error with the runtime's reason; an exit code other than zero is none.
func Sync(ctx context.Context, s Spec) (Result, error) {
	if s.Process != nil && s.Process.Terminal {
		return Result{}, fmt.Errorf("exec in %s: a terminal without a client: %w", s.ID, errdefs.ErrInvalid)
	}
	own, cancel := s.deadline(ctx)
	defer cancel()
	e, err := open(s)
	defer e.close()
	if err != nil {
		return Result{}, fmt.Errorf("exec in %s: %w", s.ID, err)
	}
	var out output
	pipes, err := newCollector(&out)
	if err != nil {
		return Result{}, fmt.Errorf("exec in %s: %w", s.ID, err)
	}
	err = e.start(func(c *osexec.Cmd) { c.Stdout, c.Stderr = pipes.ends[0], pipes.ends[1] }, pipes.reads[:]...)
	pipes.run()
	if err != nil {
		return Result{}, fmt.Errorf("exec in %s: %w", s.ID, err)
	}
	waitErr := e.wait(own, pipes.drained)
	var orphans []pod.Process
	if waitErr != nil {
		orphans = e.processes()
	}
	endErr := e.end(orphans)
	pipes.close()
	r := out.result()
	switch {
	case waitErr != nil:
		err = errors.Join(s.timedOut(ctx, own), endErr)
	case endErr != nil:
		err = endErr
	default:
		r.ExitCode, err = e.result(r.Stderr)
	}
	if err != nil {
		return r, fmt.Errorf("exec in %s: %w", s.ID, err)
	}
	return r, nil
}

// output collects both streams under one limit.
type output struct {
	mu     sync.Mutex // guards all
	bufs   [2]bytes.Buffer
	more   bool
	closed bool
}

// write takes what fits. The rest is read all the same, so that the command goes on.
func (o *output) write(stream int, p []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return
	}
	if room := maxOutput - o.bufs[0].Len() - o.bufs[1].Len(); len(p) > room {
		p, o.more = p[:room], true
	}
	o.bufs[stream].Write(p)
}

func (o *output) result() Result {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	return Result{Stdout: o.bufs[0].Bytes(), Stderr: o.bufs[1].Bytes(), Truncated: o.more}
}

// collector reads two pipes into an output.
type collector struct {
	out *output
	// ends are the command's ends; ours are reads.
	ends, reads [2]*os.File
	// drained is closed when both have ended.
	drained chan struct{}
}

func newCollector(out *output) (*collector, error) {
	c := &collector{out: out, drained: make(chan struct{})}
	for i := range c.ends {
		var err error
		if c.reads[i], c.ends[i], err = os.Pipe(); err != nil {
			if i == 1 {
				err = errors.Join(err, c.reads[0].Close(), c.ends[0].Close())
			}
			return nil, err
		}
	}
	return c, nil
}

// run gives up the command's ends, which it has by now, and begins to read.
func (c *collector) run() {
	var wg sync.WaitGroup
	for i := range c.ends {
		_ = c.ends[i].Close()
		wg.Go(func() {
			buf := make([]byte, 32<<10)
			for {
				n, err := c.reads[i].Read(buf)
				c.out.write(i, buf[:n])
				if err != nil {
					return
				}
			}
		})
	}
	go func() {
		wg.Wait()
		close(c.drained)
	}()
}

// close waits for what is in the pipes, a moment in case that somebody who could
// not be killed holds them, and closes our ends.
func (c *collector) close() {
	select {
	case <-c.drained:
	case <-time.After(drainTime):
	}
	for _, r := range c.reads {
		_ = r.Close()
	}
}
