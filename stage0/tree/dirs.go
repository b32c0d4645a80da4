package tree

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/inode"
)

const (
	// maxOpen bounds the descriptors of directories that are kept open.
	maxOpen = 256
	// maxLinks bounds the symbolic links on the way to one directory, as the kernel does.
	maxLinks = 40

	dirFlags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
)

// maxKept bounds the directories that are in memory between two entries. It is a
// variable for tests alone.
var maxKept = 4096

// dir is a directory that the layer has. The directories form a tree in
// memory, so that a path is resolved with system calls only where it leaves it,
// one component at a time and never through a symbolic link: what openat2 would
// guard is not asked of the kernel at all.
//
// However many directories a layer has, few are in memory: the others were given their
// times and dropped, and are loaded from the disk again when an entry needs them. What
// the disk does not tell are the marks.
type dir struct {
	parent *dir // nil: the root
	name   string
	kids   map[string]*dir // that are in memory
	fd     int             // -1: not open
	depth  int             // components from the root
	length int             // bytes of the path from the root, with a slash before it

	times   [2]unix.Timespec // that it gets when it is dropped
	implied bool             // no entry of its own so far; as in marks
	mark    *mark            // nil: it has none
}

func (d *dir) path() string {
	if d.parent == nil {
		return "."
	}
	b := make([]byte, d.length)
	for at := d; at.parent != nil; at = at.parent {
		b[at.length-len(at.name)-1] = '/'
		copy(b[at.length-len(at.name):], at.name)
	}
	return string(b[1:])
}

func (d *dir) close() {
	if d.fd >= 0 {
		_ = unix.Close(d.fd) // nothing was written through it
		d.fd = -1
	}
}

func (d *dir) add(name string) *dir {
	name = strings.Clone(name) // of a path that is longer
	k := &dir{parent: d, name: name, fd: -1, depth: d.depth + 1, length: d.length + 1 + len(name)}
	if d.kids == nil {
		d.kids = make(map[string]*dir)
	}
	d.kids[name] = k
	return k
}

// dirs is the tree of a layer's directories below an open root.
type dirs struct {
	root   *dir
	open   []*dir // with a descriptor, without the root
	makers *inode.Maker
	limits Limits
	marks  marks

	kept, most int   // directories in memory but for the root, and how many may stay
	dropped    int64 // directories that are on disk alone
	blocks     int64 // of 512 bytes, that those take

	lastPath string // resolved last: archives are sorted
	last     *dir

	made func() error // called before a directory is implied, to count it
}

// errAbsent says that a component of the path is not there.
var errAbsent = errors.New("no such directory in this layer")

// fd returns the directory's descriptor, opening it again when needed. It is
// valid until the next call of fd.
func (t *dirs) fd(d *dir) (int, error) {
	if d.fd >= 0 {
		return d.fd, nil
	}
	parent, err := t.fd(d.parent)
	if err != nil {
		return -1, err
	}
	fd, err := unix.Openat(parent, d.name, dirFlags, 0)
	if err != nil {
		return -1, fmt.Errorf("open directory %q: %w", d.path(), err)
	}
	if len(t.open) >= maxOpen {
		t.closeAll()
	}
	d.fd = fd
	t.open = append(t.open, d)
	return fd, nil
}

func (t *dirs) closeAll() {
	for _, d := range t.open {
		d.close()
	}
	t.open = t.open[:0]
}

// forget takes the directory, which has none below it, out of the tree.
func (t *dirs) forget(d *dir) {
	if d.implied || d.mark != nil {
		t.marks.forget(d.path())
	}
	t.unlink(d)
	t.reset()
}

func (t *dirs) unlink(d *dir) {
	delete(d.parent.kids, d.name)
	d.close()
	t.kept--
}

// trim drops all directories when too many are in memory. No pointer to one may be
// used after it.
func (t *dirs) trim() error {
	if t.kept <= t.most {
		return nil
	}
	return t.dropAll()
}

func (t *dirs) dropAll() error {
	t.reset()
	return t.dropBelow(t.root)
}

// dropBelow is as deep a recursion as the limit of paths allows.
func (t *dirs) dropBelow(d *dir) error {
	for _, k := range d.kids {
		if err := t.dropBelow(k); err != nil {
			return err
		}
		if err := t.drop(k); err != nil {
			return fmt.Errorf("directory %q: %w", k.path(), err)
		}
	}
	return nil
}

// drop gives the directory its times, counts what it takes, and forgets what the disk
// knows of it.
func (t *dirs) drop(d *dir) error {
	parent, err := t.fd(d.parent)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(parent, d.name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if err := unix.UtimesNanoAt(parent, d.name, d.times[:], unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set times: %w", syscallError(err))
	}
	t.dropped++
	t.blocks += st.Blocks
	t.unlink(d)
	return nil
}

// kid returns the directory of this name, nil if there is none.
func (t *dirs) kid(d *dir, name string) (*dir, error) {
	if k := d.kids[name]; k != nil {
		return k, nil
	}
	return t.load(d, name)
}

// load takes a directory that was dropped into memory again; nil if there is none.
func (t *dirs) load(d *dir, name string) (*dir, error) {
	if t.dropped == 0 {
		return nil, nil
	}
	fd, err := t.fd(d)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	err = unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) || err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("stat %q: %w", join(d, name), syscallError(err))
	}
	t.dropped--
	t.blocks -= st.Blocks
	k := t.add(d, name)
	k.times = [2]unix.Timespec{st.Atim, st.Mtim}
	path := k.path()
	_, k.implied = t.marks.implied[path]
	k.mark = t.marks.dirs[path]
	return k, nil
}

