package spool_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/spool"
)

const content = "the bytes of a blob"

var blob = digest.FromString(content)

func open(t *testing.T, dir string) *spool.Spool {
	t.Helper()
	s, err := spool.Open(t.Context(), dir, blob, int64(len(content)))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// read reads a blob whose rest is what the source gives, and closes the reader.
func read(t *testing.T, s *spool.Spool, source io.Reader) (string, error) {
	t.Helper()
	r := s.Reader(io.NopCloser(source), func(err error) { t.Error(err) })
	got, err := io.ReadAll(iotest.OneByteReader(r))
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	return string(got), err
}

func names(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return strings.Join(all, " ")
}

// TestResume cuts a blob twice, and drops its spool when it is complete.
func TestResume(t *testing.T) {
	dir := t.TempDir()
	cut := errors.New("cut")
	for at, to := 0, 7; at < len(content); at, to = to, len(content) {
		s := open(t, dir)
		if s.Have() != int64(at) {
			t.Fatalf("it has %d bytes, want %d", s.Have(), at)
		}
		got, err := read(t, s, io.MultiReader(strings.NewReader(content[at:to]), iotest.ErrReader(cut)))
		if got != content[:to] || to < len(content) && !errors.Is(err, cut) {
			t.Fatalf("read %q, %v", got, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	s := open(t, dir)
	if got, err := read(t, s, iotest.ErrReader(cut)); got != content || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
	if err := errors.Join(s.Drop(), s.Drop(), s.Close()); err != nil || names(t, dir) != "" {
		t.Errorf("%v, %s is left", err, names(t, dir))
	}
}

// TestBounds holds that no byte beyond the blob's size is read or kept, and that a
// spool without a byte is none.
func TestBounds(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	if got, err := read(t, s, strings.NewReader(content+" and more")); got != content || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, names(t, dir))
	if kept, err := os.ReadFile(file); string(kept) != content || err != nil {
		t.Errorf("kept %q, %v", kept, err)
	}
	if err := os.WriteFile(file, []byte(content+" and more"), 0o600); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	if s.Have() != 0 {
		t.Errorf("of a file that is too long it has %d bytes", s.Have())
	}
	if err := s.Close(); err != nil || names(t, dir) != "" {
		t.Errorf("%v, an empty %s is left", err, names(t, dir))
	}
}

// TestHeld holds that one has a spool, and no sweep takes it from him.
func TestHeld(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	if _, err := read(t, s, strings.NewReader("some")); err != nil {
		t.Fatal(err)
	}
	if _, err := spool.Open(t.Context(), dir, blob, 5); !errors.Is(err, errdefs.ErrBusy) {
		t.Errorf("opened twice: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := spool.Open(ctx, dir, blob, 5); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	soon := time.Now().Add(time.Hour)
	if n, err := spool.Sweep(dir, soon); n != 0 || err != nil || !s.Kept() {
		t.Errorf("swept %d bytes of one that is held, %v", n, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if n, err := spool.Sweep(dir, time.Now().Add(-time.Hour)); n != 0 || err != nil || names(t, dir) == "" {
		t.Errorf("swept %d bytes of a fresh one, %v", n, err)
	}
	left := unheld(t, func() (int64, error) { return spool.Left(dir, soon) })
	if n := unheld(t, func() (int64, error) { return spool.Sweep(dir, soon) }); n != left || names(t, dir) != "" {
		t.Errorf("swept %d bytes of %d", n, left)
	}
}

// unheld is what look finds, which passes over a spool that is held: as it is for a moment
// by each that waited for it in vain (durable.Lock).
func unheld(t *testing.T, look func() (int64, error)) int64 {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		n, err := look()
		if err != nil {
			t.Fatal(err)
		}
		if n != 0 {
			return n
		}
		if time.Now().After(end) {
			t.Fatal("no bytes are found")
		}
	}
}

// TestDiscard deletes a spool that nobody holds.
func TestDiscard(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	if _, err := read(t, s, strings.NewReader("some")); err != nil {
		t.Fatal(err)
	}
	if err := spool.Discard(dir, blob); err != nil || names(t, dir) == "" {
		t.Errorf("of one that is held: %v", err)
	}
	if err := errors.Join(s.Close(), spool.Discard(dir, blob), spool.Discard(dir, blob)); err != nil || names(t, dir) != "" {
		t.Errorf("%v, %s is left", err, names(t, dir))
	}
}

// TestNone holds what a nil spool is.
func TestNone(t *testing.T) {
	var s *spool.Spool
	if s.Have() != 0 || s.Kept() || s.Close() != nil || s.Drop() != nil {
		t.Error("a spool that is none does something")
	}
}
