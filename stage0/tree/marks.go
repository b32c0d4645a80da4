package tree

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// marks are what has to be remembered until the archive's end: of directories what is
// more than their attributes, and which files were replaced. Most layers have few of
// them or none; limit bounds the bytes.
type marks struct {
	limit, used int64 // bytes, about

	implied map[string]struct{} // directories without an entry of their own so far
	dirs    map[string]*mark    // by path, as implied
	// generations says of files, by path, how many were replaced.
	generations map[string]uint64
}

// mark is what is remembered of one directory.
type mark struct {
	opaque     bool     // hides lower layers: overlay's mark is due
	whiteouts  []string // names that this layer removes from lower ones
	xattrs     []string // keys of the extended attributes that it was given
	defaultACL []byte   // is set when all is made
}

// What an entry of the maps costs besides its strings, bytes.
const (
	impliedCost = 64
	markCost    = 160
	stringCost  = 32
)

func newMarks(limit int64) marks {
	return marks{limit: limit, implied: map[string]struct{}{".": {}}, dirs: map[string]*mark{}, generations: map[string]uint64{}}
}

func (m *marks) spend(n int) error {
	if m.used += int64(n); m.used > m.limit {
		return fmt.Errorf("implied directories, whiteouts, attributes of directories and replaced files that take more than %d bytes of memory: %w",
			m.limit, passed("memory"))
	}
	return nil
}

func (m *marks) imply(path string) error {
	m.implied[path] = struct{}{}
	return m.spend(len(path) + impliedCost)
}

// described says that the directory has an entry of its own.
func (m *marks) described(path string) {
	if _, ok := m.implied[path]; ok {
		delete(m.implied, path)
		m.used -= int64(len(path) + impliedCost)
	}
}

// add returns the mark of a directory that had none.
func (m *marks) add(path string) (*mark, error) {
	k := &mark{}
	m.dirs[path] = k
	return k, m.spend(len(path) + markCost)
}

// forget is for a directory that is no more.
func (m *marks) forget(path string) {
	m.described(path)
	if _, ok := m.dirs[path]; ok {
		delete(m.dirs, path)
		m.used -= int64(len(path) + markCost) // what is in it was little, or is not worth another count
	}
}

// replaced counts the files at a path that an entry replaced, and returns how many
// there were before.
func (m *marks) replaced(path string) (uint64, error) {
	n := m.generations[path]
	m.generations[path] = n + 1
	if n > 0 {
		return n, nil
	}
	return 0, m.spend(len(path) + impliedCost)
}

// hidden says whether a directory or one above it is opaque.
func (m *marks) hidden(path string) bool {
	for {
		if k := m.dirs[path]; k != nil && k.opaque {
			return true
		}
		if path == "." {
			return false
		}
		if i := strings.LastIndexByte(path, '/'); i >= 0 {
			path = path[:i]
		} else {
			path = "."
		}
	}
}

// sorted returns the paths of directories with marks, parents first.
func (m *marks) sorted() []string { return slices.SortedFunc(maps.Keys(m.dirs), parentsFirst) }
