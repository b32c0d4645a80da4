package tree

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/tree/tarsplit"
)

// rebuilder puts a layer's tar together from its record and its tree.
type rebuilder struct {
	record   *os.File
	in       *tarsplit.Reader
	root     int // descriptor of rootfs/
	replaced int // of replaced/; -1: there is none
	out      *ring
	chunk    *chunk // being filled; nil: none is
	filled   int
	buf      []byte // for what is read to be looked at alone
	left     int64  // of the bytes of tar that the tree's record tells

	file     contentFile
	contents hash.Hash // as the writer's
	damaged  []Damage
}

// contentFile is the file whose content is read.
type contentFile struct {
	path       string
	generation uint64
	fd         int // -1: not there, or no regular file
	size       int64
	end        int64 // of the pieces so far
	damaged    bool
}

// openRebuilder opens the tree at dir, which was made from size bytes of tar. A record
// that is not there is ErrRecord.
func openRebuilder(dir string, size int64) (*rebuilder, error) {
	b := &rebuilder{left: size, root: -1, replaced: -1, buf: make([]byte, chunkSize), contents: sha256.New(), file: contentFile{fd: -1}}
	err := b.open(dir)
	if err != nil {
		b.close()
		return nil, err
	}
	return b, nil
}

func (b *rebuilder) open(dir string) (err error) {
	if b.root, err = unix.Open(filepath.Join(dir, rootfsName), dirFlags, 0); err != nil {
		return &fs.PathError{Op: "open", Path: filepath.Join(dir, rootfsName), Err: err}
	}
	b.replaced, err = unix.Open(filepath.Join(dir, replacedDir), dirFlags, 0)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return &fs.PathError{Op: "open", Path: filepath.Join(dir, replacedDir), Err: err}
	}
	b.record, err = os.OpenFile(filepath.Join(dir, splitFile), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ELOOP) {
		return fmt.Errorf("%w: %w", ErrRecord, err)
	}
	if err == nil {
		b.in, err = tarsplit.NewReader(b.record)
	}
	return err
}

func (b *rebuilder) close() {
	b.closeFile()
	for _, fd := range []int{b.root, b.replaced} {
		if fd >= 0 {
			_ = unix.Close(fd) // only read
		}
	}
	if b.in != nil {
		b.in.Close()
	}
	if b.record != nil {
		_ = b.record.Close() // only read
	}
}

// run fills the ring.
func (b *rebuilder) run() error {
	for {
		op, err := b.in.Next()
		switch {
		case errors.Is(err, io.EOF):
			if err := b.finishFile(); err != nil {
				return err
			}
			b.send()
			return nil
		case err != nil:
			return err
		}
		// A few bytes of record can tell of more tar than anybody lives to see.
		if b.left -= int64(len(op.Raw)) + op.Extent.Length; b.left < 0 {
			return fmt.Errorf("it has more bytes of tar than %s tells: %w", metaFile, ErrRecord)
		}
		switch {
		case op.Raw != nil:
			err = b.raw(op.Raw)
		default:
			err = b.extent(op.Extent)
		}
		if err != nil {
			return err
		}
	}
}

// room returns a part of a chunk that is to be filled, not empty.
func (b *rebuilder) room() ([]byte, error) {
	if b.filled == chunkSize {
		b.send()
	}
	if b.chunk == nil {
		var err error
		if b.chunk, err = b.out.next(); err != nil {
			return nil, err
		}
	}
	return b.chunk.room()[b.filled:chunkSize], nil
}

func (b *rebuilder) send() {
	if b.filled > 0 {
		b.out.send(b.chunk, b.filled)
		b.chunk, b.filled = nil, 0
	}
}

func (b *rebuilder) raw(p []byte) error {
	for len(p) > 0 {
		room, err := b.room()
		if err != nil {
			return err
		}
		n := copy(room, p)
		p = p[n:]
		b.filled += n
	}
	return nil
}

