package inflate_test

import (
	"bytes"
	stdflate "compress/flate"
	stdgzip "compress/gzip"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/gantry-cri/gantry/stage0/inflate"
)

// inputs are the kinds of data that blocks, codes and matches of all kinds come of.
func inputs(tb testing.TB) map[string][]byte {
	tb.Helper()
	random := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 300_000)
	skewed, far, runs := make([]byte, 700_000), make([]byte, 400_000), make([]byte, 0, 500_000)
	for i := range noise {
		noise[i] = byte(random.Uint32())
	}
	for i := range skewed { // long codes
		skewed[i] = byte(random.ExpFloat64() * 8)
	}
	for i := range far { // matches as far back as there can be
		if far[i] = byte(random.Uint32()); i >= 32768 && i%1000 > 20 {
			far[i] = far[i-32768]
		}
	}
	for len(runs) < 490_000 { // short distances
		pattern := noise[random.IntN(1000):][:1+random.IntN(12)]
		runs = append(runs, bytes.Repeat(pattern, 1+random.IntN(400))...)
	}
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		tb.Fatal(err)
	}
	return map[string][]byte{
		"empty": {}, "one byte": {7}, "noise": noise, "skewed": skewed, "far": far, "runs": runs,
		"zeros": make([]byte, 1_000_000), "program": program[:min(3<<20, len(program))],
		"text": []byte(strings.Repeat("the quick brown fox jumps over the lazy dog\n", 9000)),
	}
}

// pack makes a gzip stream; a flush now and then makes empty stored blocks.
func pack(tb testing.TB, data []byte, level int, flush bool) []byte {
	tb.Helper()
	var buf bytes.Buffer
	w, err := stdgzip.NewWriterLevel(&buf, level)
	if err != nil {
		tb.Fatal(err)
	}
	for part := range chunks(data, 77_777) {
		if _, err := w.Write(part); err != nil {
			tb.Fatal(err)
		}
		if flush {
			if err := w.Flush(); err != nil {
				tb.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return buf.Bytes()
}

func chunks(data []byte, size int) func(func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for len(data) > 0 {
			n := min(size, len(data))
			if !yield(data[:n]) {
				return
			}
			data = data[n:]
		}
	}
}

func TestEqualsStandardLibrary(t *testing.T) {
	for name, data := range inputs(t) {
		for _, level := range []int{stdflate.HuffmanOnly, stdflate.NoCompression, 1, 6, 9} {
			for _, flush := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%d/%t", name, level, flush), func(t *testing.T) {
					packed := pack(t, data, level, flush)
					got, err := io.ReadAll(inflate.NewReader(bytes.NewReader(packed)))
					if err != nil || !bytes.Equal(got, data) {
						t.Errorf("%d bytes of %d, %v", len(got), len(data), err)
					}
				})
			}
		}
	}
}

// TestSourcesAndBuffers reads from sources that give little at a time into
// buffers of all sizes.
func TestSourcesAndBuffers(t *testing.T) {
	data := inputs(t)["runs"][:200_000]
	packed := append(pack(t, data, 6, true), pack(t, data[:5000], 0, false)...)
	data = append(bytes.Clone(data), data[:5000]...)
	for name, source := range map[string]func(io.Reader) io.Reader{
		"whole": func(r io.Reader) io.Reader { return r }, "bytes": iotest.OneByteReader, "halves": iotest.HalfReader, "data with the error": iotest.DataErrReader,
	} {
		for _, size := range []int{1, 2, 300, 4096, 65537} {
			d := inflate.New(source(bytes.NewReader(packed)))
			var got []byte
			var err error
			for err == nil {
				buf := make([]byte, inflate.Window+size+inflate.Slack)
				var n int
				n, err = d.Fill(buf)
				got = append(got, buf[inflate.Window:inflate.Window+n]...)
			}
			if !errors.Is(err, io.EOF) || !bytes.Equal(got, data) {
				t.Errorf("%s, buffers of %d: %d bytes of %d, %v", name, size, len(got), len(data), err)
			}
			if n, err := d.Fill(make([]byte, 1<<20)); n != 0 || !errors.Is(err, io.EOF) {
				t.Errorf("%s: after the end: %d, %v", name, n, err)
			}
		}
	}
	if _, err := inflate.New(bytes.NewReader(packed)).Fill(make([]byte, inflate.Window+inflate.Slack)); err == nil {
		t.Error("a buffer without room is taken")
	}
}

// TestCut cuts a stream at every byte.
func TestCut(t *testing.T) {
	data := append(inputs(t)["program"][:2000], inputs(t)["noise"][:300]...)
	for _, level := range []int{0, 1, 9} {
		packed := pack(t, data, level, true)
		for n := range packed {
			if _, err := io.ReadAll(inflate.NewReader(bytes.NewReader(packed[:n]))); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("level %d, %d of %d bytes: %v", level, n, len(packed), err)
			}
		}
	}
}

