package inflate

import (
	"encoding/binary"
	"errors"
	"io"
)

// readBlockHeader reads a block's type and what it says of its codes (RFC 1951,
// section 3.2.3).
func (d *Decoder) readBlockHeader() error {
	if d.last {
		d.last = false
		d.next = memberTrailer
		return nil
	}
	if err := d.refill(); err != nil {
		return err
	}
	d.last = d.take(1) == 1
	switch d.take(2) {
	case 0:
		return d.readStoredHeader()
	case 1:
		d.lit, d.dist = fixedTables()
	case 2:
		if err := d.readCodes(); err != nil {
			return err
		}
		d.lit, d.dist = &d.dynLit, &d.dynDist
	default:
		return d.corrupt(ErrCorrupt, "a block of type 3")
	}
	if d.overrun() {
		return d.corrupt(io.ErrUnexpectedEOF, "")
	}
	d.next = huffmanBlock
	return nil
}

// readStoredHeader reads the length of a stored block (RFC 1951, section 3.2.4).
func (d *Decoder) readStoredHeader() error {
	d.align()
	r := &byteReader{d: d}
	head := r.bytes(4)
	if r.err != nil {
		return r.err
	}
	length, complement := binary.LittleEndian.Uint16(head), binary.LittleEndian.Uint16(head[2:])
	if length != ^complement {
		return d.corrupt(ErrCorrupt, "a stored block of %04x bytes, complement %04x", length, complement)
	}
	d.stored = int(length)
	d.next = storedBlock
	return nil
}

// copyStored copies of a stored block what is there and fits.
func (d *Decoder) copyStored(buf []byte, o int) (int, error) {
	if d.end-d.pos < ahead && d.srcErr == nil {
		if err := d.more(); err != nil {
			return o, err
		}
	}
	if d.stored > 0 && d.pos >= d.real {
		return o, d.corrupt(io.ErrUnexpectedEOF, "")
	}
	n := copy(buf[o:], d.in[d.pos:min(d.real, d.pos+d.stored)])
	d.pos += n
	d.stored -= n
	if d.stored == 0 {
		d.next = blockHeader
	}
	return o + n, nil
}

// codeOrder is the order in which the lengths of the code of code lengths come
// (RFC 1951, section 3.2.7).
var codeOrder = [maxCode]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// readCodes reads the codes of a dynamic block (RFC 1951, section 3.2.7).
func (d *Decoder) readCodes() error {
	if err := d.refill(); err != nil {
		return err
	}
	nlit, ndist, ncode := 257+d.take(5), 1+d.take(5), 4+d.take(4)
	if nlit > maxLit || ndist > maxDist {
		return d.corrupt(ErrCorrupt, "a code of %d lengths and %d distances", nlit, ndist)
	}
	var lengths [maxCode]uint8
	for i, symbol := range codeOrder[:ncode] {
		if i%16 == 0 {
			if err := d.refill(); err != nil {
				return err
			}
		}
		lengths[symbol] = uint8(d.take(3))
	}
	if err := d.dynDist.build(lengths[:], codeKind); err != nil {
		return d.corrupt(ErrCorrupt, "code of code lengths: %v", err)
	}
	if err := d.readLengths(d.lengths[:nlit+ndist]); err != nil {
		return err
	}
	if err := d.dynLit.build(d.lengths[:nlit], litKind); err != nil {
		return d.corrupt(ErrCorrupt, "code of literals and lengths: %v", err)
	}
	if err := d.dynDist.build(d.lengths[nlit:nlit+ndist], distKind); err != nil {
		return d.corrupt(ErrCorrupt, "code of distances: %v", err)
	}
	return nil
}

var errRepeat = errors.New("repeats past the end")

// readLengths reads code lengths by the code in dynDist.
func (d *Decoder) readLengths(lengths []uint8) error {
	for i := 0; i < len(lengths); {
		if err := d.refill(); err != nil {
			return err
		}
		e := d.dynDist.entries[d.bits&(1<<distBits-1)]
		if e&special != 0 {
			return d.corrupt(ErrCorrupt, "no such code length")
		}
		d.take(uint(e & dropMask))
		symbol := uint8(e >> valueShift)
		var value uint8
		var times int
		switch symbol {
		case 16: // the one before again
			if i == 0 {
				return d.corrupt(ErrCorrupt, "code lengths: nothing to repeat")
			}
			value, times = lengths[i-1], 3+d.take(2)
		case 17:
			times = 3 + d.take(3)
		case 18:
			times = 11 + d.take(7)
		default:
			value, times = symbol, 1
		}
		if times > len(lengths)-i {
			return d.corrupt(ErrCorrupt, "code lengths: %v", errRepeat)
		}
		for range times {
			lengths[i] = value
			i++
		}
	}
	return nil
}
