package images

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"path"
	"time"

	"github.com/google/go-containerregistry/pkg/compression"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// epoch is the time of every file made here, so that digests are reproducible.
var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// entry is one member of a layer's tar archive.
type entry struct {
	header tar.Header
	data   []byte
}

// layerTar collects the entries of one layer. The first error sticks and comes
// out of layer.
type layerTar struct {
	buf  bytes.Buffer
	w    *tar.Writer
	dirs map[string]bool
	err  error
}

func newLayerTar() *layerTar {
	l := &layerTar{dirs: map[string]bool{}}
	l.w = tar.NewWriter(&l.buf)
	return l
}

// add appends an entry; a directory that is already there is left as it is.
func (l *layerTar) add(e entry) {
	if l.err != nil {
		return
	}
	h := e.header
	if h.Typeflag == tar.TypeDir {
		if clean := path.Clean(h.Name); l.dirs[clean] {
			return
		} else {
			l.dirs[clean] = true
		}
	}
	h.Size = int64(len(e.data))
	if h.ModTime.IsZero() {
		h.ModTime = epoch
	}
	if l.err = l.w.WriteHeader(&h); l.err == nil {
		_, l.err = l.w.Write(e.data)
	}
}

func (l *layerTar) dir(name string, mode int64) {
	l.add(entry{header: tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode}})
}

func (l *layerTar) file(name string, mode int64, data string) {
	l.add(entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode}, []byte(data)})
}

func (l *layerTar) symlink(name, target string) {
	l.add(entry{header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}})
}

func (l *layerTar) hardlink(name, target string) {
	l.add(entry{header: tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o755}})
}

// whiteout hides name of the layers below.
func (l *layerTar) whiteout(name string) {
	dir, base := path.Split(name)
	l.file(dir+".wh."+base, 0, "")
}

// opaque hides what the layers below have in a directory.
func (l *layerTar) opaque(dir string) { l.file(dir+"/.wh..wh..opq", 0, "") }

// bytes closes the archive.
func (l *layerTar) bytes() ([]byte, error) {
	if l.err == nil {
		l.err = l.w.Close()
	}
	if l.err != nil {
		return nil, fmt.Errorf("write layer: %w", l.err)
	}
	return l.buf.Bytes(), nil
}

// gzipped is the layer compressed by gzip.
func (l *layerTar) gzipped(mt types.MediaType) (v1.Layer, error) {
	return l.compressed(mt, compression.GZip)
}

// zstandard is the layer compressed by zstd.
func (l *layerTar) zstandard(mt types.MediaType) (v1.Layer, error) {
	return l.compressed(mt, compression.ZStd)
}

func (l *layerTar) compressed(mt types.MediaType, by compression.Compression) (v1.Layer, error) {
	data, err := l.bytes()
	if err != nil {
		return nil, err
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
	return tarball.LayerFromOpener(open, tarball.WithMediaType(mt), tarball.WithCompression(by), tarball.WithCompressedCaching)
}

// plain is the layer as it is, uncompressed.
func (l *layerTar) plain(mt types.MediaType) (v1.Layer, error) {
	data, err := l.bytes()
	if err != nil {
		return nil, err
	}
	return static.NewLayer(data, mt), nil
}
