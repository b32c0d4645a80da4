package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/gantry-cri/gantry/stage0/durable"
	"github.com/gantry-cri/gantry/stage0/errdefs"
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
	f, err := durable.TryLockFile(filepath.Join(a.CacheDir, addLock))
	if errors.Is(err, errdefs.ErrBusy) {
		err = fmt.Errorf("another ADD is at work: %w", err)
	}
	return f, err
}

// awaitAdd waits a while until the plugins of an ADD have ended.
func (a Attachment) awaitAdd(ctx context.Context) error {
	wait, cancel := context.WithTimeout(ctx, orphanWait)
	defer cancel()
	for {
		f, err := durable.TryLock(filepath.Join(a.CacheDir, addLock), durable.Exclusive)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil {
			durable.Unlock(f)
		}
		if !errors.Is(err, errdefs.ErrBusy) {
			return err
		}
		select {
		case <-wait.Done():
			return ctx.Err() // it hangs: DEL goes on without it
		case <-time.After(20 * time.Millisecond):
		}
	}
}
