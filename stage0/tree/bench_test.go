package tree_test

import (
	"bytes"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantry-cri/gantry/stage0/tree"
)

// BenchmarkExtract extracts and commits one gzip layer: the file that
// GANTRY_BENCH_LAYER names, or else one that is made up. MB/s are of tar.
func BenchmarkExtract(b *testing.B) {
	blob := benchLayer(b)
	l := tree.Layer{Digest: digest.FromBytes(blob), Size: int64(len(blob)), MediaType: ocispec.MediaTypeImageLayerGzip}
	r, err := gzip.NewReader(bytes.NewReader(blob))
	if err != nil {
		b.Fatal(err)
	}
	sum := digest.Canonical.Digester()
	n, err := io.Copy(sum.Hash(), r)
	if err != nil {
		b.Fatal(err)
	}
	l.DiffID = sum.Digest()
	b.SetBytes(n)
	for _, sync := range []bool{false, true} {
		name := "extract"
		if sync {
			name = "extract and commit"
		}
		b.Run(name, func(b *testing.B) {
			for range b.N {
				benchOnce(b, l, blob, sync)
			}
			b.SetBytes(n)
		})
	}
}

func benchOnce(b *testing.B, l tree.Layer, blob []byte, commit bool) {
	b.StopTimer()
	s, _ := open(b)
	b.StartTimer()
	p, err := s.Extract(b.Context(), l, bytes.NewReader(blob))
	if err != nil {
		b.Fatal(err)
	}
	if commit {
		if err := s.Commit(b.Context(), p); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	if err := p.Discard(); err != nil {
		b.Fatal(err)
	}
	if err := s.Remove(b.Context(), p.Name()); err != nil {
		b.Fatal(err)
	}
	b.StartTimer()
}

func benchLayer(b *testing.B) []byte {
	b.Helper()
	if path := os.Getenv("GANTRY_BENCH_LAYER"); path != "" {
		blob, err := os.ReadFile(path)
		if err != nil {
			b.Fatal(err)
		}
		return blob
	}
	var items []item
	for i := range 2000 {
		name := strings.Repeat("d", 1+i%7) + "/" + strings.Repeat("f", 1+i%200) + string(rune('a'+i%26))
		items = append(items, file(name, strings.Repeat(name+"\n", 1+i%300)))
	}
	return zipped(b, archive(b, items...))
}
