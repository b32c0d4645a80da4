package inflate_test

import (
	"bytes"
	stdgzip "compress/gzip"
	"io"
	"os"
	"testing"

	"github.com/klauspost/compress/gzip"

	"github.com/gantry-cri/gantry/stage0/inflate"
)

// BenchmarkInflate decompresses the file that GANTRY_BENCH_LAYER names, or else
// this program, by each of those who could. MB/s are of output.
func BenchmarkInflate(b *testing.B) {
	var packed []byte
	if path := os.Getenv("GANTRY_BENCH_LAYER"); path != "" {
		var err error
		if packed, err = os.ReadFile(path); err != nil {
			b.Fatal(err)
		}
	} else {
		packed = pack(b, inputs(b)["program"], 6, false)
	}
	fill := func(src io.Reader) (total int64, err error) {
		d, buf := inflate.New(src), make([]byte, inflate.Window+256<<10+inflate.Slack)
		for err == nil {
			var n int
			n, err = d.Fill(buf)
			total += int64(n)
		}
		return total, err
	}
	reader := func(src io.Reader, err error) (int64, error) {
		if err != nil {
			return 0, err
		}
		n, err := io.Copy(io.Discard, src)
		if err == nil {
			err = io.EOF
		}
		return n, err
	}
	for _, c := range []struct {
		name string
		run  func(io.Reader) (int64, error)
	}{
		{"ours", fill},
		{"klauspost", func(src io.Reader) (int64, error) { r, err := gzip.NewReader(src); return reader(r, err) }},
		{"standard", func(src io.Reader) (int64, error) { r, err := stdgzip.NewReader(src); return reader(r, err) }},
	} {
		b.Run(c.name, func(b *testing.B) {
			for range b.N {
				n, err := c.run(bytes.NewReader(packed))
				if err != io.EOF { //nolint:errorlint // as it is
					b.Fatal(err)
				}
				b.SetBytes(n)
			}
		})
	}
}
