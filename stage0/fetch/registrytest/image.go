package registrytest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
)

// Spec describes an image. The zero value of each field is the usual case.
type Spec struct {
	Docker   bool // Docker schema 2 instead of OCI
	Platform v1.Platform
	Author   string // makes configs differ
	Layers   []v1.Layer
	DiffIDs  []v1.Hash // instead of the layers' own
}

// Image makes an image.
func Image(t testing.TB, s Spec) v1.Image {
	t.Helper()
	manifest, config := types.OCIManifestSchema1, types.OCIConfigJSON
	if s.Docker {
		manifest, config = types.DockerManifestSchema2, types.DockerConfigJSON
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, manifest), config)
	img, err := mutate.AppendLayers(img, s.Layers...)
	if err != nil {
		t.Fatal(err)
	}
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c = c.DeepCopy()
	c.Author = s.Author
	c.OS, c.Architecture, c.Variant = s.Platform.OS, s.Platform.Architecture, s.Platform.Variant
	if s.DiffIDs != nil {
		c.RootFS.DiffIDs = s.DiffIDs
	}
	if img, err = mutate.ConfigFile(img, c); err != nil {
		t.Fatal(err)
	}
	return img
}

// Index makes an index of images, each under its platform; a nil platform leaves
// it out.
func Index(t testing.TB, docker bool, adds ...mutate.IndexAddendum) v1.ImageIndex {
	t.Helper()
	kind := types.OCIImageIndex
	if docker {
		kind = types.DockerManifestList
	}
	return mutate.AppendManifests(mutate.IndexMediaType(empty.Index, kind), adds...)
}

// Entry is an image or an index in another index.
func Entry(what mutate.Appendable, platform *v1.Platform) mutate.IndexAddendum {
	return mutate.IndexAddendum{Add: what, Descriptor: v1.Descriptor{Platform: platform}}
}

// Tar makes an archive of files and their contents, in that order: "name", "content", …
// A name that ends in a slash is that of a directory.
func Tar(t testing.TB, files ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i+1 < len(files); i += 2 {
		h := &tar.Header{Name: files[i], Mode: 0o644, Size: int64(len(files[i+1])), Typeflag: tar.TypeReg}
		if strings.HasSuffix(h.Name, "/") {
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(files[i+1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Layer makes a gzip layer of an archive.
func Layer(t testing.TB, docker bool, archive []byte) v1.Layer {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(archive); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	kind := types.OCILayer
	if docker {
		kind = types.DockerLayer
	}
	return RawLayer(t, archive, b.Bytes(), kind)
}

// PlainLayer makes a layer that is not compressed.
func PlainLayer(t testing.TB, docker bool, archive []byte) v1.Layer {
	t.Helper()
	kind := types.OCIUncompressedLayer
	if docker {
		kind = types.DockerUncompressedLayer
	}
	return RawLayer(t, archive, archive, kind)
}

// ZstdLayer makes a zstd layer of an archive.
func ZstdLayer(t testing.TB, docker bool, archive []byte) v1.Layer {
	t.Helper()
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	kind := types.OCILayerZStd
	if docker {
		kind = types.DockerUncompressedLayer + ".zstd"
	}
	return RawLayer(t, archive, z.EncodeAll(archive, nil), kind)
}

// ForeignLayer makes a foreign layer of a layer, with the addresses where it is said to
// be. Push leaves it to the test to push the layer itself to the same repository.
func ForeignLayer(l v1.Layer, kind types.MediaType, urls ...string) v1.Layer {
	return &foreignLayer{l, kind, urls}
}

// RawLayer makes a layer of an archive and its blob.
func RawLayer(t testing.TB, archive, blob []byte, kind types.MediaType) v1.Layer {
	t.Helper()
	l := &layer{archive: archive, blob: blob, kind: kind}
	var err error
	if l.digest, _, err = v1.SHA256(bytes.NewReader(blob)); err != nil {
		t.Fatal(err)
	}
	if l.diffID, _, err = v1.SHA256(bytes.NewReader(archive)); err != nil {
		t.Fatal(err)
	}
	return l
}
