package store

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/format"
	"github.com/gantry-cri/gantry/stage0/format/formattest"
)

// TestFormats reads the record of each version of image.json and of references.
func TestFormats(t *testing.T) {
	const config = "{}" // of which the image in the records has the id
	id := digest.FromString(config)
	formattest.Run(t, format.Image, func(t *testing.T, text []byte) []byte {
		dir := t.TempDir()
		write(t, filepath.Join(dir, configFile), []byte(config))
		write(t, filepath.Join(dir, imageFile), text)
		r, err := readRecord(dir, id)
		if err != nil {
			t.Fatal(err)
		}
		r.image.Schema = format.Image.Current // as Commit sets it
		now, err := encode(r.image)
		if err != nil {
			t.Fatal(err)
		}
		return now
	})
	formattest.Run(t, format.Ref, func(t *testing.T, text []byte) []byte {
		s, dir := open(t)
		file := refFile("registry.example/web:1")
		write(t, filepath.Join(dir, refsDir, file), text)
		ref, err := s.readRef(file)
		if err := errors.Join(err, s.writeRefs(ref)); err != nil {
			t.Fatal(err)
		}
		now, err := os.ReadFile(filepath.Join(dir, refsDir, file))
		if err != nil {
			t.Fatal(err)
		}
		return now
	})
}

// TestKnownFileFormats does the same with what is remembered of files.
func TestKnownFileFormats(t *testing.T) {
	formattest.Run(t, format.KnownFile, func(t *testing.T, text []byte) []byte {
		s, dir := open(t)
		path := filepath.Join(dir, filesDir, filepath.Base(s.knownPath("/srv/web.aci")))
		write(t, path, text)
		file := KnownFile{Path: "/srv/web.aci", Device: 2049, Inode: 4711, Size: 10240, Modified: 1700000000123456789, Changed: 1700000001000000000}
		var ok bool
		if file.Digest, ok = s.Known(file); !ok {
			t.Fatal("it is not known")
		}
		if err := s.Remember(t.Context(), file); err != nil {
			t.Fatal(err)
		}
		now, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return now
	})
}

// TestPinFormats does the same with pins. One that is not understood holds its image.
func TestPinFormats(t *testing.T) {
	formattest.Run(t, format.Pin, func(t *testing.T, text []byte) []byte {
		var p Pin
		if err := format.Pin.Decode(text, &p); err != nil {
			t.Fatal(err)
		}
		now, err := encode(p)
		if err != nil {
			t.Fatal(err)
		}
		return now
	})
	s, dir := open(t)
	a := newSample(t, 1)
	a.put(t, s, "docker.io/library/a:1")
	write(t, filepath.Join(dir, pinsDir, a.image.ID.Encoded()), []byte(`{"schema":99}`))
	write(t, filepath.Join(dir, pinsDir, ".left"), nil)
	if err := s.Sweep(t.Context()); err != nil {
		t.Error(err)
	}
	e, err := s.Lookup(string(a.image.ID))
	if err != nil || !e.Pinned {
		t.Errorf("a pin of a later version: %+v, %v", e, err)
	}
	if err := errors.Join(s.Pin(t.Context(), a.image.ID, time.Now().Add(-time.Second)), s.Sweep(t.Context())); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(filepath.Join(dir, pinsDir)); err != nil || len(left) != 0 {
		t.Errorf("a sweep leaves %v, %v", left, err)
	}
}

func write(t testing.TB, path string, text []byte) {
	t.Helper()
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestLaterFormat holds that records and references of a later version are left
// out by their reason and stay where they are.
func TestLaterFormat(t *testing.T) {
	s, dir := open(t)
	a := newSample(t, 1)
	a.put(t, s, "docker.io/library/a:1")
	later := []byte(`{"schema":99}`)
	files := []string{filepath.Join(dir, imagesDir, a.image.ID.Encoded(), imageFile), filepath.Join(dir, refsDir, refFile("docker.io/library/a:1"))}
	for _, f := range files {
		write(t, f, later)
	}
	s, err := Open(dir) // nothing in memory
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Sweep(t.Context()); err != nil {
		t.Error(err)
	}
	broken, err := s.Broken()
	if err != nil || len(broken) != 2 {
		t.Fatalf("Broken = %v, %v", broken, err)
	}
	for _, b := range broken {
		if !errors.Is(b.Err, errdefs.ErrUnsupported) || !strings.Contains(b.Err.Error(), "has schema 99") || strings.Contains(b.Err.Error(), "damaged") {
			t.Errorf("%s: %v", b.Path, b.Err)
		}
	}
	for _, f := range files {
		if now, err := os.ReadFile(f); err != nil || string(now) != string(later) {
			t.Errorf("%s is now %s, %v", f, now, err)
		}
	}
}
