package tree

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// create calls do, which must not replace anything, with the descriptor of the
// place's directory; when the name is taken, what is there is removed and do
// called once more: a later entry of an archive replaces an earlier one.
func (w *writer) create(p place, do func(fd int) error) error {
	fd, err := w.dirs.fd(p.dir)
	if err != nil {
		return err
	}
	err = w.dirs.makers.Make(func() error { return do(fd) })
	if errors.Is(err, unix.EEXIST) {
		if err := w.remove(p); err != nil {
			return err
		}
		if fd, err = w.dirs.fd(p.dir); err != nil {
			return err
		}
		err = w.dirs.makers.Make(func() error { return do(fd) })
	}
	if err == nil {
		w.inodes++
	}
	return syscallError(err)
}

// regular writes a file. The order matters: chown clears set-id bits and file
// capabilities, and writing changes the time.
func (w *writer) regular(ctx context.Context, p place, h *tar.Header, content io.Reader) error {
	var fd int
	err := w.create(p, func(at int) (err error) {
		const flags = unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
		fd, err = unix.Openat(at, p.name, flags, mode(h))
		return err
	})
	if err != nil {
		return err
	}
	if w.pools(h) {
		return w.givePool(ctx, opened{p, fd}, h, content)
	}
	err = w.content(ctx, opened{p, fd}, h, content)
	var blocks int64
	if err == nil {
		blocks, err = describe(fd, h)
	}
	if err == nil {
		err = w.xattrs(h, func(key string, value []byte) error { return unix.Fsetxattr(fd, key, value, 0) })
	}
	if err := errors.Join(err, syscallError(unix.Close(fd))); err != nil {
		return err
	}
	if h.Size > smallFile || hasXattrs(h) {
		return w.addBlocks(p)
	}
	w.blocks += blocks
	return nil
}

// smallFile is the size up to which a file that is open takes no more blocks than when it
// is closed, bytes: for a larger one XFS reserves more than it needs.
const smallFile = 64 << 10

// describe gives an open file, whose content is written, owner, mode and times, and
// returns the blocks of 512 bytes that it takes now.
func describe(fd int, h *tar.Header) (blocks int64, err error) {
	st, err := attributes(fd, h)
	if err != nil {
		return 0, err
	}
	times := timespecs(h.AccessTime, h.ModTime)
	if err := unix.UtimesNanoAt(fd, "", times[:], unix.AT_EMPTY_PATH); err != nil {
		return 0, fmt.Errorf("set times: %w", syscallError(err))
	}
	return st.Blocks, nil
}

func hasXattrs(h *tar.Header) bool { return hasRecord(h, xattrRecord) }

// opened is a regular file that was made at a place.
type opened struct {
	place
	fd int
}

// spend counts a file's size against the limit.
func (w *writer) spend(h *tar.Header) error {
	if h.Size > w.limits.Bytes {
		return fmt.Errorf("file larger than %d bytes: %w", w.limits.Bytes, passed("bytes"))
	}
	if w.logical += h.Size; w.logical > w.limits.Bytes {
		return fmt.Errorf("files of more than %d bytes: %w", w.limits.Bytes, passed("bytes"))
	}
	return nil
}

func (w *writer) content(ctx context.Context, f opened, h *tar.Header, content io.Reader) error {
	if err := w.spend(h); err != nil || h.Size == 0 {
		return err
	}
	name := join(f.dir, f.name)
	generation := w.dirs.marks.generations[name]
	if w.split == nil {
		addContent(w.contents, name, generation)
		return syscallError(unix.Ftruncate(f.fd, h.Size))
	}
	w.split.begin(name, generation)
	err := w.copyContent(ctx, f.fd, h, content)
	w.split.end()
	return err
}

// copyContent writes the file and has its record written.
func (w *writer) copyContent(ctx context.Context, fd int, h *tar.Header, content io.Reader) error {
	sparse := isSparse(h)
	for left := h.Size; left > 0; {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		buf := w.buf[:min(left, chunkSize)]
		w.split.into(buf, h.Size-left)
		n, err := fill(content, buf)
		left -= int64(n)
		if err != nil && (left > 0 || !errors.Is(err, io.EOF)) {
			return readError(ctx, err)
		}
		if sparse {
			err = w.writeSparse(fd, w.buf[:n])
		} else {
			err = writeAll(fd, w.buf[:n])
		}
		if err != nil {
			return fmt.Errorf("write: %w", syscallError(err))
		}
	}
	if sparse { // it may end with a hole
		return syscallError(unix.Ftruncate(fd, h.Size))
	}
	return nil
}

