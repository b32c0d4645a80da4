package inflate

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"io"
)

// The flags of a member's header (RFC 1952, section 2.3.1).
const (
	flagHeaderCRC = 1 << 1
	flagExtra     = 1 << 2
	flagName      = 1 << 3
	flagComment   = 1 << 4
)

// maxText bounds a member's name and comment, in bytes.
const maxText = 64 << 10

// byteReader reads whole bytes and sums them up, for the header's CRC.
type byteReader struct {
	d   *Decoder
	crc uint32
	err error
}

// bytes returns the next n bytes, at most ahead. They are good until the next call.
func (r *byteReader) bytes(n int) []byte {
	d := r.d
	if r.err == nil && d.end-d.pos < ahead {
		r.err = d.more()
	}
	if r.err == nil && d.real-d.pos < n {
		d.pos = d.real
		r.err = d.corrupt(io.ErrUnexpectedEOF, "")
	}
	if r.err != nil {
		return make([]byte, n)
	}
	p := d.in[d.pos : d.pos+n]
	d.pos += n
	r.crc = crc32.Update(r.crc, crc32.IEEETable, p)
	return p
}

// text skips a text that ends with a zero byte.
func (r *byteReader) text() {
	for range maxText {
		if r.bytes(1)[0] == 0 || r.err != nil {
			return
		}
	}
	r.err = r.d.corrupt(ErrCorrupt, "a name or comment of more than %d bytes", maxText)
}

// readMemberHeader reads a header (RFC 1952, section 2.3), or finds the end of
// the stream where another member may follow.
func (d *Decoder) readMemberHeader() error {
	r := &byteReader{d: d}
	if d.members > 0 {
		if d.end-d.pos < ahead && d.srcErr == nil {
			if err := d.more(); err != nil {
				return err
			}
		}
		if d.pos >= d.real {
			d.next = ended
			return nil
		}
	}
	fixed := bytes.Clone(r.bytes(10))
	if r.err != nil {
		return r.err
	}
	if fixed[0] != 0x1f || fixed[1] != 0x8b || fixed[2] != 8 {
		return d.corrupt(ErrCorrupt, "no gzip header, but % x", fixed[:3])
	}
	r.optional(fixed[3])
	if r.err != nil {
		return r.err
	}
	d.members++
	d.written, d.history = 0, 0
	d.next = blockHeader
	return nil
}

// optional skips what a header has behind its fixed fields, and compares its CRC
// (RFC 1952, section 2.3.1).
func (r *byteReader) optional(flags byte) {
	if flags&flagExtra != 0 {
		for left := int(binary.LittleEndian.Uint16(r.bytes(2))); left > 0 && r.err == nil; left-- {
			r.bytes(1)
		}
	}
	if flags&flagName != 0 {
		r.text()
	}
	if flags&flagComment != 0 {
		r.text()
	}
	if flags&flagHeaderCRC != 0 {
		want := uint16(r.crc)
		if got := binary.LittleEndian.Uint16(r.bytes(2)); r.err == nil && got != want {
			r.err = r.d.corrupt(ErrCorrupt, "the header's checksum is %04x, not %04x", got, want)
		}
	}
}

// readTrailer reads what follows a member's last block (RFC 1952, section 2.3.1).
func (d *Decoder) readTrailer() error {
	d.align()
	r := &byteReader{d: d}
	r.bytes(4) // the CRC-32: see the package comment
	size := binary.LittleEndian.Uint32(r.bytes(4))
	if r.err != nil {
		return r.err
	}
	if size != d.written {
		return d.corrupt(ErrCorrupt, "a member of %d bytes is said to have %d", d.written, size)
	}
	d.next = memberHeader
	return nil
}
