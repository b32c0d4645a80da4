package tree_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/overlay"
	"github.com/gantry-cri/gantry/stage0/render"
	"github.com/gantry-cri/gantry/stage0/tree"
)

func later(s int) func(*tar.Header) { return at(stamp.Add(time.Duration(s) * time.Second)) }

// corpus is a nasty stack of layers, bottom first.
var corpus = [][]item{
	{ // a base with its directories described
		folder("./", 0o751, owned(1, 1)),
		folder("tmp", 0o1777, later(1)),
		folder("usr", 0o755), folder("usr/bin", 0o755, later(2)), folder("usr/lib", 0o755),
		file("usr/bin/su", "su", mode(0o4755)), hard("usr/bin/su2", "usr/bin/su"),
		file("usr/bin/ping", "ping", xattr("security.capability", capability)),
		link("bin", "usr/bin"),
		folder("var", 0o755), folder("var/spool", 0o700, owned(5, 6), xattr("user.a", "1"), later(3)),
		folder("var/spool/mail", 0o2775, owned(0, 8)), file("var/spool/mail/root", "mail"),
		folder("etc", 0o755), file("etc/passwd", "root", owned(0, 0)), file("etc/gone", "x"),
		folder("opt", 0o711, owned(9, 9)), folder("opt/app", 0o710), file("opt/app/old", "old"), folder("opt/app/sub", 0o501), file("opt/app/sub/f", "1"),
		folder("was-dir", 0o700), file("was-dir/f", ""), file("was-file", ""), link("was-link", "etc"),
		folder("srv", 0o705), folder("srv/data", 0o702), file("srv/data/a", "a"),
		device(tar.TypeChar, "null", 1, 3), device(tar.TypeFifo, "fifo", 0, 0),
	},
	{ // implied parents over described ones, whiteouts
		file("tmp/x", "x"),
		file("var/spool/mail/joe", "mail"),
		file("etc/.wh.gone", ""), file("etc/passwd", "root joe", mode(0o640)),
		file("opt/app/.wh..wh..opq", ""), file("opt/app/new", "new"),
		file("was-dir", "now a file"), file("was-file/now/a", "directory"), file("was-link/f", "directory"),
		file("srv/.wh.data", ""), file("srv/data/b", "b"),
		file("new/a/b/c", "deep"),
	},
	{ // described above implied, and implied again
		folder("new", 0o700, owned(3, 3)), file("new/a/d", "d"),
		folder("var/spool", 0o711, later(9), xattr("user.b", "2")),
		file("tmp/y", "y"), hard("tmp/z", "tmp/y"),
		file("opt/app/sub/g", "2"),
		folder("was-dir", 0o755, later(4)), file("was-dir/again", ""),
		file(".wh.was-file", ""),
	},
	{ // the same as the second: a layer twice
		file("tmp/x", "x"),
		file("var/spool/mail/joe", "mail"),
		file("etc/.wh.gone", ""), file("etc/passwd", "root joe", mode(0o640)),
		file("opt/app/.wh..wh..opq", ""), file("opt/app/new", "new"),
		file("was-dir", "now a file"), file("was-file/now/a", "directory"), file("was-link/f", "directory"),
		file("srv/.wh.data", ""), file("srv/data/b", "b"),
		file("new/a/b/c", "deep"),
	},
	{
		file("usr/lib/x86/libc.so", "c"), folder("usr/lib/x86", 0o750, later(5)),
		file("etc/gone", "back"), file("var/spool/mail/.wh.root", ""),
		file(".wh.was-dir", ""), file("was-dir/x/y", "third"),
		file("new/a/b/e", "e"),
	},
	{ // removed above what a fix-up might bring back
		file(".wh.new", ""), file(".wh.opt", ""), file("var/spool/mail/k", ""),
	},
}

// TestStack compares what overlay shows of the corpus with a serial applier,
// whatever the order of extraction, and at every height.
func TestStack(t *testing.T) {
	for height := 1; height <= len(corpus); height++ {
		for seed := range uint64(3) {
			t.Run(fmt.Sprintf("height %d order %d", height, seed), func(t *testing.T) {
				compareStack(t, corpus[:height], rand.New(rand.NewPCG(seed, 1)).Perm(height))
			})
		}
	}
}

// TestRandomStacks does the same with layers made up at random.
func TestRandomStacks(t *testing.T) {
	for seed := range uint64(40) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 2))
			layers := make([][]item, 2+r.IntN(5))
			for i := range layers {
				layers[i] = randomLayer(r, i)
			}
			compareStack(t, layers, r.Perm(len(layers)))
		})
	}
}

// TestOpaqueRoot holds that a layer may hide all below it.
func TestOpaqueRoot(t *testing.T) {
	layers := [][]item{
		{folder("./", 0o711, owned(4, 4)), folder("a", 0o700), file("a/b", "")},
		{file(".wh..wh..opq", ""), file("c/d", "")},
		{file("a/e", "")},
	}
	compareStack(t, layers, []int{0, 1, 2})
}