func isSparse(h *tar.Header) bool {
	return h.Typeflag == tar.TypeGNUSparse || hasRecord(h, sparseRecord)
}

// hasRecord says whether there is a PAX record whose key begins so.
func hasRecord(h *tar.Header, prefix string) bool {
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, prefix) {
			return true
		}
	}
	return false
}

// writeSparse writes data but leaves holes where whole blocks are zero.
func (w *writer) writeSparse(fd int, data []byte) error {
	for len(data) > 0 {
		n := min(len(data), len(w.zeros))
		if bytes.Equal(data[:n], w.zeros[:n]) {
			if _, err := unix.Seek(fd, int64(n), io.SeekCurrent); err != nil {
				return err
			}
		} else if err := writeAll(fd, data[:n]); err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

func writeAll(fd int, data []byte) error {
	for len(data) > 0 {
		n, err := unix.Write(fd, data)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

// attributes sets owner and mode of an open file or directory, each only where it
// is not right already, and returns what the file was before. Extended attributes come
// after it.
func attributes(fd int, h *tar.Header) (st unix.Stat_t, err error) {
	uid, gid, err := owner(h)
	if err != nil {
		return st, err
	}
	if err := unix.Fstat(fd, &st); err != nil {
		return st, err
	}
	chowned := int(st.Uid) != uid || int(st.Gid) != gid
	if chowned {
		if err := unix.Fchown(fd, uid, gid); err != nil {
			return st, fmt.Errorf("chown: %w", syscallError(err))
		}
	}
	// The umask took bits away, or chown did.
	if st.Mode&0o7777 != mode(h) || chowned && mode(h)&0o6000 != 0 {
		if err := unix.Fchmod(fd, mode(h)); err != nil {
			return st, fmt.Errorf("chmod: %w", syscallError(err))
		}
	}
	return st, nil
}

// attributesAt is attributes for what has no descriptor: a link, a device.
func (w *writer) attributesAt(p place, h *tar.Header) error {
	uid, gid, err := owner(h)
	if err != nil {
		return err
	}
	fd, err := w.dirs.fd(p.dir)
	if err != nil {
		return err
	}
	if err := unix.Fchownat(fd, p.name, uid, gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("chown: %w", syscallError(err))
	}
	if h.Typeflag != tar.TypeSymlink { // a link has no mode of its own
		if err := unix.Fchmodat(fd, p.name, mode(h), 0); err != nil {
			return fmt.Errorf("chmod: %w", syscallError(err))
		}
	}
	at := fmt.Sprintf("/proc/self/fd/%d/%s", fd, p.name)
	err = w.xattrs(h, func(key string, value []byte) error { return unix.Lsetxattr(at, key, value, 0) })
	if err != nil {
		return err
	}
	return w.setTimes(p, h)
}

func (w *writer) setTimes(p place, h *tar.Header) error {
	fd, err := w.dirs.fd(p.dir)
	if err != nil {
		return err
	}
	times := timespecs(h.AccessTime, h.ModTime)
	if err := unix.UtimesNanoAt(fd, p.name, times[:], unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set times: %w", syscallError(err))
	}
	return nil
}

func mode(h *tar.Header) uint32 { return uint32(h.Mode & 0o7777) } //nolint:gosec // twelve bits

// xattrs sets the entry's extended attributes. Left out are overlay's own,
// which would change what the layer means, and labels, which belong to the
// mount; also what the file system does not keep, but for file capabilities:
// without them a program would fail far from here.
func (w *writer) xattrs(h *tar.Header, set func(key string, value []byte) error) error {
	if len(h.PAXRecords) == 0 {
		return nil
	}
	for _, record := range slices.Sorted(maps.Keys(h.PAXRecords)) {
		key, ok := strings.CutPrefix(record, xattrRecord)
		if !ok || key == selinuxXattr {
			continue
		}
		if strings.HasPrefix(key, overlayXattrs) {
			w.skip(h.Name, "attribute "+shorten(key)+" is overlay's own")
			continue
		}
		err := set(key, []byte(h.PAXRecords[record]))
		unkept := errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPERM) && strings.HasPrefix(key, "user.")
		if unkept && key != "security.capability" {
			w.skip(h.Name, "attribute "+shorten(key)+": "+err.Error())
			continue
		}
		if err != nil {
			return fmt.Errorf("set attribute %q: %w", shorten(key), syscallError(err))
		}
	}
	return nil
}

// directory makes a directory, or gives one that is there the entry's attributes.
func (w *writer) directory(p place, h *tar.Header) error {
	d := p.dir.kids[p.name]
	if d == nil {
		made, err := w.dirs.mkdir(p.dir, p.name)
		if errors.Is(err, unix.EEXIST) {
			made, err = w.existing(p)
		}
		if err != nil {
			return syscallError(err)
		}
		d = made
	}
	return w.directoryAttributes(d, h)
}

// existing returns the directory at a place where something is, which it replaces if
// that is none.
func (w *writer) existing(p place) (*dir, error) {
	if d, err := w.dirs.load(p.dir, p.name); d != nil || err != nil {
		return d, err
	}
	if err := w.remove(p); err != nil {
		return nil, err
	}
	d, err := w.dirs.mkdir(p.dir, p.name)
	if err != nil {
		return nil, err
	}
	// What was here hid the lower layers' directory, which does not come back.
	return d, w.dirs.setOpaque(d)
}

// rootEntry is the archive's entry of the layer's root itself.
func (w *writer) rootEntry(h *tar.Header) error {
	if h.Typeflag != tar.TypeDir {
		return fmt.Errorf("the root is not a directory: %w", errdefs.ErrInvalid)
	}
	return w.directoryAttributes(w.dirs.root, h)
}

func (w *writer) directoryAttributes(d *dir, h *tar.Header) error {
	fd, err := w.dirs.fd(d)
	if err != nil {
		return err
	}
	w.dirs.described(d)
	d.times = timespecs(h.AccessTime, h.ModTime)
	if _, err := attributes(fd, h); err != nil {
		return err
	}
	if m := d.mark; m != nil { // of an earlier entry of the same directory
		for _, key := range m.xattrs {
			if err := unix.Fremovexattr(fd, key); err != nil {
				return fmt.Errorf("remove attribute %q: %w", shorten(key), syscallError(err))
			}
		}
		m.xattrs, m.defaultACL = nil, nil
	}
	return w.xattrs(h, func(key string, value []byte) error {
		m, err := w.dirs.marked(d)
		if err != nil {
			return err
		}
		if key == defaultACL {
			m.defaultACL = value // what is made in the directory would inherit it
			return w.dirs.marks.spend(len(value))
		}
		if err := unix.Fsetxattr(fd, key, value, 0); err != nil {
			return err
		}
		m.xattrs = append(m.xattrs, strings.Clone(key))
		return w.dirs.marks.spend(len(key) + stringCost)
	})
}

func (w *writer) symlink(p place, h *tar.Header) error {
	if h.Linkname == "" || len(h.Linkname) >= unix.PathMax {
		return fmt.Errorf("symbolic link to a target of %d bytes: %w", len(h.Linkname), errdefs.ErrInvalid)
	}
	err := w.create(p, func(fd int) error { return unix.Symlinkat(h.Linkname, fd, p.name) })
	if err != nil {
		return err
	}
	if err := w.addBlocks(p); err != nil {
		return err
	}
	return w.attributesAt(p, h)
}

// hardlink links to what an earlier entry of this layer made. A target in a
// lower layer cannot be linked to: it lies in another tree.
func (w *writer) hardlink(p place, h *tar.Header) error {
	target := clean(h.Linkname)
	absent := fmt.Errorf("hard link to %q, which this layer does not have before: %w", shorten(h.Linkname), errdefs.ErrInvalid)
	d, err := w.dirs.resolve(strings.TrimSuffix(path.Dir(target), "/"), false)
	if errors.Is(err, errAbsent) {
		return absent
	}
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", shorten(h.Linkname), err)
	}
	base := path.Base(target)
	k, err := w.dirs.kid(d, base)
	if err != nil {
		return err
	}
	if k != nil || target == "." {
		return fmt.Errorf("hard link to directory %q: %w", shorten(h.Linkname), errdefs.ErrInvalid)
	}
	if d == p.dir && base == p.name {
		return nil // itself
	}
	err = w.create(p, func(int) error { return w.link(place{d, base}, p) })
	switch {
	case err == nil:
		w.inodes-- // no new one
	case errors.Is(err, unix.ENOENT):
		return absent
	}
	return err
}

func (w *writer) link(from, to place) error {
	// The second descriptor may close the first to make room: ask for both again.
	if _, err := w.dirs.fd(from.dir); err != nil {
		return err
	}
	b, err := w.dirs.fd(to.dir)
	if err != nil {
		return err
	}
	a, err := w.dirs.fd(from.dir)
	if err != nil {
		return err
	}
	return unix.Linkat(a, from.name, b, to.name, 0)
}

func (w *writer) special(p place, h *tar.Header) error {
	kind := map[byte]uint32{tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeFifo: unix.S_IFIFO}[h.Typeflag]
	dev := 0
	if h.Typeflag != tar.TypeFifo {
		if h.Devmajor < 0 || h.Devminor < 0 || h.Devmajor > math.MaxUint32 || h.Devminor > math.MaxUint32 {
			return fmt.Errorf("device %d:%d: %w", h.Devmajor, h.Devminor, errdefs.ErrInvalid)
		}
		if h.Typeflag == tar.TypeChar && h.Devmajor == 0 && h.Devminor == 0 {
			w.skip(h.Name, "a character device 0:0 would be a whiteout")
			return nil
		}
		dev = int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))) //nolint:gosec // as mknod takes it
	}
	err := w.create(p, func(fd int) error { return unix.Mknodat(fd, p.name, kind|mode(h), dev) })
	if err != nil {
		return err
	}
	return w.attributesAt(p, h)
}

