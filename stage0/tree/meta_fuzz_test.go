package tree

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/format/formattest"
)

// FuzzMeta holds that whatever meta.json says, a power cut's or that of a read-only
// store which others made, it is refused with a class, or the tree can be counted,
// stacked and rebuilt, and no path in it leads out of the tree.
func FuzzMeta(f *testing.F) {
	if os.Getuid() != 0 {
		f.Skip("extraction needs root")
	}
	dir := f.TempDir()
	s, err := Open(filepath.Join(dir, "data"))
	if err != nil {
		f.Fatal(err)
	}
	lower, upper := placed(f, s, "a/", "a/b/x", "c"), placed(f, s, "a/b/y", "a/.wh.z")
	home := s.own("home")
	if err := os.Rename(s.own(Name(upper)), home); err != nil {
		f.Fatal(err)
	}
	formattest.Seed(f)
	for _, rest := range []string{
		`"implied":["a","a/b"],"whiteouts":["a"]`, `"implied":["/a"]`, `"implied":["../data"]`, `"implied":["a/../../.."]`, `"whiteouts":[""]`, `"implied":["a\u000000"]`,
		`"implied":["."],"size":-1`, `"size":9223372036854775807,"inodes":9223372036854775807`, `"aci":"x","tarSplit":true`, `"tarSplit":true,"tarSize":-1`, `"fixup":true,"skipped":[{}]`,
	} {
		f.Add(fmt.Appendf(nil, `{"schema":1,"diffID":%q,%s}`, upper, rest))
	}
	for _, id := range []string{"", "x", "sha256:", "md5:d41d8cd98f00b204e9800998ecf8427e", "sha384:00"} {
		f.Add(fmt.Appendf(nil, `{"schema":1,"diffID":%q,"tarSplit":true}`, id))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if err := os.WriteFile(filepath.Join(home, metaFile), text, 0o600); err != nil {
			t.Fatal(err)
		}
		m, err := s.Meta("home")
		if err != nil {
			if !errors.Is(err, ErrMeta) && !errors.Is(err, errdefs.ErrUnsupported) {
				t.Errorf("%v is of no class", err)
			}
			return
		}
		name := Name(m.DiffID)
		if m.DiffID == lower {
			return // its place is taken
		}
		if err := os.Rename(home, s.own(name)); err != nil {
			t.Fatal(err)
		}
		isUsable(t, s, lower, m)
		if err := os.Rename(s.own(name), home); err != nil {
			t.Fatal(err)
		}
		for _, d := range []string{dir, s.tmp} {
			if entries, err := os.ReadDir(d); err != nil || len(entries) > 1 || d == s.tmp && len(entries) > 0 {
				t.Errorf("%s has %v, %v", d, entries, err)
			}
		}
	})
}

// isUsable does with a tree what others do, beside one that is sound.
func isUsable(t *testing.T, s *Store, sound digest.Digest, m Meta) {
	t.Helper()
	name := Name(m.DiffID)
	if got, ok, err := s.Has(m.DiffID); err != nil || !ok || got.DiffID != m.DiffID {
		t.Errorf("has %+v, %v, %v", got, ok, err)
	}
	if u, err := s.Usage(t.Context()); err != nil || u.Bytes < m.Size || u.Inodes < m.Inodes {
		t.Errorf("the store takes %+v, %v", u, err)
	}
	r, err := s.Rebuild(t.Context(), name)
	if err == nil {
		err = r.Discard()
	} else if errors.Is(err, ErrRecord) || errors.Is(err, ErrNoRecord) {
		err = nil
	}
	if err != nil {
		t.Errorf("rebuild: %v", err)
	}
	for _, stack := range [][]digest.Digest{{sound, m.DiffID}, {m.DiffID, sound}} {
		r, err := s.RebuildFixup(t.Context(), stack)
		if err != nil {
			t.Errorf("fix-up tree: %v", err)
			continue
		}
		if r == nil {
			continue
		}
		if err := r.Meta.check(); err != nil {
			t.Errorf("fix-up tree: %v", err)
		}
		if err := r.Discard(); err != nil {
			t.Error(err)
		}
	}
}

// placed extracts a layer of empty files and directories, and moves it to its place
// without a sync.
func placed(f *testing.F, s *Store, names ...string) digest.Digest {
	f.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, n := range names {
		h := &tar.Header{Name: n, Typeflag: tar.TypeReg, Mode: 0o644}
		if n[len(n)-1] == '/' {
			h.Typeflag, h.Mode = tar.TypeDir, 0o1777
		}
		if err := w.WriteHeader(h); err != nil {
			f.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		f.Fatal(err)
	}
	id := digest.FromBytes(b.Bytes())
	p, err := s.Extract(f.Context(), Layer{Digest: id, DiffID: id, Size: int64(b.Len()), MediaType: ocispec.MediaTypeImageLayer}, &b)
	if err == nil {
		err = s.publish(p)
	}
	if err != nil {
		f.Fatal(err)
	}
	return id
}
