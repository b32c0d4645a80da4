package tree_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/tree"
	"github.com/gantry-cri/gantry/stage0/usage"
)

func TestName(t *testing.T) {
	a, b := tree.Name(digest.FromString("a")), tree.Name(digest.FromString("b"))
	if len(a) != 12 || a == b || strings.ContainsAny(a, `:,\/.`) {
		t.Errorf("names %q, %q", a, b)
	}
}

func pend(t *testing.T, s *tree.Store, items ...item) *tree.Pending {
	t.Helper()
	data := archive(t, items...)
	p, err := s.Extract(t.Context(), plainLayer(data), bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestCommitTwice holds that who comes second finds the tree and leaves nothing.
func TestCommitTwice(t *testing.T) {
	s, dir := open(t)
	other, err := tree.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	a, b := pend(t, s, file("a", "x")), pend(t, other, file("a", "x"))
	if _, ok, err := s.Has(a.Meta().DiffID); ok || err != nil {
		t.Fatalf("visible before the commit: %v, %v", ok, err)
	}
	var wg sync.WaitGroup
	for _, c := range []struct {
		s *tree.Store
		p *tree.Pending
	}{{s, a}, {other, b}} {
		wg.Go(func() {
			if err := c.s.Commit(context.Background(), c.p); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, p := range []*tree.Pending{a, b, b} {
		if err := p.Discard(); err != nil {
			t.Error(err)
		}
	}
	if err := s.Commit(t.Context(), a, b); err != nil {
		t.Errorf("commit again: %v", err)
	}
	if names, err := s.List(); err != nil || len(names) != 1 || names[0] != a.Name() {
		t.Errorf("List = %q, %v", names, err)
	}
	isEmpty(t, filepath.Join(dir, "tmp"))
}

// TestCollision holds that another layer under the same name is noticed.
func TestCollision(t *testing.T) {
	s, _ := open(t)
	p := pend(t, s, file("a", "x"))
	meta := `{"schema":1,"diffID":"` + digest.FromString("other").String() + `"}`
	if err := os.Mkdir(s.Path(p.Name()), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.Path(p.Name()), "meta.json"), []byte(meta), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Has(p.Meta().DiffID); !errors.Is(err, errdefs.ErrExists) {
		t.Errorf("Has: %v", err)
	}
	if err := s.Commit(t.Context(), p); !errors.Is(err, errdefs.ErrExists) {
		t.Errorf("Commit: %v", err)
	}
	if err := p.Discard(); err != nil {
		t.Error(err)
	}
}

// TestSweep holds that work in progress stays and what was left behind goes.
func TestSweep(t *testing.T) {
	s, dir := open(t)
	p := pend(t, s, file("a", "x"))
	tmp := filepath.Join(dir, "tmp")
	left := filepath.Join(tmp, "tree-left")
	if err := os.MkdirAll(filepath.Join(left, "rootfs", "d"), 0o700); err != nil {
		t.Fatal(err)
	}
	foreign := filepath.Join(tmp, "image-1")
	if err := os.Mkdir(foreign, 0o700); err != nil {
		t.Fatal(err)
	}
	taken, err := usage.Of(t.Context(), left)
	if err != nil || taken.Bytes == 0 {
		t.Fatalf("%+v, %v", taken, err)
	}
	if n, err := s.Left(t.Context()); err != nil || n != taken.Bytes {
		t.Errorf("Left = %d, %v; want %d", n, err, taken.Bytes)
	}
	if _, err := os.Lstat(left); err != nil {
		t.Errorf("Left took it: %v", err)
	}
	if n, err := s.Sweep(t.Context()); err != nil || n != taken.Bytes {
		t.Fatalf("Sweep = %d, %v; want %d", n, err, taken.Bytes)
	}
	if _, err := os.Lstat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left behind: %v", err)
	}
	if _, err := os.Lstat(foreign); err != nil {
		t.Errorf("somebody else's: %v", err)
	}
	if err := s.Commit(t.Context(), p); err != nil {
		t.Errorf("commit after the sweep: %v", err)
	}
}

func TestRemove(t *testing.T) {
	s, dir := open(t)
	_, m := add(t, s, file("d/a", "x"), file("b", ""))
	used, err := s.Usage(t.Context())
	want, walkErr := usage.Of(t.Context(), filepath.Join(dir, "trees"))
	if err != nil || walkErr != nil || used != want || m.Inodes != 4 {
		t.Errorf("Usage = %+v, %v; du counts %+v, %v", used, err, want, walkErr)
	}
	for range 2 {
		if err := s.Remove(t.Context(), tree.Name(m.DiffID)); err != nil {
			t.Fatal(err)
		}
	}
	if _, ok, err := s.Has(m.DiffID); ok || err != nil {
		t.Errorf("Has = %v, %v", ok, err)
	}
	isEmpty(t, filepath.Join(dir, "tmp"))
	isEmpty(t, filepath.Join(dir, "trees"))
	for _, name := range []string{"", ".", "..", "../tmp", "/etc"} {
		if err := s.Remove(t.Context(), name); !errors.Is(err, errdefs.ErrInvalid) {
			t.Errorf("Remove(%q): %v", name, err)
		}
	}
}

// TestNoSpace holds that a full disk is said to be one and keeps nothing.
func TestNoSpace(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("mount a small file system: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	s, err := tree.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	data := archive(t, file("a", strings.Repeat("x", 3<<20)))
	if _, err := s.Extract(t.Context(), plainLayer(data), bytes.NewReader(data)); !errors.Is(err, errdefs.ErrNoSpace) {
		t.Errorf("Extract: %v", err)
	}
	isEmpty(t, filepath.Join(dir, "tmp"))
}

// TestGNUTar holds that archives of GNU tar come out as they went in: long
// names, sparse files, in each of its formats.
func TestGNUTar(t *testing.T) {
	tar, err := exec.LookPath("tar")
	if err != nil {
		t.Skip("no tar")
	}
	s, _ := open(t)
	src := t.TempDir()
	long := strings.Repeat(strings.Repeat("l", 60)+"/", 5)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(src, long), 0o755))
	must(os.WriteFile(filepath.Join(src, long, "f"), []byte("x"), 0o640))
	must(os.Symlink(strings.Repeat("t", 200), filepath.Join(src, "l")))
	f, err := os.Create(filepath.Join(src, "sparse"))
	must(err)
	for _, off := range []int64{1 << 20, 5<<20 + 3} {
		_, err = f.WriteAt([]byte("data"), off)
		must(err)
	}
	must(f.Truncate(64 << 20))
	must(f.Close())
	for _, format := range []string{"gnu", "posix"} {
		t.Run(format, func(t *testing.T) {
			cmd := exec.Command(tar, "-C", src, "--format="+format, "--sparse", "-c", ".")
			data, err := cmd.Output()
			must(err)
			p, err := s.Extract(t.Context(), plainLayer(data), bytes.NewReader(data))
			must(err)
			must(s.Commit(t.Context(), p))
			root := filepath.Join(s.Path(p.Name()), "rootfs")
			got, want := snapshot(t, root), snapshot(t, src)
			if format == "gnu" { // keeps whole seconds
				for _, m := range []map[string]string{got, want} {
					for k, v := range m {
						b, a, _ := strings.Cut(v, ".")
						m[k] = b + a[9:]
					}
				}
			}
			diffSnapshots(t, got, want)
			if st := lstat(t, filepath.Join(root, "sparse")); st.Blocks*512 > 1<<20 {
				t.Errorf("the sparse file takes %d bytes", st.Blocks*512)
			}
			checkUsage(t, root, p.Meta())
		})
	}
}
