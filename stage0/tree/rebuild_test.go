package tree_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/tree"
	"github.com/gantry-cri/gantry/stage0/verify"
)

// TestVerifyContract extracts each image of the corpus of nasty ones, and proves every
// tree, the fix-up trees too.
func TestVerifyContract(t *testing.T) {
	open(t) // skips without root
	for _, img := range contractImages(t) {
		t.Run(img.name, func(t *testing.T) {
			img.room(t)
			s, dir := open(t)
			commit(t, s, img.layers...)
			var ids []digest.Digest
			for i, l := range img.layers {
				ids = append(ids, digest.FromBytes(l))
				proven(t, fmt.Sprintf("layer %d", i), func() (verify.Report, error) { return verify.Tree(t.Context(), s, ids[i]) })
			}
			fixup, err := s.Fixup(t.Context(), ids)
			if err != nil {
				t.Fatal(err)
			}
			if fixup != "" {
				proven(t, "fix-up tree", func() (verify.Report, error) { return verify.Fixup(t.Context(), s, fixup, ids) })
			}
			isEmpty(t, filepath.Join(dir, "tmp"))
		})
	}
}

func proven(t *testing.T, what string, check func() (verify.Report, error)) {
	t.Helper()
	if r, err := check(); err != nil || !r.Proven() {
		t.Errorf("%s: %+v, %v", what, r, err)
	}
}

// commit extracts layers, commits them by one sync and returns the last.
func commit(t testing.TB, s *tree.Store, layers ...[]byte) *tree.Pending {
	t.Helper()
	var all []*tree.Pending
	for _, l := range layers {
		p, err := s.Extract(t.Context(), plainLayer(l), bytes.NewReader(l))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	if err := s.Commit(t.Context(), all...); err != nil {
		t.Fatal(err)
	}
	return all[len(all)-1]
}

// TestRebuildTail holds that what is behind the archive's end is kept as well, and
// content that no file has.
func TestRebuildTail(t *testing.T) {
	s, _ := open(t)
	layer := archive(t, file("a", "1"), file(".wh.b", "unused"), file(".wh..wh.plnk/x", "unused too"))
	layer = append(layer, "not a tar"...)
	r, err := s.Rebuild(t.Context(), commit(t, s, layer).Name())
	if err != nil {
		t.Fatal(err)
	}
	if r.Meta.DiffID != digest.FromBytes(layer) {
		t.Errorf("rebuilt %d of %d bytes", r.Meta.TarSize, len(layer))
	}
	if err := r.Discard(); err != nil {
		t.Error(err)
	}
}

// TestRebuildDamaged damages one file of a tree in each way.
func TestRebuildDamaged(t *testing.T) {
	for _, tc := range []struct {
		name    string
		do      func(dir string) error
		damaged bool // the file is named
		failure error
	}{
		{"nothing", func(string) error { return nil }, false, nil},
		{"a flipped bit", func(d string) error { return write(d+"/rootfs/d/f", "Content", 0) }, true, nil},
		{"longer", func(d string) error { return write(d+"/rootfs/d/f", "more", 7) }, true, nil},
		{"shorter", func(d string) error { return os.Truncate(d+"/rootfs/d/f", 3) }, true, nil},
		{"gone", func(d string) error { return os.Remove(d + "/rootfs/d/f") }, false, nil},
		{"a link", func(d string) error {
			return errors.Join(os.Rename(d+"/rootfs/d/f", d+"/f"), os.Symlink("../../f", d+"/rootfs/d/f"))
		}, false, nil},
		{"below a link", func(d string) error {
			return errors.Join(os.Rename(d+"/rootfs/d", d+"/d"), os.Symlink("../d", d+"/rootfs/d"))
		}, false, nil},
		{"no record", func(d string) error { return os.Remove(d + "/layer.tarsplit") }, false, tree.ErrRecord},
		{"half a record", func(d string) error { return os.Truncate(d+"/layer.tarsplit", 40) }, false, tree.ErrRecord},
		{"another's record", func(d string) error {
			return os.Rename(filepath.Join(filepath.Dir(d), "other"), d+"/layer.tarsplit")
		}, false, nil},
		{"an earlier version's", func(d string) error {
			return os.WriteFile(d+"/meta.json", []byte(`{"schema":1,"diffID":"sha256:54db133a109fd7f0d6eb72da16df1af078f2bf86e917ae3c780a13d811d6aa6f","size":1,"inodes":1}`), 0o600)
		}, false, tree.ErrNoRecord},
		{"no tree", os.RemoveAll, false, errdefs.ErrNotFound},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, data := open(t)
			layer := archive(t, folder("d", 0o755), file("d/f", "content"), file("g", "2"), link("l", "x"))
			name := commit(t, s, layer).Name()
			other := commit(t, s, archive(t, file("h", "3"))).Name()
			if err := os.Rename(s.Path(other)+"/layer.tarsplit", s.Path("other")); err != nil {
				t.Fatal(err)
			}
			if err := tc.do(s.Path(name)); err != nil {
				t.Fatal(err)
			}
			r, err := s.Rebuild(t.Context(), name)
			if !errors.Is(err, tc.failure) {
				t.Fatalf("rebuild: %v", err)
			}
			if err == nil {
				if same := r.Meta.DiffID == digest.FromBytes(layer); same != (tc.name == "nothing" || tc.name == "longer") {
					t.Errorf("the same digest: %v", same)
				}
				if (len(r.Damaged) == 1 && r.Damaged[0].Path == "d/f") != tc.damaged {
					t.Errorf("damaged: %v", r.Damaged)
				}
				err = r.Discard()
			}
			isEmpty(t, filepath.Join(data, "tmp"))
			if err != nil && tc.failure == nil {
				t.Error(err)
			}
		})
	}
}

