// Package inflate decompresses gzip (RFC 1952) and its DEFLATE blocks (RFC 1951)
// straight into buffers of the caller's, more than twice as fast as the libraries
// there are, without unsafe or assembler: what unpacking an image costs is mostly
// this.
//
// The output buffer is the window. A caller hands Decoder.Fill a buffer with
// Window bytes of room in front and Slack bytes behind; the decoder lays the last
// 32 KiB of its output in front, decompresses behind that, and never touches
// earlier buffers again, which may be hashed and written meanwhile.
//
// The CRC-32 of a member is not compared: who verifies an image layer compares
// the SHA-256 of the whole output. Everything else that the two specifications
// let a decoder see as damage is an error.
package inflate

import (
	"errors"
	"fmt"
	"io"
)

const (
	// Window is the room that Fill needs in front of its output, in bytes: as
	// far as a match reaches back (RFC 1951, section 2).
	Window = 32 << 10
	// Slack is the room that Fill needs behind its output, in bytes. It writes
	// there without meaning it.
	Slack = 320
)

// ErrCorrupt is wrapped by every error that says the input is no gzip stream. A
// stream that is cut short is io.ErrUnexpectedEOF instead.
var ErrCorrupt = errors.New("corrupt gzip stream")

const (
	inputSize = 64 << 10
	// keep is how far the position may go back: whole bytes that are in the bit
	// buffer are given back at the end of a block.
	keep = 8
	// ahead is what one turn of the loop may read: three refills.
	ahead = 24
	// padding follows the end of the input, so that the loop needs no careful
	// twin. Using it is noticed afterwards.
	padding = 64
)

// step is what comes next in the stream.
type step int

const (
	memberHeader step = iota
	blockHeader
	storedBlock
	huffmanBlock
	memberTrailer
	ended
)

// Decoder decompresses one stream. Make it with New. It is not safe for use by
// several goroutines at a time.
type Decoder struct {
	src    io.Reader
	srcErr error // what src said at last; io.EOF once the padding is there

	in       []byte
	pos, end int // in[pos:end] is to be read; the padding counts
	real     int // the end of what src gave, before the padding
	offset   int64

	bits  uint64 // the next bits of the input, lowest first
	nbits uint   // how many of them count; those above are right or zero

	next   step
	last   bool // the block is the member's last one
	stored int  // bytes to come of a stored block
	err    error

	members int
	written uint32 // bytes of this member, modulo 2^32
	history int    // bytes of this member before the output, at most Window
	oldest  int    // where they begin in the buffer that is being filled
	window  [Window]byte

	lit, dist *table
	dynLit    table
	dynDist   table
	lengths   [maxLit + maxDist]uint8
}

// New returns a Decoder of the stream in src. It reads ahead: where the stream
// ends in src cannot be said.
func New(src io.Reader) *Decoder {
	return &Decoder{src: src, in: make([]byte, keep+inputSize+padding), pos: keep, end: keep, real: keep}
}

// Fill decompresses into buf[Window:len(buf)-Slack] and returns how many bytes
// it wrote there: as many as fit, but for the last time, and less than Slack
// more. It overwrites what is in front and behind. At the stream's end it returns
// io.EOF, alone or with the last bytes.
func (d *Decoder) Fill(buf []byte) (n int, err error) {
	if len(buf) <= Window+Slack {
		return 0, fmt.Errorf("a buffer of %d bytes has no room for output", len(buf))
	}
	if d.err != nil {
		return 0, d.err
	}
	copy(buf[:Window], d.window[:])
	o := Window
	for d.err == nil && o <= len(buf)-Slack {
		o, d.err = d.advance(buf, o)
	}
	copy(d.window[:], buf[o-Window:o])
	return o - Window, d.err
}

// advance does the next step as far as the input and buf, filled up to o, allow,
// and returns up to where buf is filled then.
func (d *Decoder) advance(buf []byte, o int) (int, error) {
	switch d.next {
	case memberHeader:
		return o, d.readMemberHeader()
	case blockHeader:
		return o, d.readBlockHeader()
	case storedBlock, huffmanBlock:
		begin := o
		d.oldest = o - d.history
		var err error
		if d.next == storedBlock {
			o, err = d.copyStored(buf, o)
		} else {
			o, err = d.decode(buf, o)
		}
		d.written += uint32(o - begin)
		d.history = min(d.history+o-begin, Window)
		return o, err
	case memberTrailer:
		return o, d.readTrailer()
	default:
		return o, io.EOF
	}
}

// noProgress is how often a source may give nothing before that is an error.
const noProgress = 100

// more makes at least ahead bytes readable, padding included. It is called when
// there are less.
func (d *Decoder) more() error {
	if errors.Is(d.srcErr, io.EOF) {
		return d.corrupt(io.ErrUnexpectedEOF, "") // the padding is used up
	}
	d.offset += int64(d.pos - keep)
	d.end = copy(d.in, d.in[d.pos-keep:d.end])
	d.pos = keep
	for empty := 0; d.end-d.pos < ahead; {
		n, err := d.src.Read(d.in[d.end : keep+inputSize])
		if empty++; n > 0 {
			empty = 0
		}
		d.end += n
		d.real = d.end
		if errors.Is(err, io.EOF) {
			clear(d.in[d.end : d.end+padding])
			d.end += padding
			d.srcErr = io.EOF
			return nil
		}
		if err == nil && empty == noProgress {
			err = io.ErrNoProgress
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// refill brings the bit buffer to at least 56 bits.
func (d *Decoder) refill() error {
	if d.end-d.pos < ahead {
		if err := d.more(); err != nil {
			return err
		}
	}
	d.bits, d.nbits, d.pos = fill(d.in, d.bits, d.nbits, d.pos)
	return nil
}

// take removes n bits, at most 16, which refill has brought.
func (d *Decoder) take(n uint) int {
	v := d.bits & (1<<n - 1)
	d.bits >>= n
	d.nbits -= n
	return int(v)
}

// align drops the rest of a byte and gives the whole ones back to the input.
func (d *Decoder) align() {
	d.pos -= int(d.nbits >> 3)
	d.bits, d.nbits = 0, 0
}

// overrun reports whether bits of the padding were used.
func (d *Decoder) overrun() bool {
	return d.pos-int(d.nbits>>3) > d.real
}

// corrupt is an error at the place that is being read.
func (d *Decoder) corrupt(kind error, format string, args ...any) error {
	if d.overrun() {
		kind = io.ErrUnexpectedEOF
	}
	at := min(d.offset+int64(d.pos-keep)-int64(d.nbits>>3), d.offset+int64(d.real-keep))
	if errors.Is(kind, io.ErrUnexpectedEOF) {
		return fmt.Errorf("gzip stream ends after %d bytes: %w", at, kind)
	}
	return fmt.Errorf("%w at byte %d: %s", kind, at, fmt.Sprintf(format, args...))
}
