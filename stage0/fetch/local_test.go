package fetch_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/fetch"
	"github.com/gantry-cri/gantry/stage0/fetch/registrytest"
	"github.com/gantry-cri/gantry/stage0/imageref"
)

func localImage(t *testing.T, author string, platform v1.Platform, layers ...v1.Layer) v1.Image {
	t.Helper()
	return registrytest.Image(t, registrytest.Spec{Author: author, Platform: platform, Layers: layers})
}

// writeLayout makes an OCI layout of an index and two images.
func writeLayout(t *testing.T) (dir string, first, second v1.Image) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "layout")
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	layer := registrytest.Layer(t, false, registrytest.Tar(t, "a"))
	first, second = localImage(t, "first", amd64, layer), localImage(t, "second", amd64, layer)
	index := registrytest.Index(t, false, registrytest.Entry(localImage(t, "first", arm64, layer), &arm64), registrytest.Entry(first, &amd64))
	name := func(s string) layout.Option {
		return layout.WithAnnotations(map[string]string{ocispec.AnnotationRefName: s})
	}
	if err := errors.Join(p.AppendIndex(index, name("1.0")), p.AppendImage(second, name("example.com/team/second:2"))); err != nil {
		t.Fatal(err)
	}
	return dir, first, second
}

// pack puts a directory into a tar file.
func pack(t *testing.T, dir string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	if err := errors.Join(w.AddFS(os.DirFS(dir)), w.Close()); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func writeFile(t *testing.T, name string, data []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func zip(t *testing.T, data []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	_, err := w.Write(data)
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func openLocal(t *testing.T, s string) (*fetch.Local, error) {
	t.Helper()
	at, ok, err := imageref.ParseLocation(s)
	if err != nil || !ok {
		t.Fatalf("location %q: %t, %v", s, ok, err)
	}
	return fetch.OpenLocal(t.Context(), at, t.TempDir())
}

// checkLocal opens an image and compares id and layers.
func checkLocal(t *testing.T, at, ref string, want v1.Image) {
	t.Helper()
	l, err := openLocal(t, at)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	m, err := l.Manifest(t.Context(), &ocispec.Platform{OS: "linux", Architecture: "amd64"})
	if err != nil {
		t.Fatal(err)
	}
	id, err := want.ConfigName()
	if err != nil || m.ConfigID.String() != id.String() {
		t.Errorf("%s: id %s, want %s, %v", at, m.ConfigID, id, err)
	}
	if l.Ref().String() != ref {
		t.Errorf("%s: name %q, want %q", at, l.Ref(), ref)
	}
	for _, layer := range m.Layers {
		r, err := l.Blob(t.Context(), layer)
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err := errors.Join(err, r.Close()); err != nil || digest.FromBytes(data) != layer.Digest || int64(len(data)) != layer.Size {
			t.Errorf("%s: layer %s of %d bytes: %v", at, layer.Digest, len(data), err)
		}
	}
}

func TestLayout(t *testing.T) {
	dir, first, second := writeLayout(t)
	archive := pack(t, dir)
	var packed bytes.Buffer
	z, err := zstd.NewWriter(&packed)
	if err == nil {
		_, err = z.Write(archive)
		err = errors.Join(err, z.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, place := range []string{
		"oci:" + dir, "oci-archive:" + writeFile(t, "a.tar", archive),
		"oci-archive:" + writeFile(t, "a.tar.gz", zip(t, archive)), "oci-archive:" + writeFile(t, "a.tar.zst", packed.Bytes()),
	} {
		checkLocal(t, place+":1.0", "", first)
		checkLocal(t, place+":example.com/team/second:2", "example.com/team/second:2", second)
	}
}

func TestDockerArchive(t *testing.T) {
	plain := registrytest.PlainLayer(t, true, registrytest.Tar(t, "a"))
	one, two := localImage(t, "one", amd64, plain), localImage(t, "two", amd64, plain, registrytest.Layer(t, true, registrytest.Tar(t, "b")))
	tag := func(s string) name.Tag {
		tag, err := name.NewTag(s)
		if err != nil {
			t.Fatal(err)
		}
		return tag
	}
	var buf bytes.Buffer
	if err := tarball.MultiWrite(map[name.Tag]v1.Image{tag("example.com/one:1"): one, tag("example.com/two:2"): two}, &buf); err != nil {
		t.Fatal(err)
	}
	file := writeFile(t, "saved.tar", buf.Bytes())
	checkLocal(t, "docker-archive:"+file+":example.com/one:1", "example.com/one:1", one)
	checkLocal(t, "docker-archive:"+file+":example.com/two:2", "example.com/two:2", two)
	_, err := openLocal(t, "docker-archive:"+file)
	if !errors.Is(err, errdefs.ErrInvalid) || !strings.Contains(err.Error(), "example.com/one:1") {
		t.Errorf("two images, none is named: %v", err)
	}
	if _, err := openLocal(t, "docker-archive:"+file+":example.com/three"); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("a third one: %v", err)
	}
}

// TestSavedLinks reads an archive of an old docker, in which equal layers are
// links.
func TestSavedLinks(t *testing.T) {
	layer := registrytest.Tar(t, "a")
	img := localImage(t, "links", amd64, registrytest.PlainLayer(t, true, layer))
	config, err := img.RawConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	checkLocal(t, "docker-archive:"+writeFile(t, "x.tar", archiveOf(t,
		tar.Header{Name: "aa/layer.tar", Typeflag: tar.TypeReg}, layer,
		tar.Header{Name: "bb/layer.tar", Typeflag: tar.TypeSymlink, Linkname: "../aa/layer.tar"}, nil,
		tar.Header{Name: "c.json", Typeflag: tar.TypeReg}, config,
		tar.Header{Name: "manifest.json", Typeflag: tar.TypeReg}, []byte(`[{"Config":"c.json","RepoTags":null,"Layers":["bb/layer.tar"]}]`),
	)), "", img)
}

// archiveOf makes a tar file of headers and contents in turn.
func archiveOf(t *testing.T, parts ...any) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for i := 0; i < len(parts); i += 2 {
		h, data := parts[i].(tar.Header), []byte(nil)
		if parts[i+1] != nil {
			data = parts[i+1].([]byte)
		}
		h.Size = int64(len(data))
		err := w.WriteHeader(&h)
		if err == nil {
			_, err = w.Write(data)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// longNames has more bytes of names than an index may take.
func longNames(t *testing.T) []byte {
	t.Helper()
	var parts []any
	for i := range 4200 {
		parts = append(parts, tar.Header{Name: fmt.Sprintf("%s%d", strings.Repeat("n", 4000), i), Typeflag: tar.TypeDir}, nil)
	}
	return archiveOf(t, parts...)
}

// TestManyFiles refuses an archive of more files than an index may have.
func TestManyFiles(t *testing.T) {
	file := filepath.Join(t.TempDir(), "many.tar")
	header := archiveOf(t, tar.Header{Name: "a", Typeflag: tar.TypeDir}, nil)[:512]
	if err := os.WriteFile(file, bytes.Repeat(header, 100_001), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openLocal(t, "docker-archive:"+file); !errors.Is(err, errdefs.ErrInvalid) || !strings.Contains(err.Error(), "more than 100000 files") {
		t.Errorf("%v", err)
	}
}

func TestLocalRefused(t *testing.T) {
	dir, _, _ := writeLayout(t)
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.Symlink("/etc", outside); err != nil {
		t.Fatal(err)
	}
	loop := archiveOf(t, tar.Header{Name: "manifest.json", Typeflag: tar.TypeSymlink, Linkname: "manifest.json"}, nil)
	for _, c := range []struct {
		name, at string
		class    error
		text     string
	}{
		{"no such directory", "oci:/nonexistent", errdefs.ErrNotFound, "/nonexistent"},
		{"no such archive", "oci-archive:/nonexistent", errdefs.ErrNotFound, "/nonexistent"},
		{"no layout", "oci:" + t.TempDir(), errdefs.ErrNotFound, "oci-layout"},
		{"leaves open which", "oci:" + dir, errdefs.ErrInvalid, "1.0, example.com/team/second:2"},
		{"no such name", "oci:" + dir + ":3", errdefs.ErrNotFound, `"3"`},
		{"no tar", "docker-archive:" + writeFile(t, "x", bytes.Repeat([]byte("x"), 2000)), errdefs.ErrInvalid, "read tar"},
		{"links in a circle", "docker-archive:" + writeFile(t, "x", loop), errdefs.ErrInvalid, "links"},
		{"cut gzip", "docker-archive:" + writeFile(t, "x", zip(t, loop)[:60]), io.ErrUnexpectedEOF, "decompress"},
		{"a long name", "docker-archive:" + writeFile(t, "x", archiveOf(t, tar.Header{Name: strings.Repeat("n/", 2048), Typeflag: tar.TypeDir}, nil)), errdefs.ErrInvalid, "more than 4095 bytes"},
		{"a long target", "docker-archive:" + writeFile(t, "x", archiveOf(t, tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: strings.Repeat("n/", 2048)}, nil)), errdefs.ErrInvalid, "more than 4095 bytes"},
		{"long names", "docker-archive:" + writeFile(t, "x", longNames(t)), errdefs.ErrInvalid, "names of more than 16777216 bytes"},
		{"many images", "docker-archive:" + writeFile(t, "x", archiveOf(t, tar.Header{Name: "manifest.json", Typeflag: tar.TypeReg}, []byte("["+strings.Repeat("{},", 1000)+"{}]"))), errdefs.ErrInvalid, "more than 1000"},
		{"not saved by docker", "docker-archive:" + writeFile(t, "x", pack(t, dir)), errdefs.ErrNotFound, "docker save"},
	} {
		_, err := openLocal(t, c.at)
		if !errors.Is(err, c.class) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	at, _, _ := imageref.ParseLocation("oci-archive:" + writeFile(t, "x", zip(t, pack(t, dir))) + ":1.0")
	if _, err := fetch.OpenLocal(ctx, at, t.TempDir()); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestLayoutStaysInside refuses a blob that is a link out of the layout, and one
// that is not what its name says.
func TestLayoutStaysInside(t *testing.T) {
	dir, first, _ := writeLayout(t)
	id, err := first.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	blob := filepath.Join(dir, "blobs/sha256", id.Hex)
	for name, spoil := range map[string]func() error{
		"link":  func() error { return errors.Join(os.Remove(blob), os.Symlink("/etc/passwd", blob)) },
		"other": func() error { return errors.Join(os.Remove(blob), os.WriteFile(blob, []byte("{}"), 0o600)) },
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		l, err := openLocal(t, "oci:"+dir+":1.0")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.Manifest(t.Context(), &ocispec.Platform{OS: "linux", Architecture: "amd64"}); err == nil || name == "other" && !errors.Is(err, errdefs.ErrUnverified) {
			t.Errorf("%s: %v", name, err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// FuzzLocal reads what claims to be an archive of images.
func FuzzLocal(f *testing.F) {
	for _, files := range []map[string]string{
		{"manifest.json": `[{"Config":"c","RepoTags":["a/b:1"],"Layers":["l"]}]`, "c": `{"rootfs":{"type":"layers","diff_ids":["sha256:` + strings.Repeat("0", 64) + `"]}}`, "l": "x"},
		{"oci-layout": `{"imageLayoutVersion":"1.0.0"}`, "index.json": `{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:` + strings.Repeat("0", 64) + `","size":2}]}`},
	} {
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		for name, text := range files {
			err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Size: int64(len(text))})
			if err == nil {
				_, err = w.Write([]byte(text))
			}
			if err != nil {
				f.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			f.Fatal(err)
		}
		f.Add(buf.Bytes())
	}
	file, tmp := filepath.Join(f.TempDir(), "archive"), f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, transport := range []imageref.Transport{imageref.OCIArchive, imageref.DockerArchive} {
			l, err := fetch.OpenLocal(t.Context(), imageref.Location{Transport: transport, Path: file}, tmp)
			if err != nil {
				continue
			}
			if m, err := l.Manifest(t.Context(), nil); err == nil && digest.FromBytes(m.Config) != m.ConfigID {
				t.Error("a config that is not the id's")
			}
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		}
	})
}
