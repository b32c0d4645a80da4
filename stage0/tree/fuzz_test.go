package tree_test

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/gantry-cri/gantry/stage0/tree"
)

// FuzzExtract holds that no archive makes Extract panic, or write, link or
// remove anything outside its tree, or leave anything when it is refused.
func FuzzExtract(f *testing.F) {
	if os.Getuid() != 0 {
		f.Skip("extraction needs root")
	}
	box := f.TempDir()
	canary := filepath.Join(box, "canary")
	for _, items := range [][]item{
		{file("a/b", "x"), hard("c", "a/b"), file(".wh.d", ""), file("a/.wh..wh..opq", "")},
		{link("l", canary), file("l/x", "x"), hard("h", "l/secret"), file("l", "x"), file("l/.wh.secret", "")},
		{link("l", "../../../../canary"), folder("l", 0o755), file("../../../../canary/secret", "x"), file("l/x", "")},
		{file("a", "1"), folder("a", 0o700), file("a/b", ""), link("a", "/"), file("a/z", "")},
		{device(tar.TypeChar, "n", 1, 3), device(tar.TypeFifo, "p", 0, 0), file("s", "x", xattr("user.a", "b"), mode(0o6755))},
	} {
		f.Add(archive(f, items...))
	}
	f.Add(bytes.ReplaceAll(archive(f, file("CANARY/secret", "x")), []byte("CANARY"), []byte("/../..")))
	putCanary(f, canary)
	f.Fuzz(func(t *testing.T, data []byte) {
		s, dir := caged(t, canary)
		p, err := s.Extract(t.Context(), plainLayer(data), bytes.NewReader(data))
		if err == nil {
			if meta := p.Meta(); meta.Size < 0 || meta.Inodes < 1 {
				t.Errorf("meta = %+v", meta)
			}
			checkNoWhiteouts(t, dir, data)
			err = p.Discard()
			if err != nil {
				t.Error(err)
			}
		}
	})
}

// putCanary makes a folder with a file that no archive may touch.
func putCanary(tb testing.TB, canary string) {
	tb.Helper()
	err := os.MkdirAll(canary, 0o755)
	if err == nil {
		err = os.WriteFile(filepath.Join(canary, "secret"), []byte("secret"), 0o600)
	}
	if err != nil {
		tb.Fatal(err)
	}
}

// caged opens a store with low limits. At the end of the test it has nothing, nothing
// lies beside it, and the canary is as it was.
func caged(t *testing.T, canary string) (s *tree.Store, dir string) {
	t.Helper()
	secret := filepath.Join(canary, "secret")
	before := lstat(t, secret)
	dir = filepath.Join(t.TempDir(), "data")
	s, err := tree.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	s.Limits = tree.Limits{Entries: 1000, Bytes: 8 << 20, PathLength: 500, Depth: 50}
	t.Cleanup(func() {
		isEmpty(t, filepath.Join(dir, "tmp"))
		isEmpty(t, filepath.Join(dir, "trees"))
		if entries, _ := os.ReadDir(filepath.Dir(dir)); len(entries) != 1 {
			t.Errorf("%d entries beside the data directory", len(entries))
		}
		after := lstat(t, secret)
		before.Atim = after.Atim
		if entries, _ := os.ReadDir(canary); len(entries) != 1 || before != after {
			t.Error("the canary is dead")
		}
	})
	return s, dir
}

// checkNoWhiteouts holds that they come from whiteouts alone.
func checkNoWhiteouts(t *testing.T, dir string, data []byte) {
	t.Helper()
	if bytes.Contains(data, []byte(".wh.")) {
		return
	}
	err := filepath.WalkDir(filepath.Join(dir, "tmp"), func(path string, e os.DirEntry, err error) error {
		if err == nil && e.Type()&os.ModeCharDevice != 0 && lstat(t, path).Rdev == 0 {
			t.Errorf("%s is a whiteout", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
