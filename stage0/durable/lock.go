package durable

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// Mode says with whom a lock is shared.
type Mode int

const (
	// Shared is held by any number at once, while nobody holds it exclusively.
	Shared Mode = unix.LOCK_SH
	// Exclusive is held by one.
	Exclusive Mode = unix.LOCK_EX
)

// Lock takes the flock(2) of the file or directory at path and waits for it as
// long as ctx allows, whose cause it returns. It is held until Unlock, or until
// the process ends. fs.ErrNotExist says that nothing is at path any more: a lock
// on what was deleted or moved away meanwhile protects nothing.
func Lock(ctx context.Context, path string, m Mode) (*os.File, error) {
	return lockNamed(path, func(f *os.File) error { return wait(ctx, f, m) })
}

// TryLock is Lock that returns ErrBusy instead of waiting.
func TryLock(path string, m Mode) (*os.File, error) {
	return lockNamed(path, func(f *os.File) error { return try(f, m) })
}

// LockFile is an exclusive Lock of a file that is made when it is missing. Who
// holds it may remove it: those who wait make another.
func LockFile(ctx context.Context, path string) (*os.File, error) {
	return lockMade(path, func(f *os.File) error { return wait(ctx, f, Exclusive) })
}

// TryLockFile is LockFile that returns ErrBusy instead of waiting.
func TryLockFile(path string) (*os.File, error) {
	return lockMade(path, func(f *os.File) error { return try(f, Exclusive) })
}

// Unlock gives the lock up for all who have the file, and closes it: a child that
// was forked and has not yet executed has a copy. Neither can fail for a file
// that is open.
func Unlock(f *os.File) {
	_ = unix.Flock(int(f.Fd()), unix.LOCK_UN)
	_ = f.Close()
}

func lockNamed(path string, lock func(*os.File) error) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	same, err := lockAndLook(f, path, lock)
	if err != nil {
		return nil, err
	}
	if !same {
		return nil, &fs.PathError{Op: "lock", Path: path, Err: fs.ErrNotExist}
	}
	return f, nil
}

func lockMade(path string, lock func(*os.File) error) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, fmt.Errorf("lock: %w", NoSpace(err))
		}
		if same, err := lockAndLook(f, path, lock); err != nil {
			return nil, err
		} else if same {
			return f, nil
		}
	}
}

// lockAndLook locks f, then tells whether it is still what path leads to. When it
// is not, or on an error, f is closed or about to be.
func lockAndLook(f *os.File, path string, lock func(*os.File) error) (bool, error) {
	if err := lock(f); err != nil {
		return false, fmt.Errorf("lock %s: %w", path, err)
	}
	same, err := leadsTo(path, f)
	if err != nil {
		Unlock(f)
		return false, fmt.Errorf("lock %s: %w", path, err)
	}
	if !same {
		Unlock(f)
	}
	return same, nil
}

func leadsTo(path string, f *os.File) (bool, error) {
	open, err := f.Stat()
	if err != nil {
		return false, err
	}
	named, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return os.SameFile(open, named), nil
}

// try and wait own f when they fail.
func try(f *os.File, m Mode) error {
	err := flock(f, int(m)|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = errdefs.ErrBusy
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	return nil
}

// wait cannot interrupt flock(2), and asking again and again would let a stream
// of shared holders starve an exclusive waiter. So a waiter whose context ends
// leaves a goroutine behind, which gives the lock back as soon as it comes.
func wait(ctx context.Context, f *os.File, m Mode) error {
	err := flock(f, int(m)|unix.LOCK_NB)
	if err == nil {
		return nil
	}
	if !errors.Is(err, unix.EWOULDBLOCK) {
		return errors.Join(err, f.Close())
	}
	done := make(chan error, 1)
	go func() { done <- flock(f, int(m)) }()
	select {
	case err := <-done:
		if err != nil {
			return errors.Join(err, f.Close())
		}
		return nil
	case <-ctx.Done():
		go func() {
			if <-done == nil {
				Unlock(f)
			} else {
				_ = f.Close()
			}
		}()
		return context.Cause(ctx)
	}
}

func flock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
