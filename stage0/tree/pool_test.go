package tree

import (
	"archive/tar"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestPools is a table of which files the pool finishes.
func TestPools(t *testing.T) {
	yes, no := func() bool { return true }, func() bool { return false }
	small := tar.Header{Typeflag: tar.TypeReg, Size: poolFile}
	with := func(key string) tar.Header {
		h := small
		h.PAXRecords = map[string]string{key: "1"}
		return h
	}
	large := small
	large.Size++
	for _, test := range []struct {
		name   string
		alone  func() bool
		split  *splitter
		header tar.Header
		want   bool
	}{
		{"small and alone", yes, &splitter{}, small, true},
		{"with a time", yes, &splitter{}, with("mtime"), true},
		{"beside another archive", no, &splitter{}, small, false},
		{"nobody says", nil, &splitter{}, small, false},
		{"put together again", yes, nil, small, false},
		{"large", yes, &splitter{}, large, false},
		{"sparse", yes, &splitter{}, with(sparseRecord + "size"), false},
		{"with an attribute", yes, &splitter{}, with(xattrRecord + "user.a"), false},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := &writer{alone: test.alone, split: test.split}
			if got := w.pools(&test.header); got != test.want {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

// TestPoolFinishesFiles gives files away and finds them as their entries say, and the
// entry of one that cannot be written in the error.
func TestPoolFinishesFiles(t *testing.T) {
	dir, p := t.TempDir(), newPool()
	defer p.stop()
	when := time.Unix(1234567890, 987654321)
	give := func(name string, flags int) {
		t.Helper()
		fd, err := unix.Open(filepath.Join(dir, name), flags|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		f := p.take()
		size := int64(copy(f.buf, "content of "+name))
		f.fd, f.header = fd, &tar.Header{Name: name, Size: size, Mode: 0o640, Uid: os.Getuid(), Gid: os.Getgid(), ModTime: when}
		p.give(f)
	}
	names := []string{}
	for range 3 * poolFiles {
		names = append(names, "f"+strings.Repeat("x", len(names)))
	}
	for _, name := range names {
		give(name, unix.O_WRONLY)
	}
	if err := p.wait(); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || string(data) != "content of "+name {
			t.Errorf("%s holds %q, %v", name, data, err)
		}
		st, err := os.Stat(filepath.Join(dir, name))
		if err != nil || st.Mode() != 0o640 || !st.ModTime().Equal(when) {
			t.Errorf("%s is %v, %v", name, st, err)
		}
	}
	give("unwritable", unix.O_RDONLY)
	if err := p.wait(); !errors.Is(err, unix.EBADF) || !strings.Contains(err.Error(), `entry "unwritable"`) {
		t.Errorf("got %v", err)
	}
}
