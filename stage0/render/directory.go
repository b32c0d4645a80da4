package render

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/failpoint"
	"github.com/gantry-cri/gantry/stage0/tree"
)

// partSize is how many entries of a directory one worker copies at a time.
const partSize = 128

// worker copies one part after the other.
type worker struct {
	*copier
	ctx    context.Context //nolint:containedctx // the worker lives within one call
	buf    []byte          // of content
	dirent []byte
	value  []byte // of an extended attribute
}

// opened are the descriptors of one directory, in the copy and in the trees.
type opened struct {
	*directory
	to   int
	from []int // by place in trees; -1: not open
}

func (w *worker) open(d *directory) (*opened, error) {
	to, err := openDir(w.to, d.path)
	if err != nil {
		return nil, err
	}
	o := &opened{directory: d, to: to, from: make([]int, len(d.trees))}
	for i := range o.from {
		o.from[i] = -1
	}
	return o, nil
}

func (o *opened) close() {
	for _, fd := range append(o.from, o.to) {
		if fd >= 0 {
			_ = unix.Close(fd) // nothing was written through it
		}
	}
}

// source returns the descriptor of the directory in a tree that has it.
func (w *worker) source(o *opened, tree int) (int, error) {
	for i, t := range o.trees {
		if t != tree {
			continue
		}
		if o.from[i] >= 0 {
			return o.from[i], nil
		}
		fd, err := openDir(w.roots[t], o.path)
		o.from[i] = fd
		return fd, err
	}
	return -1, fmt.Errorf("no tree %d has %s", tree, o.path)
}

// part does a piece of work. Whoever does the last of a directory sets its
// attributes: making entries changes its times.
func (w *worker) part(p part) error {
	o, err := w.open(p.dir)
	if err != nil {
		return err
	}
	defer o.close()
	entries := p.entries
	if entries == nil {
		if entries, err = w.directory(o); err != nil {
			return fmt.Errorf("directory %q: %w", o.path, err)
		}
	}
	for _, e := range entries {
		if err := context.Cause(w.ctx); err != nil {
			return err
		}
		failpoint.Hit(failpoint.RootfsCopying)
		if err := w.entry(o, e); err != nil {
			return fmt.Errorf("%q: %w", path.Join(o.path, e.name), err)
		}
	}
	if o.left.Add(-1) > 0 {
		return nil
	}
	if err := w.seal(o); err != nil {
		return fmt.Errorf("directory %q: %w", o.path, err)
	}
	return nil
}

// directory makes the directories below and puts them onto the stack, and of the
// other entries all but the first part, which it returns.
func (w *worker) directory(o *opened) ([]entry, error) {
	m, err := w.merge(o)
	if err != nil {
		return nil, err
	}
	entries := m.entries
	for len(entries) > partSize {
		cut := len(entries) - partSize
		o.left.Add(1)
		w.pending.push(part{o.directory, entries[cut:]})
		entries = entries[:cut]
	}
	for name, trees := range m.dirs {
		if err := w.makers.Make(func() error { return unix.Mkdirat(o.to, name, 0o700) }); err != nil {
			return nil, &fs.PathError{Op: "mkdir", Path: name, Err: err}
		}
		w.pending.push(part{dir: newDirectory(path.Join(o.path, name), trees)})
	}
	return entries, nil
}

// merged is what an overlay shows in a directory.
type merged struct {
	entries []entry
	dirs    map[string][]int // trees that show through, topmost first
	// hidden are names of which lower trees show nothing. It is nil where one tree
	// alone has the directory.
	hidden map[string]bool
}

// merge lists the directory in all its trees, down to the first in which it is
// opaque. Those below that do not have it any more.
func (w *worker) merge(o *opened) (*merged, error) {
	m := &merged{dirs: map[string][]int{}}
	if len(o.trees) > 1 {
		m.hidden = map[string]bool{}
	}
	for i, t := range o.trees {
		fd, err := w.source(o, t)
		if err != nil {
			return nil, err
		}
		err = w.list(fd, func(name string, kind byte) error { return m.add(fd, entry{name, t}, kind) })
		if err != nil {
			return nil, err
		}
		opaque, err := tree.Opaque(fmt.Sprintf("/proc/self/fd/%d/.", fd))
		if err != nil {
			return nil, err
		}
		if opaque {
			o.trees = o.trees[:i+1]
			break
		}
	}
	if w.keep != nil {
		m.filter(o.path, w.keep)
	}
	return m, nil
}

// filter takes out what the copy is not to have.
func (m *merged) filter(dir string, keep func(Found) bool) {
	m.entries = slices.DeleteFunc(m.entries, func(e entry) bool {
		return !keep(Found{Path: path.Join(dir, e.name), Trees: []int{e.tree}})
	})
	maps.DeleteFunc(m.dirs, func(name string, trees []int) bool {
		return !keep(Found{Path: path.Join(dir, name), Dir: true, Trees: trees})
	})
}

// add takes a name of one tree, unless one above decides what is seen of it.
func (m *merged) add(fd int, e entry, kind byte) error {
	if m.hidden[e.name] {
		return nil
	}
	whiteout := false
	if kind == unix.DT_CHR || kind == unix.DT_UNKNOWN { // where the file system keeps no types
		var st unix.Stat_t
		if err := unix.Fstatat(fd, e.name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return &fs.PathError{Op: "lstat", Path: e.name, Err: err}
		}
		kind = byte(st.Mode >> 12) // as the kernel has it, see IFTODT in dirent.h
		whiteout = kind == unix.DT_CHR && st.Rdev == 0
	}
	_, isDir := m.dirs[e.name]
	if kind == unix.DT_DIR {
		m.dirs[e.name] = append(m.dirs[e.name], e.tree)
		return nil
	}
	if m.hidden != nil {
		m.hidden[e.name] = true
	}
	if !isDir && !whiteout {
		m.entries = append(m.entries, e)
	}
	return nil
}

// list calls f for each name in the directory, but for "." and "..".
func (w *worker) list(fd int, f func(name string, kind byte) error) error {
	if w.dirent == nil {
		w.dirent = make([]byte, 32<<10)
	}
	for {
		n, err := unix.Getdents(fd, w.dirent)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("getdents: %w", err)
		}
		if n == 0 {
			return nil
		}
		if err := eachRecord(w.dirent[:n], f); err != nil {
			return err
		}
	}
}

// eachRecord calls f for what getdents64 has filled b with. A struct linux_dirent64 is
// inode (8), offset (8), record length (2), type (1), name.
func eachRecord(b []byte, f func(name string, kind byte) error) error {
	for len(b) >= 19 {
		length := int(binary.NativeEndian.Uint16(b[16:18]))
		if length < 19 || length > len(b) {
			return fmt.Errorf("getdents: record of %d bytes", length)
		}
		name, _, _ := strings.Cut(string(b[19:length]), "\x00")
		if name != "." && name != ".." {
			if err := f(name, b[18]); err != nil {
				return err
			}
		}
		b = b[length:]
	}
	return nil
}

// seal gives the directory the attributes that it has in the topmost tree.
func (w *worker) seal(o *opened) error {
	from, err := w.source(o, o.trees[0])
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(from, &st); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	if err := w.mapOwner(&st); err != nil {
		return err
	}
	if err := w.attributes(o.to, from, &st); err != nil {
		return err
	}
	return setTimes(o.to, ".", &st)
}
