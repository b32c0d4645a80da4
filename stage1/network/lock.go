package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// addLock is the name of the lock of an ADD in the attachment's cache directory.
const addLock = "add.lock"

// orphanWait is how long DEL waits for the plugins of an ADD whose caller was killed.
const orphanWait = 5 * time.Second

// lockAdd takes the lock that ADD hands to its plugins and those to theirs: when
// the caller is killed, it is held until the last of them has ended, and a DEL
// before that would give back what the ADD is only about to take.
func (a Attachment) lockAdd() (*os.File, error) {
	if err := os.MkdirAll(a.CacheDir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(a.CacheDir, addLock), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("another ADD is at work: %w", err), f.Close())
	}
	return f, nil
}

// unlockAdd lets go of the lock for all who hold it: a plugin that ended well may
// have left a process behind.
func unlockAdd(f *os.File) {
	_ = unix.Flock(int(f.Fd()), unix.LOCK_UN) // cannot fail for a file that is open
	_ = f.Close()
}

// awaitAdd waits a while until the plugins of an ADD have ended.
func (a Attachment) awaitAdd(ctx context.Context) error {
	f, err := os.Open(filepath.Join(a.CacheDir, addLock))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	wait, cancel := context.WithTimeout(ctx, orphanWait)
	defer cancel()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		select {
		case <-wait.Done():
			return ctx.Err() // it hangs: DEL goes on without it
		case <-time.After(20 * time.Millisecond):
		}
	}
}
