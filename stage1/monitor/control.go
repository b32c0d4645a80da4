package monitor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/pod"
)

// The kinds of message that conmon reads from its control FIFO, a line each:
// kind, height, width (conmon's config.h).
const (
	msgResize = 1
	msgReopen = 2
)

const controlTimeout = 10 * time.Second

// ReopenSpec names a log that was renamed and the monitor that shall begin a new one.
type ReopenSpec struct {
	Control, LogPath string
	// Monitor is the process that holds the log.
	Monitor pod.Process
}

// ReopenLog has the monitor begin a new log file and returns when that exists,
// after which it gets every line. If the log was not renamed nothing is to be
// done and nothing is: conmon renames a new file over the path, which would
// destroy the lines in it. A foreign file at the path is kept under a name with
// the time, as the kubelet names rotated logs.
func ReopenLog(ctx context.Context, s ReopenSpec) error {
	ctx, cancel := context.WithTimeout(ctx, controlTimeout)
	defer cancel()
	if err := reopen(ctx, s); err != nil {
		return fmt.Errorf("reopen log %s: %w", s.LogPath, err)
	}
	return nil
}

func reopen(ctx context.Context, s ReopenSpec) error {
	// conmon exits when it cannot make the file.
	if _, err := os.Stat(filepath.Dir(s.LogPath)); err != nil {
		return err
	}
	c, err := openControl(ctx, s.Control)
	if err != nil {
		return err
	}
	defer c.close()
	before, err := os.Stat(s.LogPath)
	if err == nil {
		if holds(s.Monitor.PID, before) {
			return nil
		}
		if err := os.Link(s.LogPath, s.LogPath+"."+time.Now().Format("20060102-150405")); err != nil {
			return err
		}
	}
	if err := c.send(ctx, msgReopen, specs.Box{}); err != nil {
		return err
	}
	return poll(ctx, func() (bool, error) {
		now, err := os.Stat(s.LogPath)
		return err == nil && (before == nil || !os.SameFile(before, now)), nil
	})
}

// holds says whether the process has the file open.
func holds(pid int, file fs.FileInfo) bool {
	dir := "/proc/" + strconv.Itoa(pid) + "/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false
	}
	for _, e := range entries {
		if info, err := os.Stat(filepath.Join(dir, e.Name())); err == nil && os.SameFile(info, file) {
			return true
		}
	}
	return false
}

// Resize sets the size of the container's terminal, in characters.
func Resize(ctx context.Context, control string, size specs.Box) error {
	ctx, cancel := context.WithTimeout(ctx, controlTimeout)
	defer cancel()
	c, err := openControl(ctx, control)
	if err != nil {
		return fmt.Errorf("resize terminal: %w", err)
	}
	defer c.close()
	if err := c.send(ctx, msgResize, size); err != nil {
		return fmt.Errorf("resize terminal: %w", err)
	}
	return nil
}

// control is a locked control FIFO. conmon 2.1.6 takes several lines that it
// reads at once for as many copies of the first, so a rotation that follows a
// resize too closely would be lost: one message at a time, and the next only when
// the FIFO is empty again.
type control struct{ fd int }

func openControl(ctx context.Context, path string) (*control, error) {
	// Without O_NONBLOCK a FIFO that nobody reads blocks.
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENOENT) {
		return nil, fmt.Errorf("control FIFO %s: the monitor is gone: %w", path, errdefs.ErrState)
	}
	if err != nil {
		return nil, fmt.Errorf("control FIFO %s: %w", path, err)
	}
	c := &control{fd}
	err = poll(ctx, func() (bool, error) {
		err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			return false, nil
		}
		return err == nil, err
	})
	if err == nil {
		err = c.drained(ctx)
	}
	if err != nil {
		c.close()
		return nil, fmt.Errorf("control FIFO %s: %w", path, err)
	}
	return c, nil
}

// send writes one message and waits until conmon has read it.
func (c *control) send(ctx context.Context, kind int, size specs.Box) error {
	if _, err := unix.Write(c.fd, fmt.Appendf(nil, "%d %d %d\n", kind, size.Height, size.Width)); err != nil {
		return err
	}
	return c.drained(ctx)
}

func (c *control) drained(ctx context.Context) error {
	return poll(ctx, func() (bool, error) {
		n, err := unix.IoctlGetInt(c.fd, unix.TIOCINQ) // FIONREAD by its other name
		return n == 0, err
	})
}

func (c *control) close() { _ = unix.Close(c.fd) } // the lock goes with it

// poll asks until done says yes, an error, or the context ends.
func poll(ctx context.Context, done func() (bool, error)) error {
	for wait := time.Millisecond; ; wait = min(2*wait, 20*time.Millisecond) {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the monitor does not answer: %w", ctx.Err())
		case <-time.After(wait):
		}
	}
}
