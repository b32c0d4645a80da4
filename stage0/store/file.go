package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/failpoint"
)

// writeSynced makes a file whose bytes are on disk when it returns.
func writeSynced(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return asNoSpace(err)
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, asNoSpace(err))
	}
	return nil
}

// syncDir makes the names in a directory durable.
func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync %s: %w", path, asNoSpace(err))
	}
	return nil
}

// renameSynced moves what is complete and synced to its place, and makes the
// move durable. between is hit when it is not durable yet.
func renameSynced(from, to string, between failpoint.Point) error {
	if err := os.Rename(from, to); err != nil {
		return asNoSpace(err)
	}
	failpoint.Hit(between)
	return syncDir(filepath.Dir(to))
}

// asNoSpace gives a full disk or an exhausted quota its class.
func asNoSpace(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w: %w", errdefs.ErrNoSpace, err)
	}
	return err
}

// isTransient tells whether reading failed for want of something that the
// process or the node lacks now, so that it says nothing about the file.
func isTransient(err error) bool {
	for _, e := range []error{unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.EINTR, unix.EAGAIN} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
