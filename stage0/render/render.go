// Package render copies a stack of trees into one directory, which then has what
// an overlay of the trees shows: the root filesystem of a pod where overlay
// cannot be had.
//
// Files are cloned where the file system shares extents (FICLONE), else read and
// written. Content, owners, modes, times to the nanosecond, extended
// attributes, hard links, devices and holes are kept. Whiteouts, opaque marks and
// overlay's other attributes are not: what they say has been done.
//
// The work is cut into directories and, within large ones, groups of entries,
// which several workers take from a stack.
package render

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/durable"
	"github.com/gantry-cri/gantry/stage0/failpoint"
	"github.com/gantry-cri/gantry/stage0/idmap"
	"github.com/gantry-cri/gantry/stage0/inode"
)

// Job is one copy.
type Job struct {
	// Roots are the root directories of the trees, topmost first; at least one.
	// Nobody changes them meanwhile.
	Roots []string
	// To is the path of the directory to make, whose parent exists.
	To string
	// Survival is what the copy outlives once Run has returned.
	Survival durable.Survival
	// Keep says of each path but the root whether the copy is to have it; a directory
	// that is left out takes along all that is below it. It is called by several
	// goroutines. Nil keeps everything.
	Keep func(Found) bool
	// IDs maps owners, and the ids in file capabilities and access lists; nil keeps
	// them. A file whose owner it does not have ends the copy with ErrInvalid.
	IDs *idmap.Map
}

// Found is a path that the trees show.
type Found struct {
	Path string // relative to the root
	Dir  bool
	// Trees are those that show through there, topmost first, by their place in
	// Job.Roots. They are one for anything but a directory.
	Trees []int
}

// Run makes the copy under another name, syncs it if it is to survive a power
// cut, and renames it to where it belongs. After an error, of which ErrNoSpace
// may be the class, what was made is left for the owner of the parent directory
// to delete.
func (j Job) Run(ctx context.Context) error {
	if err := j.run(ctx); err != nil {
		return fmt.Errorf("copy trees to %s: %w", j.To, durable.NoSpace(err))
	}
	return nil
}

func (j Job) run(ctx context.Context) error {
	fresh := j.To + ".new"
	if err := os.Mkdir(fresh, 0o700); err != nil {
		return err
	}
	if j.Survival != durable.PowerCut {
		if err := j.copyTrees(ctx, fresh, func(int64) {}); err != nil {
			return err
		}
		failpoint.Hit(failpoint.RootfsCopied)
		return os.Rename(fresh, j.To)
	}
	if err := j.copySynced(ctx, fresh); err != nil {
		return err
	}
	failpoint.Hit(failpoint.RootfsCopied)
	if err := os.Rename(fresh, j.To); err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(j.To))
}

// copySynced makes the copy durable, but not its name.
func (j Job) copySynced(ctx context.Context, fresh string) (err error) {
	disk, err := durable.OpenFileSystem(fresh) // before the first write: it is told of all that fail
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, disk.Close()) }()
	back := durable.NewWriteBack(fresh, writebackEvery)
	err = j.copyTrees(ctx, fresh, back.Add)
	back.Wait()
	if err != nil {
		return err
	}
	return disk.Sync()
}

// writebackEvery is after how many bytes what was copied begins to go to disk: soon, as
// the disk has more to do for a copy than the processors.
const writebackEvery = 16 << 20

// copier is what the workers of one copy share.
type copier struct {
	roots   []int         // of the trees, topmost first
	uncopy  []atomic.Bool // by tree: its files cannot be cloned to the target
	to      int           // the root of the copy
	makers  *inode.Maker
	written func(int64) // told of bytes that are to go to disk
	keep    func(Found) bool
	ids     *idmap.Map // nil: owners are kept
	pending stack
	links   links
}

// directory is one that the copy is to have. It exists, empty, when it gets onto
// the stack.
type directory struct {
	path string // relative to the root, which is "."
	// trees are those that have it, topmost first, by their place in roots.
	trees []int
	left  atomic.Int32 // parts of it that are not copied yet
}

