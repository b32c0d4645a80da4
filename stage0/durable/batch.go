package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Batch is small files that become durable together, in a directory which counts for
// nothing yet. Its zero value is empty; whoever writes one closes it.
type Batch struct {
	files []*os.File
}

// Write is WriteFile of a file that survives a kill, and with Sync a power cut. After
// one in between its name may lead to anything.
func (b *Batch) Write(path string, data []byte, mode fs.FileMode) error {
	f, err := writeHidden(path, data, mode)
	if err != nil {
		return err
	}
	if err := giveName(f, path, nil); err != nil {
		return errors.Join(err, f.Close())
	}
	b.files = append(b.files, f)
	return nil
}

// Sync makes the files durable, and the names in the directories.
//
// A journal writes at once what came before it began to, and a file that is not written
// back yet gets its place on disk only by its own fsync(2), too late for the commit that
// another's has begun. So all are on their way before the first is waited for.
func (b *Batch) Sync(dirs ...string) error {
	for _, f := range b.files {
		// It waits for nothing and promises nothing. Its error is one of writing all
		// the same, which the fsync may not be told of.
		if err := unix.SyncFileRange(int(f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE); err != nil {
			return fmt.Errorf("write %s: %w", f.Name(), NoSpace(os.NewSyscallError("sync_file_range", err)))
		}
	}
	var g errgroup.Group
	for _, f := range b.files {
		g.Go(f.Sync)
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("sync: %w", NoSpace(err))
	}
	return SyncDirs(dirs...)
}

// Close gives the descriptors back. What was written stays.
func (b *Batch) Close() error {
	var errs []error
	for _, f := range b.files {
		errs = append(errs, f.Close())
	}
	b.files = nil
	return errors.Join(errs...)
}
