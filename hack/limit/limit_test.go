package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
)

// archive has one entry of each kind that layers of the benchmarks have.
func archive(t *testing.T, content []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, h := range []tar.Header{
		{Typeflag: tar.TypeDir, Name: "d/", Mode: 0o755},
		{Typeflag: tar.TypeReg, Name: "d/f", Mode: 0o640, Size: int64(len(content)), ModTime: at},
		{Typeflag: tar.TypeLink, Name: "d/hard", Linkname: "d/f"},
		{Typeflag: tar.TypeSymlink, Name: "d/soft", Linkname: "f"},
		{Typeflag: tar.TypeDir, Name: "implied/d/", Mode: 0o755},
	} {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := w.Write(content); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func TestMeasure(t *testing.T) {
	content := bytes.Repeat([]byte("Gantry readies pods. "), 100_000)
	plain := archive(t, content)
	var zipped, zstandard bytes.Buffer
	z := gzip.NewWriter(&zipped)
	s, err := zstd.NewWriter(&zstandard)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []interface {
		Write([]byte) (int, error)
		Close() error
	}{z, s} {
		if _, err := w.Write(plain); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	registry := http.NewServeMux()
	for path, blob := range map[string][]byte{"/gzip": zipped.Bytes(), "/zstd": zstandard.Bytes(), "/cut": zipped.Bytes()[:zipped.Len()/2]} {
		registry.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(blob) })
	}
	server := httptest.NewServer(registry)
	defer server.Close()

	dir := t.TempDir()
	var l limit
	if err := l.measure(dir, os.Getpid(), []string{server.URL + "/gzip", server.URL + "/zstd"}); err != nil {
		t.Fatal(err)
	}
	if l.Blob != int64(zipped.Len()+zstandard.Len()) || l.Tar != 2*int64(len(plain)) || l.Content != 2*int64(len(content)) || l.Entries != 10 {
		t.Errorf("measured %+v of two blobs of %d and %d bytes, archives of %d, contents of %d", l, zipped.Len(), zstandard.Len(), len(plain), len(content))
	}
	if l.Receive <= 0 || l.HashBlob <= 0 || l.Decompress <= 0 || l.HashTar <= 0 || l.Write <= 0 || l.WriteBack < 0 || l.Disk <= 0 {
		t.Errorf("a step took no time: %+v", l)
	}
	for _, layer := range []string{"0", "1"} {
		for _, name := range []string{"f", "hard", "soft"} {
			if got, err := os.ReadFile(filepath.Join(dir, layer, "d", name)); err != nil || !bytes.Equal(got, content) {
				t.Errorf("%s/%s has %d bytes, err %v", layer, name, len(got), err)
			}
		}
	}
	for _, path := range []string{"/none", "/cut"} {
		var l limit
		if err := l.measure(t.TempDir(), os.Getpid(), []string{server.URL + path}); err == nil {
			t.Errorf("%s was measured: %+v", path, l)
		}
	}
}
