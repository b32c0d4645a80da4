package tree

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/durable"
	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/format"
)

const (
	whiteoutPrefix = ".wh."
	aufsPrefix     = ".wh..wh."
	opaqueName     = ".wh..wh..opq"

	overlayXattrs = "trusted.overlay."
	opaqueXattr   = "trusted.overlay.opaque"
	selinuxXattr  = "security.selinux"
	defaultACL    = "system.posix_acl_default"
	xattrRecord   = "SCHILY.xattr."
	sparseRecord  = "GNU.sparse."
)

// writer writes the entries of one layer's archive below a fresh root
// directory. Nobody else changes what lies there meanwhile.
type writer struct {
	tmp    string // the entry of tmp that the tree is made in
	limits Limits
	// take writes one entry: what kind of archive it is decides.
	take func(ctx context.Context, h *tar.Header, content io.Reader) error
	seen func(n int) // nil, or told of the bytes of the archive as they are read
	// literal says that names are names: no entry is a whiteout or an opaque mark.
	literal bool
	split   *splitter // nil: no record is written, and files are made without content
	dirs    dirs
	buf     []byte
	zeros   []byte // as long as a hole is worth leaving

	entries int64 // counted against the limit
	logical int64 // bytes of all files, holes included, against the limit
	inodes  int64
	blocks  int64 // of 512 bytes
	tarSize int64

	generations map[string]uint64 // of files, by path: how many were replaced
	contents    hash.Hash         // of which files have content, in the archive's order

	implied, whiteouts []string
	skipped            []Skipped
}

func newWriter(tmp string, limits Limits) (*writer, error) {
	fd, err := unix.Open(filepath.Join(tmp, rootfsName), dirFlags, 0)
	if err != nil {
		return nil, fmt.Errorf("open tree: %w", err)
	}
	w := &writer{tmp: tmp, limits: limits, contents: sha256.New(), buf: make([]byte, chunkSize), zeros: make([]byte, 4096)}
	w.take = w.entry
	w.dirs = dirs{root: &dir{fd: fd, implied: true}, limits: limits, made: w.count}
	if err := unix.Fchmod(fd, 0o755); err != nil { // whatever the umask
		return nil, errors.Join(fmt.Errorf("open tree: %w", err), unix.Close(fd))
	}
	return w, nil
}

func (w *writer) close() error {
	w.dirs.closeAll()
	return unix.Close(w.dirs.root.fd)
}

func (w *writer) meta() Meta {
	return Meta{
		Schema: format.Tree.Current, Size: w.blocks * 512, Inodes: w.inodes,
		Implied: w.implied, Whiteouts: w.whiteouts, Skipped: w.skipped, TarSize: w.tarSize,
	}
}

// layer writes all entries of the archive and reads it to its very end.
func (w *writer) layer(ctx context.Context, in *ringReader) error {
	counted := &countReader{r: in, seen: w.seen}
	var tar io.Reader = counted
	drain := counted.drain
	if s := w.split; s != nil {
		s.in = counted
		tar, drain = s, s.drain
	}
	err := w.archive(ctx, tar)
	if w.split != nil && w.split.err != nil {
		return fmt.Errorf("write %s: %w", splitFile, durable.NoSpace(w.split.err))
	}
	if err != nil && !errors.Is(err, errArchive) {
		return err
	}
	if err := errors.Join(err, drain()); err != nil {
		return err
	}
	w.tarSize = counted.n
	return w.finish(ctx)
}

func (w *writer) archive(ctx context.Context, in io.Reader) error {
	r := tar.NewReader(in)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return readError(ctx, err)
		}
		if err := w.take(ctx, h, r); err != nil {
			return fmt.Errorf("entry %q: %w", shorten(h.Name), err)
		}
	}
}

// readError tells the end of ctx from an archive that cannot be read.
func readError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return fmt.Errorf("read tar: %w: %w", errArchive, err)
}

// entry writes one entry. Its name is taken relative to the root, whatever it
// begins with and however many ".." it has.
func (w *writer) entry(ctx context.Context, h *tar.Header, content io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if err := w.count(); err != nil {
		return err
	}
	name := clean(h.Name)
	if name == "." {
		return w.rootEntry(h)
	}
	// Before the path is taken apart: a name of a mebibyte costs no walk.
	if len(name) > w.limits.PathLength {
		return fmt.Errorf("path longer than %d bytes: %w", w.limits.PathLength, passed("pathLength"))
	}
	parent, base := path.Split(name)
	if !w.literal && (hasAUFS(parent) || base != opaqueName && hasAUFS(base)) {
		return nil // AUFS's own bookkeeping, which says nothing of the layer
	}
	d, err := w.dirs.resolve(strings.TrimSuffix(parent, "/"), true)
	if err != nil {
		return err
	}
	if removed, ok := strings.CutPrefix(base, whiteoutPrefix); ok && !w.literal {
		if base == opaqueName {
			d.opaque = true
			return nil
		}
		return whiteout(d, removed)
	}
	if err := w.dirs.check(d, base); err != nil {
		return err
	}
	return w.object(ctx, place{d, base}, h, content)
}

// place is where an entry goes: a name in a directory.
type place struct {
	dir  *dir
	name string
}

func (w *writer) object(ctx context.Context, p place, h *tar.Header, content io.Reader) error {
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		return w.regular(ctx, p, h, content)
	case tar.TypeDir:
		return w.directory(p, h)
	case tar.TypeSymlink:
		return w.symlink(p, h)
	case tar.TypeLink:
		return w.hardlink(p, h)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return w.special(p, h)
	}
	return fmt.Errorf("type %q: %w", h.Typeflag, errdefs.ErrUnsupported)
}