func randomLayer(r *rand.Rand, n int) []item {
	var items []item
	names := []string{"a", "b", "c"}
	depth := func() string {
		p := names[r.IntN(3)]
		for range r.IntN(4) {
			p += "/" + names[r.IntN(3)]
		}
		return p
	}
	kinds := map[string]bool{} // true: no directory; a path below one would be refused
	for range 1 + r.IntN(10) {
		p := depth()
		if blocked(kinds, filepath.Dir(p)) {
			continue
		}
		dir, base := filepath.Split(p)
		change := later(n*100 + len(items))
		switch r.IntN(7) {
		case 0, 1: // also over a file of the same layer
			items = append(items, folder(p, int64(0o700+r.IntN(64)), owned(n, len(items)), change))
			kinds[p] = false
		case 2, 3:
			if _, ok := kinds[p]; ok || below(kinds, p) {
				continue
			}
			items = append(items, file(p, fmt.Sprint(n, len(items)), change))
			kinds[p] = true
		case 4:
			items = append(items, file(dir+".wh."+base, ""))
		case 5:
			items = append(items, file(dir+".wh..wh..opq", ""))
		case 6:
			if below(kinds, p) {
				continue
			}
			items = append(items, link(p, names[r.IntN(3)]))
			kinds[p] = true
		}
		for d := filepath.Dir(p); d != "."; d = filepath.Dir(d) {
			kinds[d] = false
		}
	}
	if r.IntN(2) == 0 {
		items = append(items, folder("./", int64(0o700+r.IntN(64)), owned(n, 0)))
	}
	return items
}

func blocked(kinds map[string]bool, p string) bool {
	for d := p; d != "."; d = filepath.Dir(d) {
		if kinds[d] {
			return true
		}
	}
	return false
}

func below(kinds map[string]bool, p string) bool {
	for k := range kinds {
		if len(k) > len(p) && k[:len(p)+1] == p+"/" {
			return true
		}
	}
	return false
}

// compareStack extracts the layers in the given order, mounts the stack and
// compares it with the serial applier.
func compareStack(t *testing.T, layers [][]item, order []int) {
	t.Helper()
	s, dir := open(t)
	ids := make([]digest.Digest, len(layers))
	pending := make([]*tree.Pending, len(layers))
	for _, i := range order {
		data := archive(t, layers[i]...)
		p, err := s.Extract(t.Context(), plainLayer(data), bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		ids[i], pending[i] = digest.FromBytes(data), p
	}
	if err := s.Commit(t.Context(), pending...); err != nil {
		t.Fatal(err)
	}
	want := newSerial(t)
	for _, l := range layers {
		want.apply(archive(t, l...))
	}
	wanted := snapshot(t, want.done())
	lower := stackOf(t, s, ids)
	diffSnapshots(t, snapshot(t, mountStack(t, s, dir, lower)), wanted)
	diffSnapshots(t, snapshot(t, copyStack(t, s, dir, lower)), wanted)
	isEmpty(t, filepath.Join(dir, "tmp"))
	if t.Failed() {
		for i, l := range layers {
			for _, it := range l {
				t.Logf("layer %d: %c %s %o", i, it.Typeflag, it.Name, it.Mode)
			}
		}
	}
}

// copyStack renders the stack without overlay.
func copyStack(t *testing.T, s *tree.Store, dir string, lower []string) string {
	t.Helper()
	j := render.Job{To: filepath.Join(dir, "copy")}
	for _, name := range lower {
		j.Roots = append(j.Roots, filepath.Join(s.Path(name), "rootfs"))
	}
	if err := j.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	return j.To
}

// stackOf names the trees of the layers, bottom first in ids, as overlay takes them.
func stackOf(t *testing.T, s *tree.Store, ids []digest.Digest) []string {
	t.Helper()
	fixup, err := s.Fixup(t.Context(), ids)
	if err != nil {
		t.Fatal(err)
	}
	var lower []string
	if fixup != "" {
		lower = append(lower, fixup)
	}
	for _, id := range slices.Backward(ids) {
		lower = append(lower, tree.Name(id))
	}
	return lower
}

func mountStack(t *testing.T, s *tree.Store, dir string, lower []string) string {
	t.Helper()
	p := overlay.Plan{
		Lower: lower, Upper: filepath.Join(dir, "pod", "upper"), Work: filepath.Join(dir, "pod", "work"),
		Target: filepath.Join(dir, "merged"),
	}
	if err := os.Mkdir(p.Target, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := overlay.Make(s.Dir(), p); err != nil {
		t.Fatal(err)
	}
	if err := overlay.Mount(s.Dir(), p); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := overlay.Unmount(p.Target); err != nil {
			t.Error(err)
		}
	})
	return p.Target
}

