// Package inode has files made one after the other where that is faster.
//
// ext4 keeps several inodes in one block of its inode table. To fill in a new one it
// need not read the block while all others in it are free, and has it in memory later
// on (__ext4_get_inode_loc in the kernel's fs/ext4/inode.c). Of two files that are made
// at the same moment each finds the other's inode taken, so both read, and wait for a
// disk that is busy with what is being written to it. No other file system that Gantry
// knows of does that.
package inode

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Maker lets callers make files of one file system. It may be used by several
// goroutines.
type Maker struct {
	turn *sync.Mutex // nil where all may at once
}

// NewMaker returns the Maker for the file system on which path lies.
func NewMaker(path string) (*Maker, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return nil, fmt.Errorf("file system of %s: %w", path, os.NewSyscallError("statfs", err))
	}
	m := &Maker{}
	if fs.Type == unix.EXT4_SUPER_MAGIC {
		m.turn = &sync.Mutex{}
	}
	return m, nil
}

// Make calls do, which makes a file, a directory, a link or a device by one system
// call, when it is its turn. The error is that of do.
func (m *Maker) Make(do func() error) error {
	if m.turn != nil {
		m.turn.Lock()
		defer m.turn.Unlock()
	}
	return do()
}
