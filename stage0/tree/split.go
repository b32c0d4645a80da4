package tree

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/durable"
	"github.com/gantry-cri/gantry/stage0/tree/tarsplit"
)

const (
	splitFile   = "layer.tarsplit"
	replacedDir = "replaced"
)

// splitter lets a tar pass by and writes its record: what is read into the buffer
// of a file's content belongs to the file, all else is kept as it is. A file's
// content is so neither copied nor looked at but for its checksum, also where the
// archive has only the pieces between a sparse file's holes.
type splitter struct {
	in   *countReader
	out  *tarsplit.Writer
	file *os.File
	err  error // of writing the record: the first

	buf     []byte // into which content is read; nil: none is
	offset  int64  // of buf in the file
	extent  tarsplit.Extent
	written bool // something of the file is in the record
}

// newSplitter makes the record of an entry of tmp.
func newSplitter(dir string) (*splitter, error) {
	f, err := os.OpenFile(filepath.Join(dir, splitFile), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make %s: %w", splitFile, durable.NoSpace(err))
	}
	out, err := tarsplit.NewWriter(f)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("write %s: %w", splitFile, durable.NoSpace(err)), f.Close())
	}
	return &splitter{out: out, file: f}, nil
}

// close ends the record. It is not synced: the one syncfs of Commit does that.
func (s *splitter) close() error {
	err := errors.Join(s.err, s.out.Close(), s.file.Close())
	if err != nil {
		return fmt.Errorf("write %s: %w", splitFile, durable.NoSpace(err))
	}
	return nil
}

// Read is part of io.Reader.
func (s *splitter) Read(p []byte) (int, error) {
	n, err := s.in.Read(p)
	if at, ok := s.content(p); ok {
		s.add(s.offset+at, p[:n])
	} else {
		s.raw(p[:n])
	}
	if s.err != nil {
		err = s.err
	}
	return n, err
}

// content says where p lies in the buffer of a file's content. A reader that passes
// on another buffer than that it is given costs a larger record, no wrong one.
func (s *splitter) content(p []byte) (int64, bool) {
	at := cap(s.buf) - cap(p)
	if s.buf == nil || len(p) == 0 || at < 0 || at >= len(s.buf) || &s.buf[at] != &p[0] {
		return 0, false
	}
	return int64(at), true
}

func (s *splitter) raw(p []byte) {
	if s.err == nil && len(p) > 0 {
		s.flush()
		if s.err == nil {
			s.err = s.out.Raw(p)
		}
	}
}

func (s *splitter) add(offset int64, p []byte) {
	e := &s.extent
	if e.Offset+e.Length != offset {
		s.flush()
		e.Offset = offset
	}
	e.Length += int64(len(p))
	e.Sum = tarsplit.Checksum(e.Sum, p)
}

// flush writes the piece of a file that has been read.
func (s *splitter) flush() {
	e := &s.extent
	if e.Length == 0 || s.err != nil {
		return
	}
	s.err = s.out.Extent(*e)
	s.written = true
	e.Offset, e.Length, e.Sum = e.Offset+e.Length, 0, 0
}

// begin says whose content is read next.
func (s *splitter) begin(path string, generation uint64) {
	s.extent = tarsplit.Extent{Path: path, Generation: generation}
	s.written = false
}

// into says that content from offset on is read into buf next.
func (s *splitter) into(buf []byte, offset int64) { s.buf, s.offset = buf, offset }

// end says that the file is complete. One that is all hole is in the record too.
func (s *splitter) end() {
	s.buf = nil
	s.flush()
	if !s.written && s.err == nil {
		s.err = s.out.Extent(tarsplit.Extent{Path: s.extent.Path, Generation: s.extent.Generation})
	}
}

// drain reads to the end of the stream.
func (s *splitter) drain() error {
	for {
		rest, err := s.in.r.peek()
		if errors.Is(err, io.EOF) {
			return s.err
		}
		if err != nil {
			return err
		}
		s.raw(rest)
		s.in.n += int64(len(rest))
		s.in.r.skip(len(rest))
	}
}

// replacedName is the name in replaced/ of a file that lay at the path.
func replacedName(path string, generation uint64) string {
	sum := sha256.Sum256([]byte(path + "\x00" + strconv.FormatUint(generation, 10)))
	return hex.EncodeToString(sum[:16])
}

// keepReplaced puts a file that is about to be removed where the record finds it: a
// later entry of the archive replaces it, and no other has its content.
func (w *writer) keepReplaced(p place, st unix.Stat_t) error {
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size == 0 {
		return nil
	}
	path := join(p.dir, p.name)
	generation, err := w.dirs.marks.replaced(path)
	if err != nil {
		return err
	}
	if w.split == nil {
		return nil
	}
	if err := w.moveReplaced(p, st, replacedName(path, generation)); err != nil {
		return fmt.Errorf("keep what is replaced: %w", syscallError(err))
	}
	return nil
}

// moveReplaced copies a file that has other names: they stay, and their number shows.
func (w *writer) moveReplaced(p place, st unix.Stat_t, name string) error {
	dir := filepath.Join(w.tmp, replacedDir)
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	at, err := w.dirs.fd(p.dir)
	if err != nil {
		return err
	}
	target := filepath.Join(dir, name)
	if st.Nlink == 1 {
		return unix.Linkat(at, p.name, unix.AT_FDCWD, target, 0)
	}
	fd, err := unix.Openat(at, p.name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NOATIME|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	from := os.NewFile(uintptr(fd), join(p.dir, p.name))
	defer from.Close() //nolint:errcheck // nothing was written through it
	to, err := os.OpenFile(target, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(to, from)
	return errors.Join(err, to.Close())
}

// addContent adds a file that has content to the sum of which those are: the record
// and the archive's headers have the same.
func addContent(sum io.Writer, path string, generation uint64) {
	// A hash never fails.
	_, _ = io.WriteString(sum, path+"\x00"+strconv.FormatUint(generation, 10)+"\x00")
}
