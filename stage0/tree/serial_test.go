package tree_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
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
	fresh map[string]bool         // paths that the current layer made
	times map[string][2]time.Time // of directories: access, modification
}

// implied are the times of directories that no layer describes.
var implied = [2]time.Time{time.Unix(0, 0), time.Unix(0, 0)}

// times are an entry's: who was not asked when it was read was read when it was written.
func times(h *tar.Header) [2]time.Time {
	if h.AccessTime.IsZero() {
		return [2]time.Time{h.ModTime, h.ModTime}
	}
	return [2]time.Time{h.AccessTime, h.ModTime}
}

func newSerial(t testing.TB) *serial {
	t.Helper()
	root := t.TempDir()
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	return &serial{t: t, root: root, times: map[string][2]time.Time{".": implied}}
}

func (s *serial) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// apply applies one layer: whatever it removes first, since that is in lower layers.
func (s *serial) apply(layer []byte) {
	s.t.Helper()
	s.fresh = map[string]bool{}
	s.each(layer, func(h *tar.Header, _ io.Reader) {
		if dir, base := path.Split(clean(h.Name)); strings.HasPrefix(base, ".wh.") {
			s.whiteout(dir, strings.TrimPrefix(base, ".wh."))
		}
	})
	s.each(layer, func(h *tar.Header, content io.Reader) {
		dir, base := path.Split(clean(h.Name))
		dir = s.parents(dir)
		if !strings.HasPrefix(base, ".wh.") {
			s.entry(path.Join(dir, base), h, content)
		}
	})
}

func (s *serial) each(layer []byte, do func(*tar.Header, io.Reader)) {
	s.t.Helper()
	r := tar.NewReader(bytes.NewReader(layer))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		s.must(err)
		do(h, r)
	}
}

func clean(name string) string {
	if c := path.Clean("/" + name)[1:]; c != "" {
		return c
	}
	return "."
}

// whiteout removes a name, or all names, from a directory of the lower layers. A
// link on the way is none of their directories.
func (s *serial) whiteout(dir, name string) {
	for d := clean(dir); d != "."; d = path.Dir(d) {
		if !isRealDir(filepath.Join(s.root, d)) {
			return
		}
	}
	target := filepath.Join(s.root, dir)
	if name != ".wh..opq" {
		s.must(os.RemoveAll(filepath.Join(target, name)))
		return
	}
	entries, err := os.ReadDir(target)
	s.must(err)
	for _, e := range entries {
		s.must(os.RemoveAll(filepath.Join(target, e.Name())))
	}
}

// parents makes what is missing of a directory and returns its path without
// links. Links of this layer are followed; what a lower layer has there that is
// no directory is replaced.
func (s *serial) parents(dir string) string {
	at := "."
	for i, name := range strings.Split(dir, "/") {
		if name == "" || name == "." {
			continue
		}
		if name == ".." {
			at = path.Join("/", at, "..")[1:]
			continue
		}
		next := path.Join(at, name)
		p := filepath.Join(s.root, next)
		if target, err := os.Readlink(p); err == nil && s.fresh[next] {
			if !path.IsAbs(target) {
				target = path.Join("/", at) + "/" + target
			}
			rest := strings.Join(strings.Split(dir, "/")[i+1:], "/")
			return s.parents(target + "/" + rest)
		}
		if !isRealDir(p) {
			s.must(os.RemoveAll(p))
			s.must(os.Mkdir(p, 0o755))
			s.must(os.Chown(p, 0, 0))
			s.must(os.Chmod(p, 0o755))
			s.clearXattrs(p)
			s.fresh[next], s.times[next] = true, implied
		}
		at = next
	}
	return at
}

func isRealDir(p string) bool {
	info, err := os.Lstat(p)
	return err == nil && info.IsDir()
}

func (s *serial) entry(name string, h *tar.Header, content io.Reader) {
	p := filepath.Join(s.root, name)
	if h.Typeflag == tar.TypeLink && clean(h.Linkname) == name {
		return // a link to itself
	}
	if h.Typeflag != tar.TypeDir || !isRealDir(p) {
		s.must(os.RemoveAll(p))
	}
	s.fresh[name] = true
	switch h.Typeflag {
	case tar.TypeDir:
		if !isRealDir(p) {
			s.must(os.Mkdir(p, 0o755))
		}
		s.times[name] = times(h)
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		data, err := io.ReadAll(content)
		s.must(err)
		s.must(os.WriteFile(p, data, 0o600))
	case tar.TypeSymlink:
		s.must(os.Symlink(h.Linkname, p))
	case tar.TypeLink:
		dir, base := path.Split(clean(h.Linkname))
		s.must(os.Link(filepath.Join(s.root, s.parents(dir), base), p))
		return
	case tar.TypeChar, tar.TypeBlock:
		kind := map[byte]uint32{tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK}[h.Typeflag]
		s.must(unix.Mknod(p, kind, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))))
	case tar.TypeFifo:
		s.must(unix.Mkfifo(p, 0o600))
	default:
		s.t.Fatalf("type %q", h.Typeflag)
	}
	s.attributes(p, h)
}

func (s *serial) attributes(p string, h *tar.Header) {
	s.must(os.Lchown(p, h.Uid, h.Gid))
	if h.Typeflag != tar.TypeSymlink {
		s.must(unix.Chmod(p, uint32(h.Mode)))
	}
	s.clearXattrs(p)
	for key, value := range h.PAXRecords {
		if key, ok := strings.CutPrefix(key, "SCHILY.xattr."); ok {
			s.must(unix.Lsetxattr(p, key, []byte(value), 0))
		}
	}
	s.setTimes(p, times(h))
}

func (s *serial) clearXattrs(p string) {
	list := make([]byte, 4096)
	n, err := unix.Llistxattr(p, list)
	s.must(err)
	for _, name := range strings.FieldsFunc(string(list[:n]), func(r rune) bool { return r == 0 }) {
		s.must(unix.Lremovexattr(p, name))
	}
}

func (s *serial) setTimes(p string, t [2]time.Time) {
	var ts [2]unix.Timespec
	for i := range ts {
		var err error
		ts[i], err = unix.TimeToTimespec(t[i])
		s.must(err)
	}
	s.must(unix.UtimesNanoAt(unix.AT_FDCWD, p, ts[:], unix.AT_SYMLINK_NOFOLLOW))
}

// done sets the directories' times, which making and listing their entries has changed.
func (s *serial) done() string {
	var dirs []string
	s.must(filepath.WalkDir(s.root, func(p string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			dirs = append(dirs, p)
		}
		return err
	}))
	for _, p := range dirs {
		rel, err := filepath.Rel(s.root, p)
		s.must(err)
		s.setTimes(p, s.times[rel])
	}
	return s.root
}