// TestFixup holds which stacks need a fix-up tree, and that it has no more
// than it must.
func TestFixup(t *testing.T) {
	tests := []struct {
		name   string
		layers [][]item
		want   string // the fix-up tree's directories
	}{
		{"one layer", [][]item{{file("a/b", "")}}, ""},
		{"nothing implied", [][]item{{folder("./", 0o755), folder("a", 0o700)}, {folder("./", 0o755), folder("a", 0o755), file("a/b", "")}}, ""},
		{"implied everywhere", [][]item{{file("a/b", "")}, {file("a/c", "")}}, ""},
		{"implied over described", [][]item{{folder("a", 0o700)}, {file("a/b", "")}}, "d:. d:a"},
		{"implied below described", [][]item{{file("a/b", "")}, {folder("a", 0o700)}}, ""},
		{"hidden by a whiteout", [][]item{{folder("a", 0o700)}, {file(".wh.a", "")}, {file("a/b", "")}}, ""},
		{"hidden by a whiteout in the same layer", [][]item{{folder("a", 0o700)}, {file(".wh.a", ""), file("a/b", "")}}, ""},
		{"hidden by an opaque parent", [][]item{{folder("a/b", 0o700)}, {file("a/.wh..wh..opq", "")}, {file("a/b/c", "")}}, ""},
		{"not hidden by its own opaqueness", [][]item{{folder("a", 0o700)}, {file("a/.wh..wh..opq", "")}}, "d:. d:a"},
		{"replaced by a file above", [][]item{{folder("a", 0o700)}, {file("a/b", "")}, {file("a", "")}}, ""},
		{"removed above", [][]item{{folder("a", 0o700)}, {file("a/b", "")}, {file(".wh.a", "")}}, ""},
		{"whiteout that nothing merges", [][]item{{folder("a", 0o700), file("a/.wh.b", "")}}, "d:. d:a"},
		{"whiteout that two layers merge", [][]item{{folder("a", 0o700)}, {folder("a", 0o700, later(1)), file("a/.wh.b", "")}}, ""},
		{"name before the dot", [][]item{{folder("!a", 0o700), folder("-b", 0o700)}, {file("!a/b", ""), file("-b/c", "")}}, "d:. d:!a d:-b"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, _ := open(t)
			var ids []digest.Digest
			for _, l := range tt.layers {
				_, m := add(t, s, l...)
				ids = append(ids, m.DiffID)
			}
			name, err := s.Fixup(t.Context(), ids)
			if err != nil {
				t.Fatal(err)
			}
			if name == "" {
				if tt.want != "" {
					t.Errorf("no fix-up tree, want %s", tt.want)
				}
				return
			}
			root := filepath.Join(s.Path(name), "rootfs")
			if got := listing(t, root); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
			m, err := s.Meta(name)
			if err != nil || !m.Fixup {
				t.Fatalf("Meta = %+v, %v", m, err)
			}
			checkUsage(t, root, m)
			if again, err := s.Fixup(t.Context(), ids); again != name || err != nil {
				t.Errorf("again: %q, %v", again, err)
			}
		})
	}
}

// TestFixupMemory holds that layers which are each within the limit are so together,
// too, where they name other directories; and that what was made before is not held to it.
func TestFixupMemory(t *testing.T) {
	s, _ := open(t)
	s.Limits.Memory = 3000
	layer := func(n int, prefix string) digest.Digest { // of 31 implied directories
		items := []item{file("n", fmt.Sprint(n))}
		for i := range 30 {
			items = append(items, file(fmt.Sprintf("%s/%d/f", prefix, i), ""))
		}
		_, m := add(t, s, items...)
		return m.DiffID
	}
	var same []digest.Digest
	for n := range 7 {
		same = append(same, layer(n, "same"))
	}
	for _, tt := range []struct {
		name   string
		layers []digest.Digest
		says   string
	}{
		{"the same directories", same[:5], ""},
		{"the same directories too often", same, "more than 12000 bytes of memory: invalid: limit passed (layerLimits.memory)"},
		{"others", []digest.Digest{same[0], layer(8, "other")}, "more than 3000 bytes of memory: invalid: limit passed (layerLimits.memory)"},
	} {
		_, err := s.Fixup(t.Context(), tt.layers)
		if (tt.says == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v", tt.name, err)
		}
		r, err := s.RebuildFixup(t.Context(), tt.layers)
		if err != nil {
			t.Errorf("%s, again: %v", tt.name, err)
		}
		if r != nil {
			if err := r.Discard(); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestFixupMissingLayer(t *testing.T) {
	s, _ := open(t)
	_, m := add(t, s, file("a", ""))
	if _, err := s.Fixup(t.Context(), []digest.Digest{m.DiffID, digest.FromString("x")}); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("Fixup: %v", err)
	}
}
