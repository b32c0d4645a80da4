package tarsplit

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/format"
)

// Reader reads a record. What is wrong with it is ErrDamaged; a version that this
// program does not read is ErrUnsupported.
type Reader struct {
	z    *zstd.Decoder
	in   *bufio.Reader
	raw  []byte
	path string
	size int64
	end  bool
}

// maxWindow is more than any record needs.
const maxWindow = 8 << 20

// NewReader reads the beginning of a record. The caller closes the Reader, and r.
func NewReader(r io.Reader) (*Reader, error) {
	in := bufio.NewReader(r)
	line, err := in.ReadSlice('\n')
	if err != nil {
		return nil, fmt.Errorf("read header: %w", damaged(err))
	}
	if _, err := format.TarSplit.Version(line); errors.Is(err, errdefs.ErrUnsupported) {
		return nil, err
	} else if err != nil {
		return nil, fmt.Errorf("header: %w: %w", ErrDamaged, err)
	}
	z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
	if err != nil {
		return nil, fmt.Errorf("header: %w: %w", ErrDamaged, err)
	}
	return &Reader{z: z, in: bufio.NewReader(z)}, nil
}

// Close gives the memory back.
func (r *Reader) Close() { r.z.Close() }

// Op is a piece of the tar.
type Op struct {
	// Raw is the piece itself, until the next call of Next; nil: Extent says where it is.
	Raw    []byte
	Extent Extent
}

// Next returns the next piece, or io.EOF when the tar is complete.
func (r *Reader) Next() (Op, error) {
	if r.end {
		return Op{}, io.EOF
	}
	kind, err := r.in.ReadByte()
	if err != nil {
		return Op{}, damaged(err)
	}
	switch kind {
	case opRaw:
		return r.readRaw()
	case opExtent:
		return r.readExtent()
	case opEnd:
		return Op{}, r.readEnd()
	}
	return Op{}, fmt.Errorf("operation %d: %w", kind, ErrDamaged)
}

func (r *Reader) readRaw() (Op, error) {
	if err := r.readBytes(maxRaw); err != nil {
		return Op{}, err
	}
	if len(r.raw) == 0 {
		return Op{}, fmt.Errorf("no bytes: %w", ErrDamaged)
	}
	return Op{Raw: r.raw}, r.count(int64(len(r.raw)))
}

// readBytes reads a length and as many bytes into r.raw.
func (r *Reader) readBytes(limit uint64) error {
	n, err := r.number(limit)
	if err != nil {
		return err
	}
	if int64(cap(r.raw)) < n {
		r.raw = make([]byte, n)
	}
	r.raw = r.raw[:n]
	if _, err := io.ReadFull(r.in, r.raw); err != nil {
		return damaged(err)
	}
	return nil
}

func (r *Reader) readExtent() (op Op, err error) {
	if err := r.readBytes(maxPath); err != nil {
		return Op{}, err
	}
	if len(r.raw) > 0 {
		r.path = string(r.raw)
	}
	if !proper(r.path) {
		return Op{}, fmt.Errorf("path %q: %w", r.path, ErrDamaged)
	}
	e := Extent{Path: r.path}
	if e.Generation, err = binary.ReadUvarint(r.in); err != nil {
		return Op{}, damaged(err)
	}
	if e.Offset, err = r.number(math.MaxInt64); err != nil {
		return Op{}, err
	}
	if e.Length, err = r.number(math.MaxInt64); err != nil {
		return Op{}, err
	}
	if e.Offset > math.MaxInt64-e.Length {
		return Op{}, fmt.Errorf("%d bytes at %d: %w", e.Length, e.Offset, ErrDamaged)
	}
	var sum [4]byte
	if _, err := io.ReadFull(r.in, sum[:]); err != nil {
		return Op{}, damaged(err)
	}
	e.Sum = binary.LittleEndian.Uint32(sum[:])
	return Op{Extent: e}, r.count(e.Length)
}

// proper says whether a path can only lie below the root.
func proper(p string) bool {
	return p != "" && p != "." && p[0] != '/' && path.Clean("/" + p)[1:] == p && !strings.Contains(p, "\x00")
}

func (r *Reader) readEnd() error {
	size, err := r.number(math.MaxInt64)
	if err != nil {
		return err
	}
	if size != r.size {
		return fmt.Errorf("a tar of %d bytes has %d: %w", size, r.size, ErrDamaged)
	}
	// The frame's own checksum comes at its end.
	if _, err := r.in.ReadByte(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("after the end: %w", damaged(err))
	}
	r.end = true
	return io.EOF
}

func (r *Reader) count(n int64) error {
	if r.size > math.MaxInt64-n {
		return fmt.Errorf("more than 2^63 bytes: %w", ErrDamaged)
	}
	r.size += n
	return nil
}

func (r *Reader) number(limit uint64) (int64, error) {
	n, err := binary.ReadUvarint(r.in)
	if err != nil {
		return 0, damaged(err)
	}
	if n > limit {
		return 0, fmt.Errorf("number %d: %w", n, ErrDamaged)
	}
	return int64(n), nil //nolint:gosec // no limit is above the largest int64
}

// damaged is the class of an error in the middle of a record. A disk that cannot be
// read damages it as well.
func damaged(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("%w: %w", ErrDamaged, err)
}
