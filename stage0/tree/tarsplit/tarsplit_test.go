package tarsplit_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/format"
	"github.com/gantry-cri/gantry/stage0/format/formattest"
	"github.com/gantry-cri/gantry/stage0/tree/tarsplit"
)

// raw and extent are what a test tells a Writer.
type raw string

func write(t testing.TB, pieces ...any) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := tarsplit.NewWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pieces {
		switch p := p.(type) {
		case raw:
			err = w.Raw([]byte(p))
		case tarsplit.Extent:
			err = w.Extent(p)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// read returns the pieces of a record, neighbours of raw bytes in one.
func read(record []byte) (pieces []any, err error) {
	r, err := tarsplit.NewReader(bytes.NewReader(record))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	for {
		op, err := r.Next()
		if errors.Is(err, io.EOF) {
			return pieces, nil
		}
		if err != nil {
			return pieces, err
		}
		if op.Raw == nil {
			pieces = append(pieces, op.Extent)
			continue
		}
		if last := len(pieces) - 1; last >= 0 {
			if before, ok := pieces[last].(raw); ok {
				pieces[last] = before + raw(op.Raw)
				continue
			}
		}
		pieces = append(pieces, raw(op.Raw))
	}
}

var some = []any{
	raw("header"),
	tarsplit.Extent{Path: "a/b", Length: 5, Sum: 1},
	raw("padding and header"),
	tarsplit.Extent{Path: "a/b", Generation: 1, Offset: 7, Length: 1 << 40, Sum: 0xffffffff},
	tarsplit.Extent{Path: "a/b", Generation: 1, Offset: 1 << 50, Length: 3},
	tarsplit.Extent{Path: "\xff \n..x"},
	raw(strings.Repeat("long", 100_000)),
}

func TestRoundTrip(t *testing.T) {
	for _, pieces := range [][]any{nil, some, some[:1], some[1:2], some[6:]} {
		got, err := read(write(t, pieces...))
		if err != nil || !reflect.DeepEqual(got, pieces) {
			t.Errorf("got %.200v, %v\nwant %.200v", got, err, pieces)
		}
	}
}

// TestDamage cuts a record at each place and flips bits of each byte: nothing else
// than what was written is ever read to the end.
func TestDamage(t *testing.T) {
	good := write(t, some[:6]...)
	for i := range good {
		if _, err := read(good[:i]); !errors.Is(err, tarsplit.ErrDamaged) {
			t.Errorf("cut after %d bytes: %v", i, err)
		}
		for _, bit := range []byte{1, 8, 128} {
			bad := bytes.Clone(good)
			bad[i] ^= bit
			got, err := read(bad)
			if err == nil && !reflect.DeepEqual(got, some[:6]) {
				t.Errorf("bit %d of byte %d flipped: read %v", bit, i, got)
			}
			if err != nil && !errors.Is(err, tarsplit.ErrDamaged) && !errors.Is(err, errdefs.ErrUnsupported) {
				t.Errorf("bit %d of byte %d flipped: %v", bit, i, err)
			}
		}
	}
	if _, err := read(append(good, 0)); !errors.Is(err, tarsplit.ErrDamaged) {
		t.Errorf("a byte too much: %v", err)
	}
}

// TestRefused has records that no Writer makes.
func TestRefused(t *testing.T) {
	extent := func(path string, generation, offset, length uint64) []byte {
		op := append([]byte{2, byte(len(path))}, path...)
		for _, n := range []uint64{generation, offset, length} {
			op = binary.AppendUvarint(op, n)
		}
		return append(op, 0, 0, 0, 0)
	}
	for name, ops := range map[string][]byte{
		"another operation":      {3},
		"no bytes":               {1, 0},
		"too many bytes":         append(binary.AppendUvarint([]byte{1}, 1<<30), 'x'),
		"another length":         {1, 1, 'x', 0, 2},
		"bytes after the end":    {0, 0, 0},
		"no path":                append(extent("", 0, 0, 0), 0, 0),
		"absolute path":          append(extent("/etc/passwd", 0, 0, 0), 0, 0),
		"path out of the tree":   append(extent("../x", 0, 0, 0), 0, 0),
		"path with dots":         append(extent("a/../x", 0, 0, 0), 0, 0),
		"the root":               append(extent(".", 0, 0, 0), 0, 0),
		"path with NUL":          append(extent("a\x00", 0, 0, 0), 0, 0),
		"offset below zero":      append(extent("a", 0, 1<<63, 0), 0, 0),
		"end beyond all":         extent("a", 0, 1<<62, 1<<62),
		"length beyond all":      append(extent("a", 0, 0, 1<<62), extent("b", 0, 0, 1<<62)...),
		"number without its end": {2, 0x80},
	} {
		t.Run(name, func(t *testing.T) {
			z, err := zstd.NewWriter(nil)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := read(z.EncodeAll(ops, []byte("{\"schema\":1}\n"))); !errors.Is(err, tarsplit.ErrDamaged) {
				t.Errorf("read %v, %v", got, err)
			}
		})
	}
	_, err := read([]byte("{\"schema\":2}\n"))
	if !errors.Is(err, errdefs.ErrUnsupported) || errors.Is(err, tarsplit.ErrDamaged) {
		t.Errorf("a later version: %v", err)
	}
}

// TestFormat reads a record of each version, and writes the same again.
func TestFormat(t *testing.T) {
	formattest.Run(t, format.TarSplit, func(t *testing.T, line []byte) []byte {
		file := filepath.Join("testdata", formattest.Name(format.TarSplit, format.TarSplit.Current))
		record, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := read(record); err != nil || !reflect.DeepEqual(got, some) {
			t.Errorf("%s: %.200v, %v", file, got, err)
		}
		if !bytes.HasPrefix(record, line) {
			t.Errorf("%s does not begin with %s", file, line)
		}
		first, _, _ := bytes.Cut(write(t), []byte("\n"))
		return append(first, '\n')
	})
}

// FuzzRead holds that no record makes the reader panic, allocate without bound or
// name a file outside, and that what it reads can be written and read again.
func FuzzRead(f *testing.F) {
	f.Add(write(f, some[:6]...))
	f.Add(write(f))
	f.Add([]byte("{\"schema\":1}\n"))
	f.Add([]byte("{\"schema\":2}\n"))
	f.Fuzz(func(t *testing.T, record []byte) {
		pieces, err := read(record)
		if err != nil {
			if !errors.Is(err, tarsplit.ErrDamaged) && !errors.Is(err, errdefs.ErrUnsupported) {
				t.Error(err)
			}
			return
		}
		for _, p := range pieces {
			if e, ok := p.(tarsplit.Extent); ok && !filepath.IsLocal(e.Path) {
				t.Errorf("path %q", e.Path)
			}
		}
		again, err := read(write(t, pieces...))
		if err != nil || !reflect.DeepEqual(again, pieces) {
			t.Errorf("read %v, then %v, %v", pieces, again, err)
		}
	})
}
