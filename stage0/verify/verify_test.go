package verify_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/tree"
	"github.com/gantry-cri/gantry/stage0/verify"
)

var stamp = time.Unix(1_600_000_000, 123_456_789)

// archive is a layer with one of everything.
func archive(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range []tar.Header{
		{Typeflag: tar.TypeDir, Name: "dir", Mode: 0o750, Uid: 1, Gid: 2},
		{Typeflag: tar.TypeReg, Name: "dir/file", Mode: 0o4755, Size: 7, PAXRecords: map[string]string{"SCHILY.xattr.user.x": "1"}},
		{Typeflag: tar.TypeReg, Name: "cap", Mode: 0o755, Size: 7, PAXRecords: map[string]string{"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}},
		{Typeflag: tar.TypeReg, Name: "empty", Mode: 0o600},
		{Typeflag: tar.TypeLink, Name: "again", Linkname: "dir/file"},
		{Typeflag: tar.TypeReg, Name: "p", Mode: 0o600},
		{Typeflag: tar.TypeLink, Name: "p2", Linkname: "p"},
		{Typeflag: tar.TypeReg, Name: "q", Mode: 0o600},
		{Typeflag: tar.TypeLink, Name: "q2", Linkname: "q"},
		{Typeflag: tar.TypeSymlink, Name: "link", Linkname: "dir/file", Mode: 0o777, Uid: 5},
		{Typeflag: tar.TypeChar, Name: "null", Mode: 0o666, Devmajor: 1, Devminor: 3},
		{Typeflag: tar.TypeFifo, Name: "pipe", Mode: 0o600},
		{Typeflag: tar.TypeReg, Name: "implied/x", Mode: 0o600, Size: 7},
		{Typeflag: tar.TypeReg, Name: ".wh.gone", Mode: 0o600},
		{Typeflag: tar.TypeReg, Name: "opaque/.wh..wh..opq", Mode: 0o600},
	} {
		h.ModTime, h.Format = stamp, tar.FormatPAX
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte("content")[:h.Size]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func extract(t *testing.T, s *tree.Store, data []byte) digest.Digest {
	t.Helper()
	id := digest.FromBytes(data)
	l := tree.Layer{Digest: id, DiffID: id, Size: int64(len(data)), MediaType: ocispec.MediaTypeImageLayer}
	p, err := s.Extract(t.Context(), l, bytes.NewReader(data))
	if err == nil {
		err = s.Commit(t.Context(), p)
	}
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func open(t *testing.T) (*tree.Store, string) {
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

// keepTime changes a file and leaves it the time that it had.
func keepTime(path string, change func() error) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return err
	}
	return errors.Join(change(), unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW))
}

// in changes what is in a directory, which keeps its time.
func in(dir string, change ...func() error) error {
	return keepTime(dir, func() error {
		for _, c := range change {
			if err := c(); err != nil {
				return err
			}
		}
		return nil
	})
}

func put(path string, at int64, text string) error {
	return keepTime(path, func() error {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteAt([]byte(text), at)
		return errors.Join(err, f.Close())
	})
}

// stale is one change of a tree and what is found of it, as "path what".
type stale struct {
	name string
	do   func(root string) error // its rootfs
	want []string
}

var changes = []stale{
	{"nothing", func(string) error { return nil }, nil},
	{"a flipped bit", func(r string) error { return put(r+"/dir/file", 2, "o") }, []string{"dir/file content"}},
	{"a longer file", func(r string) error { return put(r+"/cap", 7, "\x00") }, []string{"cap size", "cap xattr"}}, // the kernel drops the capability
	{"an empty file that is not", func(r string) error { return put(r+"/empty", 0, "x") }, []string{"empty size"}},
	{"a missing file", func(r string) error { return in(r, func() error { return os.Remove(r + "/cap") }) }, []string{"cap missing"}},
	{"a missing directory", func(r string) error {
		return in(r, func() error { return os.RemoveAll(r + "/implied") })
	}, []string{"implied missing"}},
	{"a missing name", func(r string) error { return in(r, func() error { return os.Remove(r + "/again") }) }, []string{"again missing", "dir/file links"}},
	{"a name too many", func(r string) error {
		return in(r, func() error { return os.Link(r+"/cap", r+"/more") })
	}, []string{"cap links", "more extra"}},
	{"a copy instead of a name", func(r string) error {
		return in(r, func() error { return os.Remove(r + "/again") }, func() error { return os.Link(r+"/cap", r+"/again") })
	}, []string{"again mode", "again xattr", "again xattr", "cap links", "dir/file links"}},
	{"names of each other", func(r string) error {
		return in(r, func() error { return os.Rename(r+"/p2", r+"/x") }, func() error { return os.Rename(r+"/q2", r+"/p2") }, func() error { return os.Rename(r+"/x", r+"/q2") })
	}, []string{"p2 links", "q2 links"}},
	{"an extra file", func(r string) error {
		return in(r+"/dir", func() error { return os.WriteFile(r+"/dir/more", nil, 0o600) })
	}, []string{"dir/more extra"}},
	{"an extra directory", func(r string) error {
		return in(r, func() error { return os.MkdirAll(r+"/more/below", 0o700) })
	}, []string{"more extra"}},
	{"a mode", func(r string) error { return os.Chmod(r+"/dir/file", 0o755) }, []string{"again mode", "dir/file mode"}},
	{"a directory's mode", func(r string) error { return os.Chmod(r+"/dir", 0o755) }, []string{"dir mode"}},
	{"an implied directory's mode", func(r string) error { return os.Chmod(r+"/implied", 0o700) }, []string{"implied mode"}},
	{"the root's mode", func(r string) error { return os.Chmod(r, 0o700) }, []string{". mode"}},
	{"an owner", func(r string) error { return os.Lchown(r+"/empty", 3, 4) }, []string{"empty owner"}},
	{"a link's owner", func(r string) error { return os.Lchown(r+"/link", 0, 0) }, []string{"link owner"}},
	{"a time", func(r string) error { return os.Chtimes(r+"/dir/file", stamp, stamp.Add(1)) }, []string{"again mtime", "dir/file mtime"}},
	{"a directory's time", func(r string) error { return os.Chtimes(r+"/dir", stamp, stamp.Add(time.Hour)) }, []string{"dir mtime"}},
	{"an attribute", func(r string) error { return unix.Setxattr(r+"/dir/file", "user.x", []byte("2"), 0) }, []string{"again xattr", "dir/file xattr"}},
	{"an extra attribute", func(r string) error { return unix.Setxattr(r+"/dir", "user.y", []byte("2"), 0) }, []string{"dir xattr"}},
	{"a lost capability", func(r string) error { return unix.Removexattr(r+"/cap", "security.capability") }, []string{"cap xattr"}},
	{"a lost opaque mark", func(r string) error { return unix.Removexattr(r+"/opaque", "trusted.overlay.opaque") }, []string{"opaque xattr"}},
	{"an extra opaque mark", func(r string) error { return unix.Setxattr(r+"/dir", "trusted.overlay.opaque", []byte("y"), 0) }, []string{"dir xattr"}},
	{"a lost whiteout", func(r string) error { return in(r, func() error { return os.Remove(r + "/gone") }) }, []string{"gone missing"}},
	{"an extra whiteout", func(r string) error {
		return in(r, func() error { return unix.Mknod(r+"/more", unix.S_IFCHR, 0) })
	}, []string{"more extra"}},
	{"a link's target", func(r string) error {
		return in(r, func() error { return os.Remove(r + "/link") }, func() error { return os.Symlink("dir/other", r+"/link") },
			func() error { return os.Lchown(r+"/link", 5, 0) },
			func() error {
				ts := []unix.Timespec{{Sec: stamp.Unix(), Nsec: 123_456_789}, {Sec: stamp.Unix(), Nsec: 123_456_789}}
				return unix.UtimesNanoAt(unix.AT_FDCWD, r+"/link", ts, unix.AT_SYMLINK_NOFOLLOW)
			})
	}, []string{"link target"}},
	{"a device's numbers", func(r string) error {
		return in(r, func() error { return os.Remove(r + "/null") }, func() error { return unix.Mknod(r+"/null", unix.S_IFCHR, int(unix.Mkdev(1, 5))) },
			func() error { return os.Chmod(r+"/null", 0o666) }, func() error { return os.Chtimes(r+"/null", stamp, stamp) })
	}, []string{"null device"}},
	{"another kind", func(r string) error {
		return in(r, func() error { return os.Remove(r + "/pipe") }, func() error { return os.Mkdir(r+"/pipe", 0o600) })
	}, []string{"pipe kind"}},
	{"a link out of the tree", func(r string) error {
		return in(r, func() error { return os.Rename(r+"/dir", r+"/../moved") }, func() error { return os.Symlink("../moved", r+"/dir") })
	}, []string{"dir kind"}},
	{"the root is gone", func(r string) error { return os.Rename(r, r+".gone") }, []string{". missing"}},
	{"no record", func(r string) error { return os.Remove(r + "/../layer.tarsplit") }, []string{"layer.tarsplit record"}},
	{"a bit of the record", func(r string) error { return put(r+"/../layer.tarsplit", 100, "xx") }, []string{"layer.tarsplit record"}},
	{"no meta.json", func(r string) error { return os.Remove(r + "/../meta.json") }, []string{"meta.json record"}},
	{"half a meta.json", func(r string) error { return os.Truncate(r+"/../meta.json", 20) }, []string{"meta.json record"}},
	{"other implied directories", func(r string) error {
		b, err := os.ReadFile(r + "/../meta.json")
		return errors.Join(err, os.WriteFile(r+"/../meta.json", bytes.ReplaceAll(b, []byte(`"opaque"]`), []byte(`"other"]`)), 0o600))
	}, []string{"meta.json record"}},
}

// TestFindings changes one thing of a tree at a time, and finds it and nothing else.
func TestFindings(t *testing.T) {
	for _, tc := range changes {
		t.Run(tc.name, func(t *testing.T) {
			s, dir := open(t)
			id := extract(t, s, archive(t))
			if err := tc.do(filepath.Join(s.Path(tree.Name(id)), "rootfs")); err != nil {
				t.Fatal(err)
			}
			r, err := verify.Tree(t.Context(), s, id)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, f := range r.Findings {
				got = append(got, f.Path+" "+string(f.What))
				if f.Want == f.Got {
					t.Errorf("%+v", f)
				}
			}
			slices.Sort(got)
			slices.Sort(tc.want)
			if !slices.Equal(got, tc.want) {
				t.Errorf("found %+v", r.Findings)
			}
			if r.Proven() != (len(tc.want) == 0) {
				t.Errorf("proven: %v", r.Proven())
			}
			if left, err := os.ReadDir(filepath.Join(dir, "tmp")); err != nil || len(left) > 0 {
				t.Errorf("%v is left, %v", left, err)
			}
		})
	}
}

// TestNotRefuted has trees that can be neither proven nor refuted, or are not there.
func TestNotRefuted(t *testing.T) {
	s, _ := open(t)
	id := extract(t, s, archive(t))
	meta := filepath.Join(s.Path(tree.Name(id)), "meta.json")
	for text, want := range map[string]string{
		`{"schema":1,"diffID":"` + string(id) + `"}`: "extracted by an earlier version",
		`{"schema":99}`: "schema 99",
	} {
		if err := os.WriteFile(meta, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := verify.Tree(t.Context(), s, id)
		if err != nil || r.Proven() || len(r.Findings) > 0 || !strings.Contains(r.Unverifiable, want) {
			t.Errorf("%s: %+v, %v", text, r, err)
		}
	}
	if _, err := verify.Tree(t.Context(), s, digest.FromString("another")); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("no tree: %v", err)
	}
}

// TestJSON holds that a path of any bytes can be told from another.
func TestJSON(t *testing.T) {
	text, err := json.Marshal(verify.Finding{Path: "a\xffb", What: verify.Missing})
	if want := `{"path":"a\u0000ffb","what":"missing"}`; err != nil || string(text) != want {
		t.Errorf("%s, %v; want %s", text, err, want)
	}
}

func TestCancelled(t *testing.T) {
	s, dir := open(t)
	id := extract(t, s, archive(t))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := verify.Tree(ctx, s, id); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if left, err := os.ReadDir(filepath.Join(dir, "tmp")); err != nil || len(left) > 0 {
		t.Errorf("%v is left, %v", left, err)
	}
}
