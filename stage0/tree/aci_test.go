package tree_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/tree"
)

const aciManifest = `{"acKind":"ImageManifest"}`

// aciOf is an image of the items, below rootfs/.
func aciOf(t testing.TB, items ...item) []byte {
	t.Helper()
	all := []item{file("manifest", aciManifest), folder("rootfs", 0o755)}
	for _, it := range items {
		it.Name = "rootfs/" + it.Name
		if it.Typeflag == tar.TypeLink {
			it.Linkname = "rootfs/" + it.Linkname
		}
		all = append(all, it)
	}
	return archive(t, all...)
}

// filtered is what a program of Debian makes of data.
func filtered(t testing.TB, data []byte, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stdin = bytes.NewReader(data)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%q: %v", cmd.Args, err)
	}
	return out
}

func aciSource(data []byte) tree.ACISource {
	return tree.ACISource{Reader: bytes.NewReader(data), Size: int64(len(data)), Check: func([]byte) error { return nil }}
}

var aciItems = []item{
	folder("bin", 0o755, at(stamp)), file("bin/app", strings.Repeat("app\n", 100_000), mode(0o4755), owned(1, 2)),
	hard("bin/again", "bin/app"), link("sh", "bin/app"), file("net", "x", xattr("security.capability", capability)),
	file(".wh.file", "not a whiteout"), file("d/.wh..wh..opq", "nor an opaque mark"), file(".wh..wh.plnk/1.2", "nor AUFS's"),
	device(tar.TypeChar, "null", 1, 3), file("manifest", "in the root filesystem"), file("rootfs/x", "too"),
}

// TestExtractACI holds that the tree is what lies below rootfs, whatever the
// compression, and its identity that of the uncompressed archive.
func TestExtractACI(t *testing.T) {
	plain := aciOf(t, aciItems...)
	sum := sha512.Sum512(plain)
	id := "sha512:" + hex.EncodeToString(sum[:])
	want := aciSnapshot(t, plain)
	for name, data := range map[string][]byte{
		"plain":        plain,
		"gzip":         filtered(t, plain, "gzip"),
		"bzip2":        filtered(t, plain, "bzip2"),
		"xz":           filtered(t, plain, "xz"),
		"xz, 8":        filtered(t, plain, "xz", "-8"),
		"xz, streams":  append(filtered(t, plain[:4096], "xz"), filtered(t, plain[4096:], "xz")...),
		"xz, threads":  filtered(t, plain, "xz", "-T2", "--block-size=100000"),
		"xz, x86, crc": filtered(t, plain, "xz", "--x86", "--lzma2", "--check=crc32"),
	} {
		t.Run(name, func(t *testing.T) {
			s, dir := open(t)
			p, a, err := s.ExtractACI(t.Context(), aciSource(data))
			if err != nil {
				t.Fatal(err)
			}
			if string(a.Digest) != id || string(a.Manifest) != aciManifest {
				t.Errorf("it is %s, manifest %q, want %s", a.Digest, a.Manifest, id)
			}
			if err := s.Commit(t.Context(), p); err != nil {
				t.Fatal(err)
			}
			meta, ok, err := s.Has(tree.ACIKey(a.Digest))
			if err != nil || !ok {
				t.Fatalf("Has = %v, %v", ok, err)
			}
			root := filepath.Join(s.Path(p.Name()), "rootfs")
			diffSnapshots(t, snapshot(t, root), want)
			checkUsage(t, root, meta)
			isEmpty(t, filepath.Join(dir, "tmp"))
			if _, ok, err := s.Has(a.Digest); ok || err != nil {
				t.Errorf("it is the tree of a layer too: %v, %v", ok, err)
			}
		})
	}
}

// aciSnapshot is what tar -x makes of it.
func aciSnapshot(t *testing.T, plain []byte) map[string]string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("extraction needs root")
	}
	dir := t.TempDir()
	cmd := exec.Command("tar", "-x", "-C", dir, "--numeric-owner", "--same-owner", "--xattrs", "--xattrs-include=*")
	cmd.Stdin = bytes.NewReader(plain)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("tar: %v: %s", err, out)
	}
	all := snapshot(t, filepath.Join(dir, "rootfs"))
	for _, implied := range []string{"d", ".wh..wh.plnk", "rootfs"} {
		all[implied] = "040755 0:0 0.000000000"
	}
	return all
}

