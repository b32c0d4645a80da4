package render

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/tree"
)

// entry copies what is not a directory.
func (w *worker) entry(o *opened, e entry) error {
	from, err := w.source(o, e.tree)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(from, e.name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	if err := w.mapOwner(&st); err != nil {
		return err
	}
	if st.Nlink == 1 {
		return w.file(o.to, from, e, &st)
	}
	l, mine := w.links.claim(fileID{e.tree, st.Ino}, path.Join(o.path, e.name))
	if mine {
		err := w.file(o.to, from, e, &st)
		l.failed = err != nil
		close(l.made)
		return err
	}
	<-l.made // its maker waits for nobody
	if l.failed {
		<-w.ctx.Done() // the maker's error is the one to tell
		return context.Cause(w.ctx)
	}
	if err := unix.Linkat(w.to, l.path, o.to, e.name, 0); err != nil {
		return fmt.Errorf("link to %q: %w", l.path, err)
	}
	return nil
}

// mapOwner makes the owner that the copy is to have of the one in the tree.
func (w *worker) mapOwner(st *unix.Stat_t) (err error) {
	if w.ids != nil {
		st.Uid, st.Gid, err = w.ids.Owner(st.Uid, st.Gid)
	}
	return err
}

func (w *worker) file(to, from int, e entry, st *unix.Stat_t) error {
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		err = w.regular(to, from, e, st)
	case unix.S_IFLNK:
		err = w.symlink(to, from, e.name, st)
	default:
		err = w.special(to, from, e.name, st)
	}
	if err != nil {
		return err
	}
	return setTimes(to, e.name, st)
}

// regular copies a file. The order matters: writing changes the time, and like
// chown it clears set-id bits and file capabilities.
func (w *worker) regular(to, from int, e entry, st *unix.Stat_t) (err error) {
	src, err := unix.Openat(from, e.name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NOATIME|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer unix.Close(src) //nolint:errcheck // only read
	const flags = unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
	var dst int
	err = w.makers.Make(func() (err error) {
		dst, err = unix.Openat(to, e.name, flags, st.Mode&0o7777)
		return err
	})
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Close(dst)) }()
	if err := w.content(dst, src, e.tree, st); err != nil {
		return err
	}
	return w.attributes(dst, src, st)
}

// content clones the file, or copies it but for its holes.
func (w *worker) content(dst, src, tree int, st *unix.Stat_t) error {
	if st.Size == 0 {
		return nil
	}
	if !w.uncopy[tree].Load() {
		err := unix.IoctlFileClone(dst, src)
		if err == nil {
			return nil
		}
		switch {
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOTTY), errors.Is(err, unix.EXDEV), errors.Is(err, unix.ENOSYS):
			w.uncopy[tree].Store(true) // no file of the tree can be
		case !errors.Is(err, unix.EINVAL): // this one alone cannot
			return fmt.Errorf("clone: %w", err)
		}
	}
	if st.Blocks*512 >= st.Size {
		return w.span(dst, src, 0, st.Size)
	}
	return w.sparse(dst, src, st.Size)
}

// sparse copies what lies between a file's holes.
func (w *worker) sparse(dst, src int, size int64) error {
	if err := unix.Ftruncate(dst, size); err != nil {
		return fmt.Errorf("truncate: %w", err)
	}
	for end := int64(0); ; {
		start, err := unix.Seek(src, end, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // holes to the end
		}
		if err != nil {
			return fmt.Errorf("seek data: %w", err)
		}
		if end, err = unix.Seek(src, start, unix.SEEK_HOLE); err != nil {
			return fmt.Errorf("seek hole: %w", err)
		}
		if err := w.span(dst, src, start, end); err != nil {
			return err
		}
	}
}

// span copies the bytes from start to end.
func (w *worker) span(dst, src int, start, end int64) error {
	if w.buf == nil {
		w.buf = make([]byte, 256<<10)
	}
	for start < end {
		if err := context.Cause(w.ctx); err != nil {
			return err
		}
		n, err := unix.Pread(src, w.buf[:min(end-start, int64(len(w.buf)))], start)
		if err != nil {
			return fmt.Errorf("read: %w", err)
		}
		if n == 0 {
			return fmt.Errorf("read: %w", io.ErrUnexpectedEOF)
		}
		for b := w.buf[:n]; len(b) > 0; {
			m, err := unix.Pwrite(dst, b, start)
			if err != nil {
				return fmt.Errorf("write: %w", err)
			}
			b, start = b[m:], start+int64(m)
			w.written(int64(m))
		}
	}
	return nil
}

