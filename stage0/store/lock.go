package store

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/gantry-cri/gantry/stage0/durable"
)

// LockShared holds off the collection of images and trees until unlock is
// called: whoever looks whether a tree is there and then makes a record that
// needs it holds the lock over both. It waits for a collection that runs, as
// long as ctx allows.
func (s *Store) LockShared(ctx context.Context) (unlock func(), err error) {
	return s.lockDir(ctx, imagesDir, durable.Shared)
}

// TryLockExclusive is for collection: nobody else makes or looks for trees and
// image records until unlock is called. ErrBusy says that somebody does: a pull
// holds the shared lock for as long as it takes, so that is not waited for.
func (s *Store) TryLockExclusive() (unlock func(), err error) {
	return unlocker(durable.TryLock(filepath.Join(s.dir, imagesDir), durable.Exclusive))
}

// lockDir locks one of the store's own directories, which are never removed.
func (s *Store) lockDir(ctx context.Context, name string, m durable.Mode) (func(), error) {
	return unlocker(durable.Lock(ctx, filepath.Join(s.dir, name), m))
}

func unlocker(f *os.File, err error) (func(), error) {
	if err != nil {
		return nil, err
	}
	return func() { durable.Unlock(f) }, nil
}

// LockLayer makes the caller the only one, of this process and of all others,
// who fetches the layer called name (a tree's name). The lock is a file in tmp,
// which unlock removes.
//
// Whoever waits for a layer's lock must hold no other: two pulls that want the
// same two layers would wait for each other.
func (s *Store) LockLayer(ctx context.Context, name string) (unlock func(), err error) {
	return s.lockLayer(name, func(path string) (*os.File, error) { return durable.LockFile(ctx, path) })
}

// TryLockLayer is LockLayer for those who hold locks of other layers: it returns
// ErrBusy instead of waiting.
func (s *Store) TryLockLayer(name string) (unlock func(), err error) {
	return s.lockLayer(name, durable.TryLockFile)
}

func (s *Store) lockLayer(name string, lock func(path string) (*os.File, error)) (func(), error) {
	path := filepath.Join(s.dir, tmpDir, lockPrefix+name)
	f, err := lock(path)
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", name, err)
	}
	return func() {
		// Removed while it is locked, so that nobody can hold a lock on a file
		// that still has the name and is about to lose it. What a failure leaves
		// behind the sweep takes.
		_ = os.Remove(path)
		durable.Unlock(f)
	}, nil
}
