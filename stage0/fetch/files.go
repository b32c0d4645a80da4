package fetch

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/inflate"
)

// files are those of a local image, by their slash-separated names.
type files interface {
	// open returns a file's content and size; ErrNotFound where there is none.
	open(name string) (io.ReadCloser, int64, error)
	Close() error
}

// directory is a directory that nothing leads out of.
type directory struct{ *os.Root }

func openDirectory(name string) (files, error) {
	root, err := os.OpenRoot(name)
	if err != nil {
		return nil, classed(err)
	}
	return directory{root}, nil
}

func (d directory) open(name string) (io.ReadCloser, int64, error) {
	f, err := d.Open(name)
	if err != nil {
		return nil, 0, classed(err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a file: %w", name, errdefs.ErrInvalid)
	}
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, info.Size(), nil
}

// classed gives an error of the file system its class.
func classed(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: %w", errdefs.ErrNotFound, err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: %w", errdefs.ErrDenied, err)
	}
	return err
}

const (
	// maxMembers bounds how many files an archive of images may have.
	maxMembers = 100_000
	// maxName bounds the bytes of one name or link target in it, and maxNames those of
	// all together: PAX has names of a mebibyte, and the index is kept in memory.
	maxName  = 4095
	maxNames = 16 << 20
)

const (
	// maxArchive bounds what a compressed archive decompresses to, bytes, as
	// tree.DefaultLimits bounds a layer.
	maxArchive = 512 << 30
	// maxRatio bounds how many times larger than itself an archive becomes, where that
	// is more than freeArchive bytes. No gzip reaches it; a zstd file of zeros does.
	maxRatio    = 1100
	freeArchive = 1 << 30
	// maxWindow bounds the memory of a zstd decoder, bytes, as for layers.
	maxWindow = 8 << 20
)

// archiveLimit is how many bytes an archive of this size may decompress to.
func archiveLimit(size int64) int64 {
	return min(maxArchive, max(freeArchive, min(size, maxArchive/maxRatio)*maxRatio))
}

// maxLinks bounds how many links lead from a name to a file.
const maxLinks = 8

// archive is an uncompressed tar file, of which is known where each file lies.
type archive struct {
	*os.File
	members map[string]member
}

type member struct {
	offset, size int64
	link         string // the name of another member; then there is no content
}

// openArchive reads where an archive's files lie. A compressed one is decompressed
// first, into a file without a name in the directory for temporary ones.
func openArchive(ctx context.Context, name, tmp string) (_ files, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, classed(err)
	}
	if f, err = spool(ctx, f, tmp); err != nil {
		return nil, err
	}
	a := &archive{File: f, members: map[string]member{}}
	if err := a.index(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("read tar: %w: %w", errdefs.ErrInvalid, err), f.Close())
	}
	return a, nil
}

func (a *archive) index(ctx context.Context) error {
	if _, err := a.Seek(0, io.SeekStart); err != nil {
		return err
	}
	r := tar.NewReader(a.File) // skips content by seeking
	names := 0
	for range maxMembers {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if len(h.Name) > maxName || len(h.Linkname) > maxName {
			return fmt.Errorf("%q: a name of more than %d bytes", h.Name[:min(len(h.Name), 100)], maxName)
		}
		if names += len(h.Name) + len(h.Linkname); names > maxNames {
			return fmt.Errorf("names of more than %d bytes", maxNames)
		}
		at := path.Clean("/" + h.Name)[1:]
		switch h.Typeflag {
		case tar.TypeReg:
			offset, err := a.Seek(0, io.SeekCurrent)
			if err != nil {
				return err
			}
			a.members[at] = member{offset: offset, size: h.Size}
		case tar.TypeSymlink:
			a.members[at] = member{link: path.Join(path.Dir("/"+at), h.Linkname)[1:]}
		case tar.TypeLink:
			a.members[at] = member{link: path.Clean("/" + h.Linkname)[1:]}
		}
	}
	return fmt.Errorf("more than %d files", maxMembers)
}

func (a *archive) open(name string) (io.ReadCloser, int64, error) {
	at := path.Clean("/" + name)[1:]
	for range maxLinks {
		m, ok := a.members[at]
		if !ok {
			return nil, 0, fmt.Errorf("no file %s in the archive: %w", at, errdefs.ErrNotFound)
		}
		if m.link == "" {
			return io.NopCloser(io.NewSectionReader(a.File, m.offset, m.size)), m.size, nil
		}
		at = m.link
	}
	return nil, 0, fmt.Errorf("too many links from %s: %w", name, errdefs.ErrInvalid)
}

// spool returns f itself, or what it decompresses to. It closes f if it does not
// return it.
func spool(ctx context.Context, f *os.File, tmp string) (_ *os.File, err error) {
	var magic [4]byte
	n, err := f.ReadAt(magic[:], 0)
	var info fs.FileInfo
	if err == nil || errors.Is(err, io.EOF) {
		info, err = f.Stat()
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	open := unpacker(magic[:n])
	if open == nil {
		return f, nil
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	// Without a name nothing is left of it, however this process ends.
	fd, err := unix.Open(tmp, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make a file without a name in %s, to decompress %s to: %w", tmp, f.Name(), err)
	}
	plain := os.NewFile(uintptr(fd), f.Name())
	limit := archiveLimit(info.Size())
	if err := decompressTo(ctx, &limitWriter{plain, limit, limit}, open, bufio.NewReaderSize(f, 1<<20)); err != nil {
		return nil, errors.Join(fmt.Errorf("decompress %s: %w", f.Name(), err), plain.Close())
	}
	return plain, nil
}

// unpacker returns what opens a stream that begins like this, or nil if it is not
// compressed.
func unpacker(magic []byte) func(io.Reader) (io.ReadCloser, error) {
	switch {
	case len(magic) == 4 && magic[0] == 0x1f && magic[1] == 0x8b:
		return func(r io.Reader) (io.ReadCloser, error) { return io.NopCloser(inflate.NewReader(r)), nil }
	case string(magic) == "\x28\xb5\x2f\xfd":
		return func(r io.Reader) (io.ReadCloser, error) {
			d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
			if err != nil {
				return nil, err
			}
			return d.IOReadCloser(), nil
		}
	}
	return nil
}

func decompressTo(ctx context.Context, w io.Writer, open func(io.Reader) (io.ReadCloser, error), r io.Reader) error {
	d, err := open(r)
	if err != nil {
		return err
	}
	defer d.Close() //nolint:errcheck // only read
	return copyUntilDone(ctx, w, d)
}

// limitWriter refuses what goes beyond limit bytes.
type limitWriter struct {
	w           io.Writer
	limit, left int64
}

// Write is part of io.Writer.
func (l *limitWriter) Write(p []byte) (int, error) {
	if int64(len(p)) > l.left {
		return 0, fmt.Errorf("it becomes larger than %d bytes, the limit of an archive of its size; decompress it first: %w", l.limit, errdefs.ErrInvalid)
	}
	l.left -= int64(len(p))
	return l.w.Write(p)
}

// copyUntilDone is io.Copy that ends with ctx.
func copyUntilDone(ctx context.Context, w io.Writer, r io.Reader) error {
	_, err := io.Copy(w, readerFunc(func(p []byte) (int, error) {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		return r.Read(p)
	}))
	return err
}

type readerFunc func([]byte) (int, error)

// Read is part of io.Reader.
func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