func (w *writer) addBlocks(p place) error {
	st, err := w.lstat(p)
	w.blocks += st.Blocks
	return err
}

func (w *writer) lstat(p place) (st unix.Stat_t, err error) {
	fd, err := w.dirs.fd(p.dir)
	if err != nil {
		return st, err
	}
	err = unix.Fstatat(fd, p.name, &st, unix.AT_SYMLINK_NOFOLLOW)
	return st, err
}

// remove takes away what is at the place, a whole directory too, and what was
// counted for it; directories are counted at the end.
func (w *writer) remove(p place) error {
	if err := w.settle(); err != nil { // it may be in the pool, and is counted below
		return err
	}
	d, err := w.dirs.kid(p.dir, p.name)
	if err != nil {
		return err
	}
	if d != nil {
		if err := w.empty(d); err != nil {
			return fmt.Errorf("replace directory: %w", err)
		}
		w.dirs.forget(d)
		fd, err := w.dirs.fd(p.dir)
		if err != nil {
			return err
		}
		return unix.Unlinkat(fd, p.name, unix.AT_REMOVEDIR)
	}
	w.dirs.reset() // it may be a link on the way to the last directory
	st, err := w.lstat(p)
	if err != nil {
		return err
	}
	if st.Nlink == 1 {
		w.blocks -= st.Blocks
		w.inodes--
	}
	if err := w.keepReplaced(p, st); err != nil {
		return err
	}
	fd, err := w.dirs.fd(p.dir)
	if err != nil {
		return err
	}
	return unix.Unlinkat(fd, p.name, 0)
}

// empty removes all that is in the directory. The depth of the recursion is
// bounded by the limit of paths.
func (w *writer) empty(d *dir) error {
	for {
		names, err := w.names(d)
		if err != nil || len(names) == 0 {
			return err
		}
		for _, name := range names {
			if err := w.remove(place{d, name}); err != nil {
				return err
			}
		}
	}
}

// names returns the first names in a directory, none if it is empty.
func (w *writer) names(d *dir) ([]string, error) {
	fd, err := w.dirs.fd(d)
	if err != nil {
		return nil, err
	}
	if _, err := unix.Seek(fd, 0, io.SeekStart); err != nil {
		return nil, err
	}
	for {
		n, err := unix.ReadDirent(fd, w.buf[:namesSize])
		if err != nil || n == 0 {
			return nil, err
		}
		_, _, names := unix.ParseDirent(w.buf[:n], -1, nil)
		if len(names) > 0 { // more than "." and ".."
			return names, nil
		}
	}
}

// namesSize is how much of a directory is read at once, bytes: as many names are in
// memory as fit in there, at each depth.
const namesSize = 8 << 10