// TestExtractACIOrder holds that the manifest may come last, and the root not at all.
func TestExtractACIOrder(t *testing.T) {
	for name, items := range map[string][]item{
		"manifest last": {folder("rootfs", 0o755), file("rootfs/a", "a"), file("manifest", aciManifest)},
		"from tar .":    {folder("./", 0o755), folder("./rootfs/", 0o755), file("./rootfs/a", "a"), file("./manifest", aciManifest)},
		"root implied":  {file("manifest", aciManifest), file("rootfs/a", "a")},
		"empty rootfs":  {file("manifest", aciManifest), folder("rootfs", 0o755)},
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := open(t)
			checked := ""
			src := aciSource(archive(t, items...))
			src.Check = func(m []byte) error { checked += string(m); return nil }
			p, _, err := s.ExtractACI(t.Context(), src)
			if err != nil {
				t.Fatal(err)
			}
			if checked != aciManifest {
				t.Errorf("checked %q", checked)
			}
			if err := p.Discard(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestExtractACIRefuses holds what is no image, and that nothing is left of it.
func TestExtractACIRefuses(t *testing.T) {
	manifest, rootfs := file("manifest", aciManifest), folder("rootfs", 0o755)
	good := aciOf(t, aciItems...)
	zeros := aciOf(t, file("zeros", strings.Repeat("\x00", 65<<20)))
	bad := errors.New("bad manifest")
	for name, tc := range map[string]struct {
		data  []byte
		check error
		want  string
	}{
		"no manifest":          {data: archive(t, rootfs, file("rootfs/a", "")), want: "no manifest"},
		"no rootfs":            {data: archive(t, manifest), want: "no rootfs"},
		"empty file":           {want: "no manifest"},
		"no tar":               {data: bytes.Repeat([]byte("junk"), 1000), want: "read tar"},
		"beside":               {data: archive(t, manifest, rootfs, file("other", "")), want: `entry "other": an ACI has nothing but`},
		"layer":                {data: archive(t, file("bin/sh", "")), want: "an ACI has nothing but"},
		"dots":                 {data: archive(t, manifest, file("rootfs/../../etc/passwd", "")), want: "an ACI has nothing but"},
		"absolute":             {data: archive(t, manifest, file("/etc/passwd", "")), want: "an ACI has nothing but"},
		"rootfs is a link":     {data: archive(t, manifest, link("rootfs", "/etc")), want: "not a directory"},
		"manifest is a link":   {data: archive(t, rootfs, link("manifest", "/etc/passwd")), want: "not an ordinary file"},
		"manifest hard linked": {data: archive(t, manifest, rootfs, hard("rootfs/m", "manifest")), want: "outside of rootfs"},
		"hard link outside":    {data: archive(t, manifest, rootfs, hard("rootfs/p", "/etc/passwd")), want: "outside of rootfs"},
		"two manifests":        {data: archive(t, manifest, rootfs, manifest), want: "second manifest"},
		"large manifest":       {data: archive(t, file("manifest", strings.Repeat(" ", 1<<20+1))), want: "larger than 1048576 bytes"},
		"checked":              {data: good, check: bad, want: "bad manifest"},
		"cut":                  {data: good[:len(good)/2], want: "unexpected EOF"},
		"cut gzip":             {data: filtered(t, good, "gzip")[:2000], want: "decompress"},
		"cut bzip2":            {data: filtered(t, good, "bzip2")[:200], want: "decompress"},
		"cut xz":               {data: filtered(t, good, "xz")[:500], want: "decompress"},
		"junk xz":              {data: []byte("\xfd7zXZ\x00junkjunkjunkjunk"), want: "decompress"},
		"flipped xz":           {data: flipped(filtered(t, good, "xz")), want: "decompress"},
		"xz dictionary":        {data: filtered(t, good, "xz", "-9"), want: "larger than 32 MiB"},
		"xz bomb":              {data: filtered(t, zeros, "xz"), want: "larger than 67108864 bytes"},
		"bzip2 bomb":           {data: filtered(t, zeros, "bzip2"), want: "larger than 67108864 bytes"},
		"gzip bomb":            {data: filtered(t, zeros, "gzip"), want: "larger than 67108864 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			s, dir := open(t)
			s.Limits.Bytes = 64 << 20
			src := aciSource(tc.data)
			src.Check = func([]byte) error { return tc.check }
			_, _, err := s.ExtractACI(t.Context(), src)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("%v, want %q", err, tc.want)
			}
			if tc.check == nil && !errors.Is(err, errdefs.ErrInvalid) {
				t.Errorf("%v is not ErrInvalid", err)
			}
			isEmpty(t, filepath.Join(dir, "tmp"))
			isEmpty(t, filepath.Join(dir, "trees"))
		})
	}
}

func flipped(data []byte) []byte {
	data[len(data)/2] ^= 1
	return data
}

// TestExtractACIEnds holds that the end of ctx is the end.
func TestExtractACIEnds(t *testing.T) {
	s, dir := open(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	over := errors.New("over")
	src := aciSource(aciOf(t, aciItems...))
	src.Check = func([]byte) error { cancel(over); return nil }
	if _, _, err := s.ExtractACI(ctx, src); !errors.Is(err, over) {
		t.Errorf("got %v", err)
	}
	isEmpty(t, filepath.Join(dir, "tmp"))
}

// FuzzExtractACI holds that nothing that calls itself an ACI makes ExtractACI
// panic, write outside its tree, or leave anything when it is refused.
func FuzzExtractACI(f *testing.F) {
	if os.Getuid() != 0 {
		f.Skip("extraction needs root")
	}
	small := aciOf(f, file("a", "x"), hard("b", "a"), link("l", "../../canary"), file("l/x", ""), file(".wh.a", ""))
	f.Add(small)
	f.Add(archive(f, file("rootfs/a", ""), file("manifest", aciManifest)))
	f.Add(archive(f, file("rootfs/../canary/secret", ""), hard("rootfs/s", "../canary/secret"), link("rootfs", "canary")))
	for _, by := range []string{"gzip", "bzip2", "xz"} {
		f.Add(filtered(f, small, by))
	}
	f.Add(filtered(f, small, "xz", "--x86", "--delta=dist=3", "--lzma2=preset=0"))
	canary := filepath.Join(f.TempDir(), "canary")
	putCanary(f, canary)
	f.Fuzz(func(t *testing.T, data []byte) {
		s, _ := caged(t, canary)
		p, a, err := s.ExtractACI(t.Context(), aciSource(data))
		if err == nil {
			if len(a.Manifest) > 1<<20 || p.Meta().Inodes < 1 {
				t.Errorf("%d bytes of manifest, meta = %+v", len(a.Manifest), p.Meta())
			}
			err = p.Discard()
			if err != nil {
				t.Error(err)
			}
		} else if !errors.Is(err, errdefs.ErrInvalid) && !errors.Is(err, errdefs.ErrUnsupported) {
			t.Errorf("%v is of no class", err)
		}
	})
}

// BenchmarkExtractACI extracts and commits one ACI: the file that GANTRY_BENCH_ACI
// names. MB/s are of tar.
func BenchmarkExtractACI(b *testing.B) {
	path := os.Getenv("GANTRY_BENCH_ACI")
	if path == "" {
		b.Skip("GANTRY_BENCH_ACI names no file")
	}
	for range b.N {
		b.StopTimer()
		s, _ := open(b)
		f, err := os.Open(path)
		if err != nil {
			b.Fatal(err)
		}
		src := tree.ACISource{Reader: f, Size: 1 << 40, Check: func([]byte) error { return nil }}
		b.StartTimer()
		p, _, err := s.ExtractACI(b.Context(), src)
		if err == nil {
			err = s.Commit(b.Context(), p)
		}
		if err := errors.Join(err, f.Close()); err != nil {
			b.Fatal(fmt.Errorf("%s: %w", path, err))
		}
		b.SetBytes(p.Meta().TarSize)
	}
}
