package tree

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
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
	seen func(n int64) // nil, or told of the bytes of the archive as they are read
	// literal says that names are names: no entry is a whiteout or an opaque mark.
	literal bool
	split   *splitter   // nil: no record is written, and files are made without content
	alone   func() bool // nil, or says whether no other archive is being extracted
	pool    *pool       // nil until there is a file for it
	dirs    dirs
	buf     []byte
	zeros   []byte // as long as a hole is worth leaving

	entries int64 // counted against the limit
	logical int64 // bytes of all files, holes included, against the limit
	inodes  int64
	blocks  int64 // of 512 bytes
	tarSize int64

	contents hash.Hash // of which files have content, in the archive's order

	implied, whiteouts []string
	skipped            []Skipped
}

func (s *Store) newWriter(tmp string, limits Limits) (*writer, error) {
	fd, err := unix.Open(filepath.Join(tmp, rootfsName), dirFlags, 0)
	if err != nil {
		return nil, fmt.Errorf("open tree: %w", err)
	}
	w := &writer{tmp: tmp, limits: limits, contents: sha256.New(), buf: make([]byte, chunkSize), zeros: make([]byte, 4096)}
	w.take = w.entry
	w.dirs = dirs{root: &dir{fd: fd, implied: true}, makers: s.makers, limits: limits, marks: newMarks(limits.Memory), most: maxKept, made: w.count}
	if err := unix.Fchmod(fd, 0o755); err != nil { // whatever the umask
		return nil, errors.Join(fmt.Errorf("open tree: %w", err), unix.Close(fd))
	}
	return w, nil
}

func (w *writer) close() error {
	if w.pool != nil {
		w.pool.stop()
	}
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
			return entryError(h, err)
		}
		if w.pool != nil && w.pool.err() != nil {
			return w.pool.err()
		}
	}
}

func entryError(h *tar.Header, err error) error {
	return fmt.Errorf("entry %q: %w", shorten(h.Name), err)
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
		w.global(h)
		return nil
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if err := w.count(); err != nil {
		return err
	}
	if err := w.dirs.trim(); err != nil {
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
			return w.dirs.setOpaque(d)
		}
		return w.whiteout(d, removed)
	}
	if err := w.dirs.check(d, base); err != nil {
		return err
	}
	return w.object(ctx, place{d, base}, h, content)
}

// global passes over a PAX header for all entries behind it, as everybody does who
// applies layers: archive/tar does not carry its records over. What it says but for
// comments (git archive's) is lost, and the record says so.
func (w *writer) global(h *tar.Header) {
	var lost []string
	for _, key := range slices.Sorted(maps.Keys(h.PAXRecords)) {
		if key != "comment" {
			lost = append(lost, key)
		}
	}
	if len(lost) > 0 {
		w.skip(h.Name, "global header of "+shorten(strings.Join(lost, ", ")))
	}
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

func (w *writer) whiteout(d *dir, name string) error {
	if name == "" || name == "." || name == ".." {
		return fmt.Errorf("whiteout of no name: %w", errdefs.ErrInvalid)
	}
	m, err := w.dirs.marked(d)
	if err != nil {
		return err
	}
	m.whiteouts = append(m.whiteouts, strings.Clone(name)) // of a path that is longer
	return w.dirs.marks.spend(len(name) + stringCost)
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
	marks := &w.dirs.marks
	for _, path := range marks.sorted() {
		if err := w.atMarked(ctx, path, w.writeWhiteouts); err != nil {
			return err
		}
	}
	for _, path := range marks.sorted() { // some more may be opaque now
		if err := w.atMarked(ctx, path, w.sealMarked); err != nil {
			return fmt.Errorf("directory %q: %w", path, err)
		}
	}
	if err := w.dirs.dropAll(); err != nil {
		return err
	}
	if err := w.sealRoot(); err != nil {
		return fmt.Errorf("directory %q: %w", w.dirs.root.path(), err)
	}
	if err := w.settle(); err != nil {
		return err
	}
	if w.pool != nil {
		w.blocks += w.pool.blocks.Load()
	}
	w.blocks += w.dirs.blocks
	w.inodes += w.dirs.dropped
	w.implied = slices.Sorted(maps.Keys(marks.implied))
	slices.Sort(w.whiteouts)
	return nil
}

// atMarked calls do with a directory that has a mark.
func (w *writer) atMarked(ctx context.Context, path string, do func(*dir) error) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if err := w.dirs.trim(); err != nil {
		return err
	}
	d, err := w.dirs.resolve(path, false)
	if err != nil {
		return err
	}
	return do(d)
}

// writeWhiteouts writes those of one directory. Below an opaque directory
// there is nothing to remove, and a whiteout there would show up in listings.
func (w *writer) writeWhiteouts(d *dir) error {
	hidden := w.dirs.marks.hidden(d.path())
	before := w.inodes
	for _, name := range d.mark.whiteouts {
		k, err := w.dirs.kid(d, name)
		switch {
		case err != nil:
		case k != nil:
			// What the layer has below is all there is: nothing is left to inherit from.
			w.dirs.described(k)
			err = w.dirs.setOpaque(k)
		case !hidden:
			err = w.writeWhiteout(d, name)
		}
		if err != nil {
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

// sealMarked sets the attributes of a directory that what is made in it must not see.
func (w *writer) sealMarked(d *dir) error {
	fd, err := w.dirs.fd(d)
	if err != nil {
		return err
	}
	if d.mark.opaque {
		if err := unix.Fsetxattr(fd, opaqueXattr, []byte("y"), 0); err != nil {
			return fmt.Errorf("set %s: %w", opaqueXattr, syscallError(err))
		}
	}
	if d.mark.defaultACL == nil {
		return nil
	}
	err = unix.Fsetxattr(fd, defaultACL, d.mark.defaultACL, 0)
	if errors.Is(err, unix.EOPNOTSUPP) {
		w.skip(d.path(), "attribute "+defaultACL+": "+err.Error())
		return nil
	}
	if err != nil {
		return fmt.Errorf("set attribute %q: %w", defaultACL, syscallError(err))
	}
	return nil
}

// sealRoot is for the root what dropping is for the other directories.
func (w *writer) sealRoot() error {
	root := w.dirs.root
	var st unix.Stat_t
	if err := unix.Fstat(root.fd, &st); err != nil {
		return err
	}
	w.blocks += st.Blocks
	w.inodes++
	return unix.UtimesNanoAt(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", root.fd), root.times[:], 0)
}

// countReader counts what is read, and drains its source.
type countReader struct {
	r    *ringReader
	n    int64
	seen func(n int64) // may be nil
}

func (c *countReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	if c.seen != nil {
		c.seen(int64(n))
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