func clean(name string) string {
	if c := path.Clean("/" + name)[1:]; c != "" {
		return c
	}
	return "."
}

func hasAUFS(name string) bool {
	return strings.HasPrefix(name, aufsPrefix) || strings.Contains(name, "/"+aufsPrefix)
}

func whiteout(d *dir, name string) error {
	if name == "" || name == "." || name == ".." {
		return fmt.Errorf("whiteout of no name: %w", errdefs.ErrInvalid)
	}
	if d.whiteouts == nil {
		d.whiteouts = make(map[string]struct{})
	}
	d.whiteouts[name] = struct{}{}
	return nil
}

// count counts an entry, or a directory that one implies, against the limit.
func (w *writer) count() error {
	if w.entries++; w.entries > w.limits.Entries {
		return fmt.Errorf("the layer has more than %d entries: %w", w.limits.Entries, passed("entries"))
	}
	return nil
}

func (w *writer) skip(name, reason string) {
	if len(w.skipped) < maxSkipped {
		w.skipped = append(w.skipped, Skipped{Path: shorten(name), Reason: reason})
	}
}

// finish writes what only the whole archive decides: whiteouts, opaque marks
// and the directories' times. A name that the layer itself has stays, whatever
// came first; a directory with a whiteout of its name hides the lower one.
func (w *writer) finish(ctx context.Context) error {
	err := w.dirs.each(func(d *dir) error {
		if err := w.writeWhiteouts(d); err != nil {
			return err
		}
		return context.Cause(ctx)
	})
	if err != nil {
		return err
	}
	err = w.dirs.each(func(d *dir) error {
		if d.implied {
			w.implied = append(w.implied, d.path())
		}
		if err := w.sealDirectory(d); err != nil {
			return fmt.Errorf("directory %q: %w", d.path(), err)
		}
		return context.Cause(ctx)
	})
	slices.Sort(w.implied)
	slices.Sort(w.whiteouts)
	return err
}

// writeWhiteouts writes those of one directory. Below an opaque directory
// there is nothing to remove, and a whiteout there would show up in listings.
func (w *writer) writeWhiteouts(d *dir) error {
	d.alone = d.opaque || d.parent != nil && d.parent.alone
	before := w.inodes
	for name := range d.whiteouts {
		if k := d.kids[name]; k != nil {
			// What the layer has below is all there is: nothing is left to inherit from.
			k.opaque, k.implied = true, false
			continue
		}
		if d.alone {
			continue
		}
		if err := w.writeWhiteout(d, name); err != nil {
			return fmt.Errorf("whiteout of %q: %w", join(d, name), err)
		}
	}
	if w.inodes > before {
		w.whiteouts = append(w.whiteouts, d.path())
	}
	return nil
}

func (w *writer) writeWhiteout(d *dir, name string) error {
	if err := w.dirs.check(d, name); err != nil {
		return err
	}
	fd, err := w.dirs.fd(d)
	if err != nil {
		return err
	}
	err = unix.Mknodat(fd, name, unix.S_IFCHR, 0)
	if errors.Is(err, unix.EEXIST) {
		return nil // the layer's own
	}
	if err == nil {
		w.inodes++
	}
	return syscallError(err)
}

func (w *writer) setDefaultACL(d *dir, fd int) error {
	err := unix.Fsetxattr(fd, defaultACL, d.defaultACL, 0)
	if errors.Is(err, unix.EOPNOTSUPP) {
		w.skip(d.path(), "attribute "+defaultACL+": "+err.Error())
		return nil
	}
	if err != nil {
		return fmt.Errorf("set attribute %q: %w", defaultACL, syscallError(err))
	}
	return nil
}

func (w *writer) sealDirectory(d *dir) error {
	fd, err := w.dirs.fd(d)
	if err != nil {
		return err
	}
	if d.opaque {
		if err := unix.Fsetxattr(fd, opaqueXattr, []byte("y"), 0); err != nil {
			return fmt.Errorf("set %s: %w", opaqueXattr, syscallError(err))
		}
	}
	if d.defaultACL != nil {
		if err := w.setDefaultACL(d, fd); err != nil {
			return err
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	w.blocks += st.Blocks
	w.inodes++
	times := d.times[:]
	if d.parent == nil {
		return unix.UtimesNanoAt(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), times, 0)
	}
	parent, err := w.dirs.fd(d.parent)
	if err != nil {
		return err
	}
	return unix.UtimesNanoAt(parent, d.name, times, unix.AT_SYMLINK_NOFOLLOW)
}

// countReader counts what is read, and drains its source.
type countReader struct {
	r    *ringReader
	n    int64
	seen func(n int) // may be nil
}

func (c *countReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	if c.seen != nil {
		c.seen(n)
	}
	return n, err
}

func (c *countReader) drain() error {
	for {
		rest, err := c.r.peek()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		c.n += int64(len(rest))
		c.r.skip(len(rest))
	}
}

// shorten keeps a name from an archive fit for a message.
func shorten(name string) string {
	if len(name) > 256 {
		return name[:256] + "…"
	}
	return name
}

// syscallError adds the class to an error of a system call: what the archive
// asks for that no file system has is ErrInvalid.
func syscallError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENAMETOOLONG), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EMLINK):
		return fmt.Errorf("%w: %w", errdefs.ErrInvalid, err)
	}
	return durable.NoSpace(err)
}

// owner returns the entry's owner for chown, where -1 would mean no change.
func owner(h *tar.Header) (uid, gid int, err error) {
	for _, id := range []int{h.Uid, h.Gid} {
		if id < 0 || id >= math.MaxUint32 {
			return 0, 0, fmt.Errorf("owner %d:%d: %w", h.Uid, h.Gid, errdefs.ErrInvalid)
		}
	}
	return h.Uid, h.Gid, nil
}