// extent adds a piece of a file. What the file does not have is zero, so that all
// behind it stays at its place.
func (b *rebuilder) extent(e tarsplit.Extent) error {
	if f := &b.file; f.path != e.Path || f.generation != e.Generation {
		if err := b.nextFile(e); err != nil {
			return err
		}
	}
	if err := b.hole(e.Offset); err != nil {
		return err
	}
	sum := uint32(0)
	for at, end := e.Offset, e.Offset+e.Length; at < end; {
		room, err := b.room()
		if err != nil {
			return err
		}
		room = room[:min(int64(len(room)), end-at)]
		n := b.readAt(room, at)
		clear(room[n:])
		sum = tarsplit.Checksum(sum, room)
		b.filled += len(room)
		at += int64(len(room))
	}
	b.file.end = e.Offset + e.Length
	if sum != e.Sum && b.file.fd >= 0 {
		b.damage(fmt.Sprintf("CRC-32C %08x of %d bytes at %d", e.Sum, e.Length, e.Offset), fmt.Sprintf("%08x", sum))
	}
	return nil
}

// readAt reads what there is of the file; where that fails, the file is damaged.
func (b *rebuilder) readAt(p []byte, at int64) (n int) {
	for n < len(p) && b.file.fd >= 0 {
		m, err := unix.Pread(b.file.fd, p[n:], at+int64(n))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			b.damage(fmt.Sprintf("%d bytes at %d", len(p), at), err.Error())
		}
		if m <= 0 {
			return n
		}
		n += m
	}
	return n
}

// damage notes the first thing that is wrong with the content of the file.
func (b *rebuilder) damage(want, got string) {
	if !b.file.damaged && len(b.damaged) < maxDamaged {
		b.damaged = append(b.damaged, Damage{Path: b.file.path, Want: want, Got: got})
	}
	b.file.damaged = true
}

// nextFile opens the file of an extent. That it is not there, or something else is,
// shows when the trees are compared.
func (b *rebuilder) nextFile(e tarsplit.Extent) error {
	if err := b.finishFile(); err != nil {
		return err
	}
	addContent(b.contents, e.Path, e.Generation)
	b.file = contentFile{path: e.Path, generation: e.Generation, fd: -1}
	at, name := b.root, e.Path
	kept := replacedName(e.Path, e.Generation)
	var st unix.Stat_t
	if b.replaced >= 0 && unix.Fstatat(b.replaced, kept, &st, unix.AT_SYMLINK_NOFOLLOW) == nil {
		at, name = b.replaced, kept
	}
	fd, err := OpenBeneath(at, name, unix.O_RDONLY|unix.O_NOATIME|unix.O_NONBLOCK)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENXIO):
		return nil
	case errors.Is(err, unix.EIO), errors.Is(err, unix.EUCLEAN):
		b.damage("a file that can be read", err.Error())
		return nil
	case err != nil:
		return fmt.Errorf("open %q: %w", shorten(e.Path), err)
	}
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return errors.Join(err, unix.Close(fd))
	}
	b.file.fd, b.file.size = fd, st.Size
	return nil
}

// OpenBeneath opens what lies below a directory, by its relative path, and nothing
// that a symbolic link leads to. The caller closes the descriptor.
func OpenBeneath(at int, path string, flags uint64) (int, error) {
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC | unix.O_NOFOLLOW, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS}
	for {
		fd, err := unix.Openat2(at, path, &how)
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return fd, err
		}
	}
}

// finishFile holds that what is behind the last piece of the file is a hole.
func (b *rebuilder) finishFile() error {
	err := b.hole(b.file.size)
	b.closeFile()
	return err
}

func (b *rebuilder) closeFile() {
	if b.file.fd >= 0 {
		_ = unix.Close(b.file.fd) // only read
		b.file.fd = -1
	}
}

// hole holds that the file has nothing but zeros from the end of the last piece on.
func (b *rebuilder) hole(to int64) error {
	for at := b.file.end; b.file.fd >= 0 && at < to; {
		data, err := unix.Seek(b.file.fd, at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) || err == nil && data >= to {
			break
		}
		if err != nil {
			return fmt.Errorf("seek in %q: %w", shorten(b.file.path), err)
		}
		buf := b.buf[:min(int64(len(b.buf)), to-data)]
		n := b.readAt(buf, data)
		for _, c := range buf[:n] {
			if c != 0 {
				b.damage(fmt.Sprintf("a hole at %d", data), "bytes that are not zero")
				return nil
			}
		}
		if n == 0 {
			break
		}
		if err := context.Cause(b.out.ctx); err != nil {
			return err
		}
		at = data + int64(n)
	}
	return nil
}