// attributes sets owner, mode and extended attributes of an open file or
// directory, each only where it is not right already.
func (w *worker) attributes(dst, src int, st *unix.Stat_t) error {
	var is unix.Stat_t
	if err := unix.Fstat(dst, &is); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	chown := is.Uid != st.Uid || is.Gid != st.Gid
	if chown {
		if err := unix.Fchown(dst, int(st.Uid), int(st.Gid)); err != nil {
			return fmt.Errorf("chown: %w", err)
		}
	}
	// The umask took bits away, or chown did.
	if is.Mode != st.Mode || chown && st.Mode&0o6000 != 0 {
		if err := unix.Fchmod(dst, st.Mode&0o7777); err != nil {
			return fmt.Errorf("chmod: %w", err)
		}
	}
	return w.xattrs(xattrs{
		list: func(b []byte) (int, error) { return unix.Flistxattr(src, b) },
		get:  func(name string, b []byte) (int, error) { return unix.Fgetxattr(src, name, b) },
		set:  func(name string, b []byte) error { return unix.Fsetxattr(dst, name, b, 0) },
	})
}

func (w *worker) symlink(to, from int, name string, st *unix.Stat_t) error {
	target := make([]byte, max(st.Size+1, unix.PathMax)) // some file systems do not say the length
	n, err := unix.Readlinkat(from, name, target)
	if err != nil {
		return fmt.Errorf("read link: %w", err)
	}
	if err := w.makers.Make(func() error { return unix.Symlinkat(string(target[:n]), to, name) }); err != nil {
		return fmt.Errorf("make link: %w", err)
	}
	return w.attributesAt(to, from, name, st)
}

// special makes a device, pipe or socket.
func (w *worker) special(to, from int, name string, st *unix.Stat_t) error {
	err := w.makers.Make(func() error {
		return unix.Mknodat(to, name, st.Mode&^0o7777|0o600, int(st.Rdev)) //nolint:gosec // as mknod takes it
	})
	if err != nil {
		return fmt.Errorf("mknod: %w", err)
	}
	return w.attributesAt(to, from, name, st)
}

// attributesAt is attributes for what cannot be opened.
func (w *worker) attributesAt(to, from int, name string, st *unix.Stat_t) error {
	if err := unix.Fchownat(to, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("chown: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK { // a link has no mode of its own
		if err := unix.Fchmodat(to, name, st.Mode&0o7777, 0); err != nil {
			return fmt.Errorf("chmod: %w", err)
		}
	}
	src, dst := fmt.Sprintf("/proc/self/fd/%d/%s", from, name), fmt.Sprintf("/proc/self/fd/%d/%s", to, name)
	return w.xattrs(xattrs{
		list: func(b []byte) (int, error) { return unix.Llistxattr(src, b) },
		get:  func(name string, b []byte) (int, error) { return unix.Lgetxattr(src, name, b) },
		set:  func(name string, b []byte) error { return unix.Lsetxattr(dst, name, b, 0) },
	})
}

// xattrs are the calls that reach the extended attributes of two files.
type xattrs struct {
	list func([]byte) (int, error)
	get  func(string, []byte) (int, error)
	set  func(string, []byte) error
}

// xattrs copies extended attributes, but for overlay's own and labels.
func (w *worker) xattrs(x xattrs) error {
	const most = 64 << 10 // the kernel's XATTR_LIST_MAX and XATTR_SIZE_MAX
	if w.value == nil {
		w.value = make([]byte, 2*most)
	}
	n, err := x.list(w.value[:most])
	if errors.Is(err, unix.EOPNOTSUPP) || n == 0 && err == nil {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list attributes: %w", err)
	}
	value := w.value[most:]
	for name := range strings.SplitSeq(strings.TrimSuffix(string(w.value[:n]), "\x00"), "\x00") {
		if tree.OfLayer(name) {
			continue
		}
		n, err := x.get(name, value)
		v := value[:max(n, 0)]
		if err == nil && w.ids != nil {
			v, err = w.ids.Xattr(name, v)
		}
		if err == nil {
			err = x.set(name, v)
		}
		if err != nil {
			return fmt.Errorf("copy attribute %s: %w", name, err)
		}
	}
	return nil
}

func setTimes(at int, name string, st *unix.Stat_t) error {
	times := []unix.Timespec{st.Atim, st.Mtim}
	if err := unix.UtimesNanoAt(at, name, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set times: %w", err)
	}
	return nil
}