// part is a piece of work: the whole of a directory while entries is nil, then
// groups of its entries.
type part struct {
	dir     *directory
	entries []entry
}

// entry is anything but a directory.
type entry struct {
	name string
	tree int // the one that it comes from
}

func (j Job) copyTrees(parent context.Context, to string, written func(int64)) (err error) {
	makers, err := inode.NewMaker(to)
	if err != nil {
		return err
	}
	c := &copier{uncopy: make([]atomic.Bool, len(j.Roots)), to: -1, makers: makers, written: written, keep: j.Keep, ids: j.IDs}
	defer func() {
		for _, fd := range append(c.roots, c.to) {
			if fd >= 0 {
				_ = unix.Close(fd) // only files below were written
			}
		}
	}()
	all := make([]int, len(j.Roots))
	for i, root := range j.Roots {
		fd, err := openDir(unix.AT_FDCWD, root)
		if err != nil {
			return err
		}
		c.roots, all[i] = append(c.roots, fd), i
	}
	if c.to, err = openDir(unix.AT_FDCWD, to); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)
	c.pending.init()
	c.pending.push(part{dir: newDirectory(".", all)})
	var workers sync.WaitGroup
	for range workerCount() {
		workers.Go(func() { c.work(ctx, cancel) })
	}
	workers.Wait()
	return context.Cause(ctx)
}

// workerCount is more than there are cores: a worker also waits for the disk.
func workerCount() int { return 2 * runtime.GOMAXPROCS(0) }

func newDirectory(path string, trees []int) *directory {
	d := &directory{path: path, trees: trees}
	d.left.Store(1) // the listing
	return d
}

// work takes parts until none is left or one has failed. What is left then is
// taken off the stack all the same, so that everybody ends.
func (c *copier) work(ctx context.Context, fail context.CancelCauseFunc) {
	w := &worker{copier: c, ctx: ctx}
	for p, ok := c.pending.pop(); ok; p, ok = c.pending.pop() {
		err := context.Cause(ctx)
		if err == nil {
			err = w.part(p)
		}
		if err != nil {
			fail(err)
		}
		c.pending.done()
	}
}

// stack holds the work that nobody has begun. The last to come is the first to
// go, which keeps it short: a directory is done before its siblings.
type stack struct {
	mu     sync.Mutex
	change sync.Cond // of what follows
	parts  []part
	taken  int // parts that are being worked on, and may bring more
}

func (s *stack) init() { s.change.L = &s.mu }

func (s *stack) push(p part) {
	s.mu.Lock()
	s.parts = append(s.parts, p)
	s.mu.Unlock()
	s.change.Signal()
}

// pop waits for work; false says that there will be none.
func (s *stack) pop() (part, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.parts) == 0 {
		if s.taken == 0 {
			return part{}, false
		}
		s.change.Wait()
	}
	last := len(s.parts) - 1
	p := s.parts[last]
	s.parts[last] = part{}
	s.parts = s.parts[:last]
	s.taken++
	return p, true
}

func (s *stack) done() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken--
	if s.taken == 0 && len(s.parts) == 0 {
		s.change.Broadcast()
	}
}

// links finds the copy of a file that was met under another name.
type links struct {
	mu    sync.Mutex
	files map[fileID]*link
}

type fileID struct {
	tree int
	ino  uint64
}

// link is the first name of a file with several.
type link struct {
	path   string        // relative to the root of the copy
	made   chan struct{} // closed when it is there, or its maker failed
	failed bool          // set before made is closed
}

// claim returns the link of a file, and whether the caller is the one to make it.
func (l *links) claim(id fileID, path string) (*link, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if k := l.files[id]; k != nil {
		return k, false
	}
	if l.files == nil {
		l.files = make(map[fileID]*link)
	}
	k := &link{path: path, made: make(chan struct{})}
	l.files[id] = k
	return k, true
}

func openDir(at int, path string) (int, error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(at, path, flags, 0)
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}
