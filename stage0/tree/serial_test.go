package tree_test

import (
	"archive/tar"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// serial applies layers one after the other to one directory, in the plainest
// way, as the judge of what a stack of trees shows.
type serial struct {
	t     testing.TB
	root  string
	fresh map[string]bool // paths that the current layer made
	times map[string]time.Time
}

func newSerial(t testing.TB) *serial {
	t.Helper()
	root := t.TempDir()
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	return &serial{t: t, root: root, times: map[string]time.Time{".": time.Unix(0, 0)}}
}

func (s *serial) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// apply applies one layer: whatever it removes first, since that is in lower layers.
func (s *serial) apply(items []item) {
	s.t.Helper()
	s.fresh = map[string]bool{}
	for _, it := range items {
		dir, base := path.Split(clean(it.Name))
		target := filepath.Join(s.root, dir)
		switch {
		case base == ".wh..wh..opq":
			entries, _ := os.ReadDir(target)
			for _, e := range entries {
				s.must(os.RemoveAll(filepath.Join(target, e.Name())))
			}
		case strings.HasPrefix(base, ".wh."):
			if err := os.RemoveAll(filepath.Join(target, strings.TrimPrefix(base, ".wh."))); !errors.Is(err, unix.ENOTDIR) {
				s.must(err) // below a file there is nothing to remove
			}
		}
	}
	for _, it := range items {
		name := clean(it.Name)
		dir, base := path.Split(name)
		s.parents(strings.TrimSuffix(dir, "/"))
		if !strings.HasPrefix(base, ".wh.") {
			s.entry(name, it)
		}
	}
}

func clean(name string) string {
	if c := path.Clean("/" + name)[1:]; c != "" {
		return c
	}
	return "."
}

// parents makes what is missing; what a lower layer has there that is no
// directory is replaced.
func (s *serial) parents(dir string) {
	if dir == "" {
		return
	}
	s.parents(strings.TrimSuffix(path.Dir(dir), "."))
	info, err := os.Stat(filepath.Join(s.root, dir))
	if err == nil && info.IsDir() && (s.fresh[dir] || isRealDir(filepath.Join(s.root, dir))) {
		return
	}
	s.must(os.RemoveAll(filepath.Join(s.root, dir)))
	s.must(os.Mkdir(filepath.Join(s.root, dir), 0o755))
	s.fresh[dir], s.times[dir] = true, time.Unix(0, 0)
}

func isRealDir(p string) bool {
	info, err := os.Lstat(p)
	return err == nil && info.IsDir()
}

func (s *serial) entry(name string, it item) {
	p := filepath.Join(s.root, name)
	if it.Typeflag != tar.TypeDir || !isRealDir(p) {
		s.must(os.RemoveAll(p))
	}
	s.fresh[name] = true
	switch it.Typeflag {
	case tar.TypeDir:
		if !isRealDir(p) {
			s.must(os.Mkdir(p, 0o755))
		}
		s.clearXattrs(p)
		s.times[name] = it.ModTime
	case tar.TypeReg:
		s.must(os.WriteFile(p, []byte(it.body), 0o600))
	case tar.TypeSymlink:
		s.must(os.Symlink(it.Linkname, p))
	case tar.TypeLink:
		s.must(os.Link(filepath.Join(s.root, clean(it.Linkname)), p))
		return
	case tar.TypeChar:
		s.must(unix.Mknod(p, unix.S_IFCHR, int(unix.Mkdev(uint32(it.Devmajor), uint32(it.Devminor)))))
	case tar.TypeFifo:
		s.must(unix.Mkfifo(p, 0o600))
	default:
		s.t.Fatalf("type %q", it.Typeflag)
	}
	s.must(os.Lchown(p, it.Uid, it.Gid))
	if it.Typeflag != tar.TypeSymlink {
		s.must(unix.Chmod(p, uint32(it.Mode)))
	}
	for key, value := range it.PAXRecords {
		if key, ok := strings.CutPrefix(key, "SCHILY.xattr."); ok {
			s.must(unix.Lsetxattr(p, key, []byte(value), 0))
		}
	}
	s.setTime(p, it.ModTime)
}

func (s *serial) clearXattrs(p string) {
	list := make([]byte, 4096)
	n, err := unix.Llistxattr(p, list)
	s.must(err)
	for _, name := range strings.FieldsFunc(string(list[:n]), func(r rune) bool { return r == 0 }) {
		s.must(unix.Lremovexattr(p, name))
	}
}

func (s *serial) setTime(p string, t time.Time) {
	ts := []unix.Timespec{unix.NsecToTimespec(t.UnixNano()), unix.NsecToTimespec(t.UnixNano())}
	s.must(unix.UtimesNanoAt(unix.AT_FDCWD, p, ts, unix.AT_SYMLINK_NOFOLLOW))
}

// done sets the directories' times, which making their entries has changed.
func (s *serial) done() string {
	s.must(filepath.WalkDir(s.root, func(p string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			rel, _ := filepath.Rel(s.root, p)
			s.setTime(p, s.times[rel])
		}
		return err
	}))
	return s.root
}
