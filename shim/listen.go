package shim

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/gantry-cri/gantry/stage0/durable"
	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// socketMode lets root and the socket's group in.
const socketMode = 0o660

// lockTime is how long a daemon waits for another's lock: a child that one forked, and
// that has not executed yet when the daemon is killed, has a copy of it.
const lockTime = time.Second

// lockDir makes sure that one daemon at a time works on a data directory: ErrBusy says
// that another does. The lock goes with the file, or with the process.
func lockDir(ctx context.Context, dir string) (*os.File, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, lockTime, errdefs.ErrBusy)
	defer cancel()
	f, err := durable.LockFile(ctx, filepath.Join(dir, "daemon.lock"))
	if errors.Is(err, errdefs.ErrBusy) {
		err = fmt.Errorf("another daemon works on it: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return f, nil
}

// listen opens a unix socket that has its mode from the first moment: it is made
// under another name and renamed. What a dead daemon left is replaced; ErrBusy
// says that a live one listens.
func listen(ctx context.Context, path string) (*socket, error) {
	if err := checkStale(ctx, path); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	temp := path + ".n"
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temp, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	s := &socket{UnixListener: l, path: path}
	if err = os.Chmod(temp, socketMode); err == nil {
		s.info, err = os.Stat(temp)
	}
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", path, err), l.Close(), os.Remove(temp))
	}
	return s, nil
}

func checkStale(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	switch {
	case err == nil:
		return errors.Join(fmt.Errorf("listen on %s: somebody listens there: %w", path, errdefs.ErrBusy), conn.Close())
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil
	}
	return fmt.Errorf("listen on %s: %w", path, err)
}

// socket is a listener that takes its file away when it is closed, unless the
// file is somebody else's by then.
type socket struct {
	*net.UnixListener
	path string
	info os.FileInfo
}

// Close is part of net.Listener.
func (s *socket) Close() error {
	if now, err := os.Stat(s.path); err == nil && os.SameFile(now, s.info) {
		if err := os.Remove(s.path); err != nil {
			return errors.Join(err, s.UnixListener.Close())
		}
	}
	return s.UnixListener.Close()
}
