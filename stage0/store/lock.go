package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// LockShared holds off the collection of images and trees until unlock is
// called: whoever looks whether a tree is there and then makes a record that
// needs it holds the lock over both. It waits for a collection that runs, as
// long as ctx allows.
func (s *Store) LockShared(ctx context.Context) (unlock func(), err error) {
	return s.lockDir(ctx, imagesDir, unix.LOCK_SH)
}

// LockExclusive is for collection: nobody else makes or looks for trees and
// image records until unlock is called. Whoever holds it does no I/O over the
// network.
func (s *Store) LockExclusive(ctx context.Context) (unlock func(), err error) {
	return s.lockDir(ctx, imagesDir, unix.LOCK_EX)
}

// lockDir locks one of the store's own directories, which are never removed.
func (s *Store) lockDir(ctx context.Context, name string, how int) (func(), error) {
	f, err := os.Open(filepath.Join(s.dir, name))
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	if err := flock(ctx, f, how); err != nil {
		return nil, fmt.Errorf("lock %s: %w", filepath.Join(s.dir, name), err)
	}
	return func() { unflock(f) }, nil
}

// LockLayer makes the caller the only one, of this process and of all others,
// who fetches the layer called name (a tree's name). The lock is a file in tmp,
// which unlock removes.
//
// Whoever waits for a layer's lock must hold no other: two pulls that want the
// same two layers would wait for each other.
func (s *Store) LockLayer(ctx context.Context, name string) (unlock func(), err error) {
	return s.lockLayer(name, func(f *os.File) error { return flock(ctx, f, unix.LOCK_EX) })
}

// TryLockLayer is LockLayer for those who hold locks of other layers: it returns
// ErrBusy instead of waiting.
func (s *Store) TryLockLayer(name string) (unlock func(), err error) {
	return s.lockLayer(name, func(f *os.File) error {
		err := flockNow(f, unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = errdefs.ErrBusy
		}
		if err != nil {
			return errors.Join(err, f.Close())
		}
		return nil
	})
}

// lockLayer opens and locks the layer's lock file until the file that it locked
// is the one that has the name: the holder before may have removed it meanwhile.
// lock closes the file when it fails.
func (s *Store) lockLayer(name string, lock func(*os.File) error) (func(), error) {
	path := filepath.Join(s.dir, tmpDir, lockPrefix+name)
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, fmt.Errorf("lock layer %s: %w", name, asNoSpace(err))
		}
		if err := lock(f); err != nil {
			return nil, fmt.Errorf("lock layer %s: %w", name, err)
		}
		same, err := isNamed(f, path)
		if err != nil {
			unflock(f)
			return nil, fmt.Errorf("lock layer %s: %w", name, err)
		}
		if same {
			return func() {
				// Removed while it is locked, so that nobody can hold a lock on
				// a file that still has the name and is about to lose it. What a
				// failure leaves behind the sweep takes.
				_ = os.Remove(path)
				unflock(f)
			}, nil
		}
		unflock(f)
	}
}

// isNamed tells whether the open file is still the one at path.
func isNamed(f *os.File, path string) (bool, error) {
	open, err := f.Stat()
	if err != nil {
		return false, err
	}
	named, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return os.SameFile(open, named), nil
}

// flock waits for the lock as long as ctx allows. On an error f is closed, now
// or, when the wait was given up, as soon as the kernel ends it.
func flock(ctx context.Context, f *os.File, how int) error {
	err := flockNow(f, how|unix.LOCK_NB)
	if err == nil {
		return nil
	}
	if !errors.Is(err, unix.EWOULDBLOCK) {
		return errors.Join(err, f.Close())
	}
	// flock(2) cannot be interrupted from another thread, and asking again and
	// again would let a stream of shared holders starve an exclusive waiter.
	done := make(chan error, 1)
	go func() { done <- flockNow(f, how) }()
	select {
	case err := <-done:
		if err != nil {
			return errors.Join(err, f.Close())
		}
		return nil
	case <-ctx.Done():
		go func() {
			if err := <-done; err == nil {
				unflock(f)
			}
		}()
		return ctx.Err()
	}
}

func flockNow(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// unflock gives the lock up before it closes the file: a child that was forked
// and has not yet executed holds a copy of the descriptor. Neither can fail for
// a file that is open.
func unflock(f *os.File) {
	_ = unix.Flock(int(f.Fd()), unix.LOCK_UN)
	_ = f.Close()
}
