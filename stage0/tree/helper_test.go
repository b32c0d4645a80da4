package tree_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/tree"
)

// stamp is the time of the tests' entries, with nanoseconds.
var stamp = time.Unix(1_600_000_000, 123_456_789)

// item is one entry of a test's archive.
type item struct {
	tar.Header
	body string
}

func file(name, body string, change ...func(*tar.Header)) item {
	return make1(tar.TypeReg, name, 0o644, body, change)
}

func folder(name string, mode int64, change ...func(*tar.Header)) item {
	return make1(tar.TypeDir, name, mode, "", change)
}

func link(name, target string) item {
	return make1(tar.TypeSymlink, name, 0o777, "", []func(*tar.Header){func(h *tar.Header) { h.Linkname = target }})
}

func hard(name, target string) item {
	return make1(tar.TypeLink, name, 0o644, "", []func(*tar.Header){func(h *tar.Header) { h.Linkname = target }})
}

func device(kind byte, name string, major, minor int64) item {
	return make1(kind, name, 0o660, "", []func(*tar.Header){func(h *tar.Header) { h.Devmajor, h.Devminor = major, minor }})
}

func make1(kind byte, name string, mode int64, body string, change []func(*tar.Header)) item {
	h := tar.Header{
		Typeflag: kind, Name: name, Mode: mode, Size: int64(len(body)),
		ModTime: stamp, Format: tar.FormatPAX, PAXRecords: map[string]string{},
	}
	for _, f := range change {
		f(&h)
	}
	return item{h, body}
}

func owned(uid, gid int) func(*tar.Header) {
	return func(h *tar.Header) { h.Uid, h.Gid = uid, gid }
}

func xattr(key, value string) func(*tar.Header) {
	return func(h *tar.Header) { h.PAXRecords["SCHILY.xattr."+key] = value }
}

func at(t time.Time) func(*tar.Header) { return func(h *tar.Header) { h.ModTime = t } }

func accessed(t time.Time) func(*tar.Header) { return func(h *tar.Header) { h.AccessTime = t } }

func mode(m int64) func(*tar.Header) { return func(h *tar.Header) { h.Mode = m } }

// capability is cap_net_raw+ep as a file keeps it: version 2, little endian.
const capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

func archive(t testing.TB, items ...item) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, it := range items {
		if err := w.WriteHeader(&it.Header); err != nil {
			t.Fatalf("%s: %v", it.Name, err)
		}
		if _, err := w.Write([]byte(it.body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zipped(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zstandard(t testing.TB, data []byte, window int) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b, zstd.WithWindowSize(window))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// promise describes a blob that is what it says.
func promise(blob, plain []byte, mediaType string) tree.Layer {
	return tree.Layer{
		Digest: digest.FromBytes(blob), Size: int64(len(blob)),
		DiffID: digest.FromBytes(plain), MediaType: mediaType,
	}
}

func plainLayer(data []byte) tree.Layer { return promise(data, data, ocispec.MediaTypeImageLayer) }

func open(t testing.TB) (*tree.Store, string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("extraction needs root")
	}
	dir := t.TempDir()
	s, err := tree.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s, dir
}

// add extracts and commits one layer, and returns its root and its record.
func add(t testing.TB, s *tree.Store, items ...item) (string, tree.Meta) {
	t.Helper()
	data := archive(t, items...)
	p, err := s.Extract(t.Context(), plainLayer(data), bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	m, ok, err := s.Has(digest.FromBytes(data))
	if err != nil || !ok {
		t.Fatalf("Has = %v, %v", ok, err)
	}
	return filepath.Join(s.Path(p.Name()), "rootfs"), m
}

func isEmpty(t testing.TB, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		t.Errorf("%s is left in %s", e.Name(), dir)
	}
}

// snapshot describes all that lies below root, one line a path.
func snapshot(t testing.TB, root string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		all[rel], err = describe(path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func describe(path string) (string, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return "", err
	}
	s := fmt.Sprintf("%06o %d:%d %d.%09d", st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		b, err := os.ReadFile(path)
		if err != nil {
			return "", err
		}
		sum := sha256.Sum256(b)
		s += fmt.Sprintf(" links=%d size=%d %s", st.Nlink, st.Size, hex.EncodeToString(sum[:6]))
	case unix.S_IFLNK:
		target, err := os.Readlink(path)
		if err != nil {
			return "", err
		}
		s += " -> " + target
	case unix.S_IFCHR, unix.S_IFBLK:
		s += fmt.Sprintf(" dev=%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	}
	attrs, err := xattrs(path)
	return s + attrs, err
}

func xattrs(path string) (string, error) {
	list := make([]byte, 4096)
	n, err := unix.Llistxattr(path, list)
	if err != nil {
		return "", err
	}
	names := strings.FieldsFunc(string(list[:n]), func(r rune) bool { return r == 0 })
	sort.Strings(names)
	var s string
	for _, name := range names {
		if strings.HasPrefix(name, "trusted.overlay.") {
			continue
		}
		value := make([]byte, 4096)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return "", err
		}
		s += fmt.Sprintf(" %s=%q", name, value[:n])
	}
	return s, nil
}

func getxattr(t testing.TB, path, name string) string {
	t.Helper()
	value := make([]byte, 256)
	n, err := unix.Lgetxattr(path, name, value)
	if err != nil {
		return ""
	}
	return string(value[:n])
}

func lstat(t testing.TB, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return st
}

func diffSnapshots(t testing.TB, got, want map[string]string) {
	t.Helper()
	for path, w := range want {
		if g, ok := got[path]; !ok {
			t.Errorf("%s is missing, want %s", path, w)
		} else if g != w {
			t.Errorf("%s:\n got %s\nwant %s", path, g, w)
		}
	}
	for path, g := range got {
		if _, ok := want[path]; !ok {
			t.Errorf("%s is too much: %s", path, g)
		}
	}
}