func (t *dirs) add(d *dir, name string) *dir {
	t.kept++
	return d.add(name)
}

// marked returns the mark of the directory, which gets one if it has none.
func (t *dirs) marked(d *dir) (*mark, error) {
	var err error
	if d.mark == nil {
		d.mark, err = t.marks.add(d.path())
	}
	return d.mark, err
}

func (t *dirs) setOpaque(d *dir) error {
	m, err := t.marked(d)
	m.opaque = true
	return err
}

// described says that the directory has an entry of its own.
func (t *dirs) described(d *dir) {
	if d.implied {
		d.implied = false
		t.marks.described(d.path())
	}
}

// reset must be called when a name that may lie on the way to the last
// directory has changed its meaning.
func (t *dirs) reset() { t.lastPath, t.last = "", nil }

// resolve returns the directory at the cleaned relative path. Symbolic links
// of this layer are followed as if its root were the root of everything. With
// create, what is missing is made as an implied directory; else it is errAbsent.
func (t *dirs) resolve(path string, create bool) (*dir, error) {
	if t.last != nil && path == t.lastPath {
		return t.last, nil
	}
	links := 0
	d, err := t.walk(t.root, path, create, &links)
	if err != nil {
		return nil, err
	}
	t.lastPath, t.last = path, d
	return d, nil
}

func (t *dirs) walk(d *dir, path string, create bool, links *int) (*dir, error) {
	if strings.HasPrefix(path, "/") {
		d = t.root
	}
	for name := range strings.SplitSeq(path, "/") {
		switch name {
		case "", ".":
			continue
		case "..":
			if d.parent != nil {
				d = d.parent
			}
			continue
		}
		next, err := t.step(d, name, create, links)
		if err != nil {
			return nil, err
		}
		d = next
	}
	return d, nil
}

func (t *dirs) step(d *dir, name string, create bool, links *int) (*dir, error) {
	if k := d.kids[name]; k != nil {
		return k, nil
	}
	fd, err := t.fd(d)
	if err != nil {
		return nil, err
	}
	var target [unix.PathMax]byte
	n, err := unix.Readlinkat(fd, name, target[:])
	switch {
	case err == nil:
		if *links++; *links > maxLinks {
			return nil, fmt.Errorf("more than %d symbolic links on the way: %w", maxLinks, errdefs.ErrInvalid)
		}
		return t.walk(d, string(target[:n]), create, links)
	case errors.Is(err, unix.ENOENT) && create:
		return t.imply(d, name)
	case errors.Is(err, unix.ENOENT):
		return nil, errAbsent
	case errors.Is(err, unix.EINVAL): // there, and no link
		if k, err := t.load(d, name); k != nil || err != nil {
			return k, err
		}
		return nil, fmt.Errorf("%q is not a directory: %w", join(d, name), errdefs.ErrInvalid)
	}
	return nil, fmt.Errorf("resolve %q: %w", join(d, name), syscallError(err))
}

// imply makes a directory that so far no entry describes: root's own, for
// everybody to read, whatever the umask and the directory above would make of it.
func (t *dirs) imply(d *dir, name string) (*dir, error) {
	if err := t.made(); err != nil {
		return nil, err
	}
	k, err := t.mkdir(d, name)
	if err != nil {
		return nil, syscallError(err)
	}
	k.implied = true
	if err := t.marks.imply(k.path()); err != nil {
		return nil, err
	}
	fd, err := t.fd(k)
	if err != nil {
		return nil, err
	}
	if err := unix.Fchown(fd, 0, 0); err != nil {
		return nil, fmt.Errorf("chown: %w", syscallError(err))
	}
	if err := unix.Fchmod(fd, 0o755); err != nil {
		return nil, fmt.Errorf("chmod: %w", syscallError(err))
	}
	return k, nil
}

func (t *dirs) mkdir(d *dir, name string) (*dir, error) {
	if err := t.check(d, name); err != nil {
		return nil, err
	}
	fd, err := t.fd(d)
	if err != nil {
		return nil, err
	}
	if err := t.makers.Make(func() error { return unix.Mkdirat(fd, name, 0o755) }); err != nil {
		return nil, err
	}
	return t.add(d, name), nil
}

// check holds the limits of paths.
func (t *dirs) check(d *dir, name string) error {
	if d.depth+1 > t.limits.Depth {
		return fmt.Errorf("deeper than %d directories: %w", t.limits.Depth, passed("depth"))
	}
	if d.length+1+len(name) > t.limits.PathLength {
		return fmt.Errorf("path longer than %d bytes: %w", t.limits.PathLength, passed("pathLength"))
	}
	if len(name) > t.limits.NameLength {
		return fmt.Errorf("name longer than %d bytes: %w", t.limits.NameLength, passed("nameLength"))
	}
	return nil
}

func join(d *dir, name string) string {
	if d.parent == nil {
		return name
	}
	return d.path() + "/" + name
}

// timespecs returns access and modification time for utimensat.
func timespecs(access, modification time.Time) [2]unix.Timespec {
	if access.IsZero() {
		access = modification
	}
	var ts [2]unix.Timespec
	for i, t := range []time.Time{access, modification} {
		ts[i].Sec = t.Unix()
		ts[i].Nsec = int64(t.Nanosecond())
	}
	return ts
}
