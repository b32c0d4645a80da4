package tree

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

const (
	// maxOpen bounds the descriptors of directories that are kept open.
	maxOpen = 256
	// maxLinks bounds the symbolic links on the way to one directory, as the kernel does.
	maxLinks = 40

	dirFlags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
)

// dir is a directory that the layer has. The directories form a tree in
// memory, so that a path is resolved with system calls only where it leaves it
// for the first time, one component at a time and never through a symbolic
// link: what openat2 would guard is not asked of the kernel at all.
type dir struct {
	parent *dir // nil: the root
	name   string
	kids   map[string]*dir
	fd     int // -1: not open
	depth  int // components from the root
	length int // bytes of the path from the root

	implied   bool // no entry of its own so far
	opaque    bool // hides lower layers: overlay's mark is due
	alone     bool // it or a parent is opaque
	times     [2]unix.Timespec
	whiteouts map[string]struct{} // names that this layer removes from lower ones

	xattrs     []string // keys of the extended attributes that it was given
	defaultACL []byte   // is set when all is made
}

func (d *dir) path() string {
	if d.parent == nil {
		return "."
	}
	if d.parent.parent == nil {
		return d.name
	}
	return d.parent.path() + "/" + d.name
}

func (d *dir) close() {
	if d.fd >= 0 {
		_ = unix.Close(d.fd) // nothing was written through it
		d.fd = -1
	}
}

func (d *dir) add(name string) *dir {
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
	limits Limits

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
	delete(d.parent.kids, d.name)
	d.close()
	t.reset()
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
	case errors.Is(err, unix.EINVAL): // there, and no link; directories are all known
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
	if err := unix.Mkdirat(fd, name, 0o755); err != nil {
		return nil, err
	}
	return d.add(name), nil
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

// each calls f for every directory, parents first.
func (t *dirs) each(f func(*dir) error) error {
	stack := []*dir{t.root}
	for len(stack) > 0 {
		d := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if err := f(d); err != nil {
			return err
		}
		for _, k := range d.kids {
			stack = append(stack, k)
		}
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