// write puts text into a file that is there.
func write(path, text string, at int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte(text), at)
	return errors.Join(err, f.Close())
}

// TestRebuildSparse holds that the pieces of a sparse file are not in the record but
// proven, and its holes too.
func TestRebuildSparse(t *testing.T) {
	source := t.TempDir()
	data := make([]byte, 1<<20)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range data {
		data[i] = byte(r.Uint32())
	}
	if err := os.WriteFile(source+"/f", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(write(source+"/f", string(data), 1<<20), write(source+"/f", string(data), 5<<20), os.Truncate(source+"/f", 8<<20)); err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"gnu", "posix"} {
		t.Run(format, func(t *testing.T) {
			s, _ := open(t)
			layer, err := exec.CommandContext(t.Context(), "tar", "-cS", "--format="+format, "-C", source, ".").Output()
			if err != nil {
				t.Fatal(err)
			}
			dir := s.Path(commit(t, s, layer).Name())
			if st := lstat(t, dir+"/layer.tarsplit"); st.Size > 2000 {
				t.Errorf("the record has %d bytes", st.Size)
			}
			for _, tc := range []struct {
				at      int64
				damaged int
			}{{-1, 0}, {1<<20 + 5, 1}, {8<<20 - 1, 1}, {3 << 20, 1}} {
				if tc.at >= 0 {
					if err := write(dir+"/rootfs/f", "\x00\x01", tc.at); err != nil {
						t.Fatal(err)
					}
				}
				r, err := s.Rebuild(t.Context(), filepath.Base(dir))
				if err != nil {
					t.Fatal(err)
				}
				if len(r.Damaged) != tc.damaged {
					t.Errorf("changed at %d: damaged %v", tc.at, r.Damaged)
				}
				if err := errors.Join(r.Discard(), write(dir+"/rootfs/f", string(data), 1<<20), os.Truncate(dir+"/rootfs/f", 2<<20),
					write(dir+"/rootfs/f", string(data), 5<<20), os.Truncate(dir+"/rootfs/f", 8<<20)); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// TestRebuildReplaced holds that what a later entry replaced is in no view and still
// proven, and that it is counted.
func TestRebuildReplaced(t *testing.T) {
	s, _ := open(t)
	layer := archive(t,
		file("a", "first"), hard("b", "a"), file("a", "second"), file("a", "third"),
		folder("d", 0o755), file("d/f", "below"), file("d/g", ""), link("d", "a"),
		hard("c", "a"), file("c", "fourth"))
	p := commit(t, s, layer)
	kept, err := os.ReadDir(filepath.Join(s.Path(p.Name()), "replaced"))
	if err != nil || len(kept) != 4 {
		t.Errorf("%d files are kept, %v", len(kept), err)
	}
	r, err := s.Rebuild(t.Context(), p.Name())
	if err != nil {
		t.Fatal(err)
	}
	if r.Meta.DiffID != digest.FromBytes(layer) {
		t.Errorf("another digest, damaged %v", r.Damaged)
	}
	if err := r.Discard(); err != nil {
		t.Error(err)
	}
	if err := write(filepath.Join(s.Path(p.Name()), "replaced", kept[0].Name()), "X", 0); err != nil {
		t.Fatal(err)
	}
	if r, err = s.Rebuild(t.Context(), p.Name()); err != nil || len(r.Damaged) != 1 {
		t.Fatalf("damaged %v, %v", r.Damaged, err)
	}
	if err := r.Discard(); err != nil {
		t.Error(err)
	}
}

// TestRebuildACI holds that an appc image is proven against its id.
func TestRebuildACI(t *testing.T) {
	s, _ := open(t)
	plain := aciOf(t, aciItems...)
	p, a, err := s.ExtractACI(t.Context(), aciSource(plain))
	if err == nil {
		err = s.Commit(t.Context(), p)
	}
	if err != nil {
		t.Fatal(err)
	}
	r, err := s.Rebuild(t.Context(), p.Name())
	if err != nil {
		t.Fatal(err)
	}
	if r.Meta.DiffID != tree.ACIKey(a.Digest) || r.Meta.ACI != a.Digest || len(r.Damaged) > 0 {
		t.Errorf("rebuilt %+v, damaged %v", r.Meta, r.Damaged)
	}
	if err := r.Discard(); err != nil {
		t.Error(err)
	}
}
