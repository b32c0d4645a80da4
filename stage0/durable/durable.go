// Package durable puts files and directories on disk so that they survive: what a
// reader sees is whole or not there, what was written outlives what the caller
// says, and a lock keeps others away meanwhile.
//
// Whoever makes something big works under another name and then calls [Rename];
// whoever makes a small file calls [WriteFile], which does the same.
package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/failpoint"
)

// Survival says what a file outlives.
type Survival int

const (
	// Kill is the death of the process: the file is there as a whole or not at all.
	Kill Survival = iota
	// Flush is Kill with the bytes on disk. The name is not, until the caller syncs
	// the directory: for several files of one directory.
	Flush
	// PowerCut is a file that is on disk with its name.
	PowerCut
)

// WriteFile writes a small file and renames it to path, where it replaces what
// was there; it has the mode whatever the umask. A process that is killed before
// the rename leaves a hidden file beside path, which goes with the directory.
func WriteFile(path string, data []byte, mode fs.FileMode, s Survival) error {
	f, err := writeHidden(path, data, mode)
	if err != nil {
		return err
	}
	if s != Kill {
		err = f.Sync()
	}
	if err = giveName(f, path, errors.Join(err, f.Close())); err != nil || s != PowerCut {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// writeHidden writes a file beside path. After an error it is gone.
func writeHidden(path string, data []byte, mode fs.FileMode) (*os.File, error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", path, NoSpace(err))
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Chmod(mode)); err != nil {
		return nil, errors.Join(fmt.Errorf("write %s: %w", path, NoSpace(err)), f.Close(), os.Remove(f.Name()))
	}
	return f, nil
}

// giveName renames what writeHidden made to path, if nothing failed before; else, and
// when that fails, it deletes it.
func giveName(f *os.File, path string, failed error) error {
	err := failed
	if err == nil {
		failpoint.Hit(failpoint.FileWritten)
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, NoSpace(err)), os.Remove(f.Name()))
	}
	return nil
}

// Rename moves what is complete and synced to its place, and makes the move
// durable. renamed is hit when it is not durable yet.
func Rename(from, to string, renamed failpoint.Point) error {
	if err := os.Rename(from, to); err != nil {
		return NoSpace(err)
	}
	failpoint.Hit(renamed)
	return SyncDir(filepath.Dir(to))
}

// SyncDir makes the names in a directory durable.
func SyncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync: %w", NoSpace(err))
	}
	return nil
}

// SyncDirs is SyncDir for several, at once: a journal writes what waits together in
// one go.
func SyncDirs(paths ...string) error {
	var g errgroup.Group
	for _, path := range paths {
		g.Go(func() error { return SyncDir(path) })
	}
	return g.Wait()
}

// SyncFS makes all durable that was written to the file system of a directory. Who else
// syncs it meanwhile may be told of a write that failed in place of this call: see
// FileSystem.
func SyncFS(path string) error {
	disk, err := OpenFileSystem(path)
	if err != nil {
		return err
	}
	return errors.Join(disk.Sync(), disk.Close())
}

// FileSystem is the file system of a directory. The kernel tells each open file once of
// the writes that failed since it was opened, and of those before only if nobody has been
// told: who opens it before the first write misses none, whoever else syncs it.
type FileSystem struct {
	dir *os.File
}

// OpenFileSystem opens the file system of a directory. The caller closes it.
func OpenFileSystem(path string) (FileSystem, error) {
	d, err := os.Open(path)
	if err != nil {
		return FileSystem{}, fmt.Errorf("sync file system: %w", err)
	}
	return FileSystem{d}, nil
}

// FileSystemOf is the file system of an open directory, which stays the caller's.
func FileSystemOf(dir *os.File) FileSystem { return FileSystem{dir} }

// Sync makes all durable that was written, and fails if something that was written since
// the directory was opened is not.
func (f FileSystem) Sync() error {
	if err := unix.Syncfs(int(f.dir.Fd())); err != nil {
		return fmt.Errorf("sync file system of %s: %w", f.dir.Name(), NoSpace(os.NewSyscallError("syncfs", err)))
	}
	return nil
}

// Close gives the descriptor back.
func (f FileSystem) Close() error { return f.dir.Close() }

// NoSpace adds the class ErrNoSpace to an error that says that disk or quota are
// full, and returns every other error as it is.
func NoSpace(err error) error {
	if errors.Is(err, errdefs.ErrNoSpace) {
		return err
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w: %w", errdefs.ErrNoSpace, err)
	}
	return err
}
