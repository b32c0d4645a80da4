package tarsplit

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/gantry-cri/gantry/stage0/format"
)

// Writer writes a record. Its methods are told of the tar's bytes in their order.
type Writer struct {
	z    *zstd.Encoder
	raw  []byte // not written yet
	op   []byte // scratch
	path string // of the last extent
	size int64  // of the tar so far
}

// header is the first line of a record.
type header struct {
	Schema int `json:"schema"` // format.TarSplit's
}

// NewWriter begins a record. The caller closes w after Close.
func NewWriter(w io.Writer) (*Writer, error) {
	line, err := json.Marshal(header{format.TarSplit.Current})
	if err != nil {
		return nil, fmt.Errorf("encode header: %w", err)
	}
	if _, err := w.Write(append(line, '\n')); err != nil {
		return nil, err
	}
	z, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
		zstd.WithLowerEncoderMem(true), zstd.WithWindowSize(window))
	if err != nil {
		return nil, err
	}
	return &Writer{z: z, raw: make([]byte, 0, maxRaw)}, nil
}

// Raw adds bytes that are in no file.
func (w *Writer) Raw(p []byte) error {
	w.size += int64(len(p))
	for len(p) > 0 {
		n := min(len(p), maxRaw-len(w.raw))
		w.raw = append(w.raw, p[:n]...)
		p = p[n:]
		if len(w.raw) == maxRaw {
			if err := w.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

// Extent adds bytes that a file has.
func (w *Writer) Extent(e Extent) error {
	if err := w.flush(); err != nil {
		return err
	}
	w.size += e.Length
	path := e.Path
	if path == w.path {
		path = ""
	}
	w.path = e.Path
	op := append(w.op[:0], opExtent)
	op = binary.AppendUvarint(op, uint64(len(path)))
	op = append(op, path...)
	for _, n := range []uint64{e.Generation, uint64(e.Offset), uint64(e.Length)} { //nolint:gosec // neither is negative
		op = binary.AppendUvarint(op, n)
	}
	w.op = binary.LittleEndian.AppendUint32(op, e.Sum)
	_, err := w.z.Write(w.op)
	return err
}

// flush writes what Raw has gathered.
func (w *Writer) flush() error {
	if len(w.raw) == 0 {
		return nil
	}
	w.op = binary.AppendUvarint(append(w.op[:0], opRaw), uint64(len(w.raw)))
	_, err := w.z.Write(w.op)
	if err == nil {
		_, err = w.z.Write(w.raw)
	}
	w.raw = w.raw[:0]
	return err
}

// Close ends the record, which without it is damaged.
func (w *Writer) Close() error {
	err := w.flush()
	if err == nil {
		_, err = w.z.Write(binary.AppendUvarint(append(w.op[:0], opEnd), uint64(w.size))) //nolint:gosec // not negative
	}
	return errors.Join(err, w.z.Close())
}