// TestFlip damages every byte of a stream, and compares what comes of it.
func TestFlip(t *testing.T) {
	data := append(inputs(t)["program"][:1200], inputs(t)["noise"][:60]...)
	for _, level := range []int{0, 1, 9} {
		packed := pack(t, data, level, true)
		for i := range packed {
			for bit := range 8 {
				damaged := bytes.Clone(packed)
				damaged[i] ^= 1 << bit
				compare(t, damaged)
			}
		}
	}
}

func TestHeaders(t *testing.T) {
	var buf bytes.Buffer
	w := stdgzip.NewWriter(&buf)
	w.Name, w.Comment, w.Extra = "name", "comment", []byte("extra field that is longer than twenty-four bytes")
	if _, err := w.Write([]byte("data")); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(inflate.NewReader(&buf)); err != nil || string(got) != "data" {
		t.Errorf("%q, %v", got, err)
	}
	member := pack(t, []byte("data"), 6, false)
	withCRC := append([]byte{0x1f, 0x8b, 8, 2, 0, 0, 0, 0, 0, 0xff, 0x90, 0xc9}, member[10:]...)
	wrongCRC := append([]byte{0x1f, 0x8b, 8, 2, 0, 0, 0, 0, 0, 0xff, 0x90, 0xc8}, member[10:]...)
	longName := append([]byte{0x1f, 0x8b, 8, 8, 0, 0, 0, 0, 0, 0xff}, bytes.Repeat([]byte{'x'}, 70_000)...)
	for name, c := range map[string]struct {
		stream []byte
		want   error
	}{
		"nothing": {nil, io.ErrUnexpectedEOF}, "no gzip": {bytes.Repeat([]byte{'x'}, 30), inflate.ErrCorrupt},
		"other method": {append([]byte{0x1f, 0x8b, 7}, member[3:]...), inflate.ErrCorrupt},
		"header's CRC": {withCRC, nil}, "wrong CRC": {wrongCRC, inflate.ErrCorrupt},
		"endless name": {longName, inflate.ErrCorrupt},
		"behind it":    {append(bytes.Clone(member), "more that is no member"...), inflate.ErrCorrupt},
		"two":          {append(bytes.Clone(member), member...), nil},
	} {
		if _, err := io.ReadAll(inflate.NewReader(bytes.NewReader(c.stream))); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSourceFails(t *testing.T) {
	packed := pack(t, make([]byte, 1000), 6, false)
	broken := errors.New("broken")
	if _, err := io.ReadAll(inflate.NewReader(io.MultiReader(bytes.NewReader(packed[:15]), iotest.ErrReader(broken)))); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

// compare lets the standard library judge a stream: the same is taken, with the
// same output.
func compare(tb testing.TB, stream []byte) {
	tb.Helper()
	const limit = 4 << 20
	var want []byte
	r, wantErr := stdgzip.NewReader(bytes.NewReader(stream))
	if wantErr == nil {
		want, wantErr = io.ReadAll(io.LimitReader(r, limit))
	}
	got, err := io.ReadAll(io.LimitReader(inflate.NewReader(bytes.NewReader(stream)), limit))
	if errors.Is(wantErr, stdgzip.ErrChecksum) || len(want) == limit {
		return // the checksum is not our business
	}
	if (err == nil) != (wantErr == nil) && !longText(stream, wantErr) {
		tb.Fatalf("%v, want %v, of %x", err, wantErr, stream)
	}
	if err == nil && wantErr == nil && !bytes.Equal(got, want) {
		tb.Fatalf("%d bytes, want %d, of %x", len(got), len(want), stream)
	}
}

// longText reports whether the standard library refuses a name or comment for its
// length alone, at 512 bytes.
func longText(stream []byte, err error) bool {
	return errors.Is(err, stdgzip.ErrHeader) && len(stream) > 512
}

func FuzzInflate(f *testing.F) {
	for _, data := range inputs(f) {
		for _, level := range []int{stdflate.HuffmanOnly, 0, 1, 9} {
			f.Add(pack(f, data[:min(2000, len(data))], level, true))
		}
	}
	f.Fuzz(func(t *testing.T, stream []byte) {
		compare(t, stream)
		// The same as blocks alone, so that headers do not stand in the way.
		compareBlocks(t, stream)
	})
}

// compareBlocks puts a header before the bytes and compares what the blocks give.
func compareBlocks(tb testing.TB, blocks []byte) {
	tb.Helper()
	const limit = 4 << 20
	want, wantErr := io.ReadAll(io.LimitReader(stdflate.NewReader(bytes.NewReader(blocks)), limit))
	stream := append([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff}, blocks...)
	got, err := io.ReadAll(io.LimitReader(inflate.NewReader(bytes.NewReader(stream)), limit))
	if wantErr == nil && (len(got) < len(want) || !bytes.Equal(got[:len(want)], want)) {
		tb.Fatalf("%d bytes, %v, want %d, of %x", len(got), err, len(want), blocks)
	}
	if wantErr != nil && err == nil {
		tb.Fatalf("%d bytes, want %v, of %x", len(got), wantErr, blocks)
	}
}
