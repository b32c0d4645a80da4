// Package usage counts what files take on disk, as du does.
package usage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"
)

// Usage is what something takes on disk.
type Usage struct {
	Bytes  int64 `json:"bytes"` // allocated blocks, not lengths
	Inodes int64 `json:"inodes"`
}

// Plus returns the sum of both.
func (u Usage) Plus(v Usage) Usage {
	return Usage{Bytes: u.Bytes + v.Bytes, Inodes: u.Inodes + v.Inodes}
}

// Single is what a file or a directory takes by itself; what is not there takes
// nothing.
func Single(path string) (Usage, error) {
	var st syscall.Stat_t
	err := syscall.Lstat(path, &st)
	if errors.Is(err, fs.ErrNotExist) {
		return Usage{}, nil
	}
	if err != nil {
		return Usage{}, &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	return Usage{Bytes: st.Blocks * 512, Inodes: 1}, nil
}

// Of counts path and all below it, a file with several hard links once. What goes
// away while it is walked, path itself included, takes nothing.
func Of(ctx context.Context, path string) (Usage, error) {
	type inode struct{ dev, ino uint64 }
	seen := map[inode]bool{}
	var u Usage
	err := filepath.WalkDir(path, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		var info fs.FileInfo
		if err == nil {
			info, err = d.Info()
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return nil
		}
		if st.Nlink > 1 && !info.IsDir() {
			id := inode{st.Dev, st.Ino}
			if seen[id] {
				return nil
			}
			seen[id] = true
		}
		u = u.Plus(Usage{Bytes: st.Blocks * 512, Inodes: 1})
		return nil
	})
	if err != nil {
		return Usage{}, fmt.Errorf("measure %s: %w", path, err)
	}
	return u, nil
}
