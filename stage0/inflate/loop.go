package inflate

import (
	"encoding/binary"
	"io"
)

// decode decompresses of a block of Huffman codes what is there and fits: buf is
// filled up to o. This is the loop that all the time goes into. Before a turn
// there are 24 bytes to read and 320 bytes of room, and inside nothing is checked
// but the distance.
func (d *Decoder) decode(buf []byte, o int) (int, error) {
	for d.next == huffmanBlock && o <= len(buf)-Slack {
		if d.end-d.pos < ahead {
			if err := d.more(); err != nil {
				return o, err
			}
		}
		var status loopStatus
		o, status = d.loop(buf, o)
		switch {
		case d.overrun():
			return o, d.corrupt(io.ErrUnexpectedEOF, "")
		case status == badCode:
			return o, d.corrupt(ErrCorrupt, "no such code")
		case status == badDistance:
			return o, d.corrupt(ErrCorrupt, "a match reaches back before the beginning")
		case status == blockEnded:
			d.next = blockHeader
		}
	}
	return o, nil
}

type loopStatus int

const (
	paused loopStatus = iota
	blockEnded
	badCode
	badDistance
)

// One function, because what a call costs here is what the whole is for.
//
//nolint:funlen,gocognit // as said above
func (d *Decoder) loop(buf []byte, o int) (int, loopStatus) {
	var (
		in, pos   = d.in, d.pos
		bb, n     = d.bits, d.nbits
		lit, dist = &d.lit.entries, &d.dist.entries
		inEnd     = d.end - ahead
		outEnd    = len(buf) - Slack
		oldest    = d.oldest
		status    = paused
	)
	bb, n, pos = fill(in, bb, n, pos)
	e := lit[bb&(1<<litBits-1)]
	for pos <= inEnd && o <= outEnd {
		if e&literal != 0 {
			binary.LittleEndian.PutUint16(buf[o:o+2], uint16(e>>valueShift))
			o += int(e >> lengthShift & 63)
			bb >>= e & dropMask
			n -= uint(e & dropMask)
			e = lit[bb&(1<<litBits-1)]
			if e&literal != 0 {
				binary.LittleEndian.PutUint16(buf[o:o+2], uint16(e>>valueShift))
				o += int(e >> lengthShift & 63)
				bb >>= e & dropMask
				n -= uint(e & dropMask)
				e = lit[bb&(1<<litBits-1)]
				if e&literal != 0 {
					binary.LittleEndian.PutUint16(buf[o:o+2], uint16(e>>valueShift))
					o += int(e >> lengthShift & 63)
					bb >>= e & dropMask
					n -= uint(e & dropMask)
					bb, n, pos = fill(in, bb, n, pos)
					e = lit[bb&(1<<litBits-1)]
					continue
				}
			}
			bb, n, pos = fill(in, bb, n, pos)
		}
		if e&special != 0 {
			if e&secondary == secondary {
				e = lit[(e>>valueShift+uint32(bb>>litBits)&(1<<(e>>lengthShift&15)-1))&(tableSize-1)]
				if e&literal != 0 {
					buf[o] = byte(e >> valueShift)
					o++
					bb >>= e & dropMask
					n -= uint(e & dropMask)
					bb, n, pos = fill(in, bb, n, pos)
					e = lit[bb&(1<<litBits-1)]
					continue
				}
			}
			if e&special != 0 {
				status = badCode
				if e&endOfBlock == endOfBlock {
					status = blockEnded
				}
				bb >>= e & dropMask
				n -= uint(e & dropMask)
				break
			}
		}
		length := int(e>>valueShift) + int(bb&(1<<(e&dropMask)-1)>>(e>>lengthShift&63))
		bb >>= e & dropMask
		n -= uint(e & dropMask)

		e = dist[bb&(1<<distBits-1)]
		if e&special != 0 {
			if e&secondary == secondary {
				e = dist[(e>>valueShift+uint32(bb>>distBits)&(1<<(e>>lengthShift&15)-1))&(tableSize-1)]
			}
			if e&special != 0 {
				status = badCode
				break
			}
		}
		distance := int(e>>valueShift) + int(bb&(1<<(e&dropMask)-1)>>(e>>lengthShift&63))
		bb >>= e & dropMask
		n -= uint(e & dropMask)
		if distance > o-oldest {
			status = badDistance
			break
		}
		bb, n, pos = fill(in, bb, n, pos)
		e = lit[bb&(1<<litBits-1)]

		if distance >= 8 && length <= 64 {
			for from, to := o-distance, o; ; from, to = from+16, to+16 {
				binary.LittleEndian.PutUint64(buf[to:to+8], binary.LittleEndian.Uint64(buf[from:from+8]))
				binary.LittleEndian.PutUint64(buf[to+8:to+16], binary.LittleEndian.Uint64(buf[from+8:from+16]))
				if to+16 >= o+length {
					break
				}
			}
		} else {
			repeat(buf[o-distance:o+length], distance)
		}
		o += length
	}
	d.pos, d.bits, d.nbits = pos, bb, n
	return o, status
}

// fill brings the bit buffer to at least 56 bits. It is inlined.
func fill(in []byte, bb uint64, n uint, pos int) (bits uint64, count uint, next int) {
	bb |= binary.LittleEndian.Uint64(in[pos:pos+8]) << (n & 63)
	return bb, n | 56, pos + int((63-n)>>3)
}

// repeat fills buf with its first n bytes over and over.
func repeat(buf []byte, n int) {
	if n == 1 {
		b := buf[0]
		rest := buf[1:]
		for i := range rest {
			rest[i] = b
		}
		return
	}
	for n < len(buf) {
		n += copy(buf[n:], buf[:n])
	}
}
