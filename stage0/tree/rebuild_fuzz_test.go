package tree_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/zstd"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/tree"
)

// FuzzLayer holds that what is extracted, in whatever form the layer comes, can be
// put together again into the very bytes that it came from, that a refusal has a
// class, and that no compressed stream makes more of a tree than the limits allow.
func FuzzLayer(f *testing.F) {
	if os.Getuid() != 0 {
		f.Skip("extraction needs root")
	}
	small := archive(f, folder("d", 0o755), file("d/a", "x", xattr("user.a", "b")), hard("d/b", "d/a"), link("l", "d"), file("d/.wh.c", ""))
	long := archive(f, file(string(bytes.Repeat([]byte("n"), 200)), "x"), device(tar.TypeFifo, "p", 0, 0))
	for _, data := range [][]byte{small, long} {
		f.Add(data, byte(0))
		f.Add(zipped(f, data), byte(1))
		f.Add(zstandard(f, data, 1<<20), byte(2))
	}
	f.Add(append(bytes.Clone(small), "after the end"...), byte(0))
	f.Fuzz(func(t *testing.T, blob []byte, form byte) {
		s, dir := open(t)
		s.Limits = tree.Limits{Entries: 1000, Bytes: 4 << 20, PathLength: 500, Depth: 50}
		mediaType, data := uncompressed(blob, form)
		p, err := s.Extract(t.Context(), promise(blob, data, mediaType), bytes.NewReader(blob))
		if err != nil {
			if !errors.Is(err, errdefs.ErrInvalid) && !errors.Is(err, errdefs.ErrUnsupported) && !errors.Is(err, errdefs.ErrUnverified) {
				t.Errorf("%v is of no class", err)
			}
			isEmpty(t, filepath.Join(dir, "tmp"))
			return
		}
		want := p.Meta()
		if err := s.Commit(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		r, err := s.Rebuild(t.Context(), p.Name())
		if err != nil {
			t.Fatal(err)
		}
		if r.Meta.DiffID != want.DiffID || r.Meta.TarSize != int64(len(data)) || len(r.Damaged) > 0 {
			t.Errorf("%+v, damaged %v, want %+v", r.Meta, r.Damaged, want)
		}
		if err := r.Discard(); err != nil {
			t.Error(err)
		}
	})
}

// uncompressed is what a decompressor that is not ours makes of a blob, of which
// nothing but the first bytes may be meant: their digest is what is promised.
func uncompressed(blob []byte, form byte) (mediaType string, data []byte) {
	const most = 8 << 20
	var r io.Reader
	switch form % 3 {
	case 0:
		return ocispec.MediaTypeImageLayer, blob
	case 1:
		mediaType = ocispec.MediaTypeImageLayerGzip
		z, err := gzip.NewReader(bytes.NewReader(blob))
		if err != nil {
			return mediaType, nil
		}
		r = z
	case 2:
		mediaType = ocispec.MediaTypeImageLayerZstd
		z, err := zstd.NewReader(bytes.NewReader(blob), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(8<<20))
		if err != nil {
			return mediaType, nil
		}
		defer z.Close()
		r = z
	}
	data, _ = io.ReadAll(io.LimitReader(r, most)) // what is cut short is refused
	return mediaType, data
}
