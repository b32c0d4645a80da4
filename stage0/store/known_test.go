package store

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// TestKnown holds that a file is known while nothing of it has changed.
func TestKnown(t *testing.T) {
	s, dir := open(t)
	path := filepath.Join(t.TempDir(), "x.aci")
	write(t, path, []byte("one"))
	identify := func() KnownFile {
		t.Helper()
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		file, err := Identify(path, info)
		if err != nil {
			t.Fatal(err)
		}
		return file
	}
	file := identify()
	file.Digest = digest.SHA512.FromString("one")
	if err := s.Remember(t.Context(), file); err != nil {
		t.Fatal(err)
	}
	if d, ok := s.Known(identify()); ok {
		t.Errorf("a file of this moment is known as %s", d)
	}
	<-time.After(minAge + 10*time.Millisecond)
	if err := s.Remember(t.Context(), file); err != nil {
		t.Fatal(err)
	}
	if d, ok := s.Known(identify()); !ok || d != file.Digest {
		t.Errorf("it is known as %s, %v", d, ok)
	}
	// The same size and time: what changed nobody can hide.
	write(t, path, []byte("two"))
	if err := os.Chtimes(path, time.Unix(0, file.Modified), time.Unix(0, file.Modified)); err != nil {
		t.Fatal(err)
	}
	if d, ok := s.Known(identify()); ok {
		t.Errorf("another file is known as %s", d)
	}
	write(t, s.knownPath(path), []byte("{"))
	if d, ok := s.Known(file); ok {
		t.Errorf("by a damaged record it is known as %s", d)
	}
	// No image has the digest.
	if err := s.Remember(t.Context(), file); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, filesDir, ".left-1"), nil)
	if err := s.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(filepath.Join(dir, filesDir)); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
