package tree_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/tree"
)

// TestExtractObjects holds what each kind of entry becomes.
func TestExtractObjects(t *testing.T) {
	s, _ := open(t)
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	root, meta := add(t, s,
		folder("./", 0o751, owned(3, 4)),
		folder("d/", 0o2775, owned(1, 50)),
		file("d/f", "hello", owned(7, 8), mode(0o640)),
		file("suid", "x", owned(0, 9), mode(0o6755), xattr("security.capability", capability), xattr("user.note", "a\x00b")),
		link("l", "d/f"),
		link("dangling", "/nowhere"),
		hard("h", "d/f"),
		hard("hl", "l"),
		device(tar.TypeChar, "dev/null", 1, 3),
		device(tar.TypeBlock, "dev/loop0", 7, 0),
		device(tar.TypeFifo, "pipe", 0, 0),
		file(strings.Repeat("n", 255), "long"),
		file(strings.Repeat("deep/", 40)+"f", strings.Repeat("0123456789abcdef", 40_000)),
		file("empty", ""),
		folder("sticky", 0o1777, xattr("user.note", "on a directory")),
	)
	want := map[string]string{
		".":         "040751 3:4 1600000000.123456789",
		"d":         "042775 1:50 1600000000.123456789",
		"d/f":       "100640 7:8 1600000000.123456789 links=2 size=5 2cf24dba5fb0",
		"h":         "100640 7:8 1600000000.123456789 links=2 size=5 2cf24dba5fb0",
		"suid":      "106755 0:9 1600000000.123456789 links=1 size=1 2d711642b726 security.capability=\"\\x01\\x00\\x00\\x02\\x00 \\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\" user.note=\"a\\x00b\"",
		"l":         "120777 0:0 1600000000.123456789 -> d/f",
		"hl":        "120777 0:0 1600000000.123456789 -> d/f",
		"dangling":  "120777 0:0 1600000000.123456789 -> /nowhere",
		"dev":       "040755 0:0 0.000000000",
		"dev/null":  "020660 0:0 1600000000.123456789 dev=1:3",
		"dev/loop0": "060660 0:0 1600000000.123456789 dev=7:0",
		"pipe":      "010660 0:0 1600000000.123456789",
		"empty":     "100644 0:0 1600000000.123456789 links=1 size=0 e3b0c44298fc",
		"sticky":    "041777 0:0 1600000000.123456789 user.note=\"on a directory\"",
	}
	got := snapshot(t, root)
	for path, w := range want {
		if got[path] != w {
			t.Errorf("%s:\n got %s\nwant %s", path, got[path], w)
		}
	}
	if st := lstat(t, filepath.Join(root, strings.Repeat("deep/", 40), "f")); st.Size != 640_000 {
		t.Errorf("deep file has %d bytes", st.Size)
	}
	if !slices.Contains(meta.Implied, "dev") || slices.Contains(meta.Implied, "d") || slices.Contains(meta.Implied, ".") {
		t.Errorf("implied = %q", meta.Implied[:min(5, len(meta.Implied))])
	}
	checkUsage(t, root, meta)
}

// checkUsage compares the record with what a walk finds.
func checkUsage(t *testing.T, root string, meta tree.Meta) {
	t.Helper()
	var size int64
	seen := map[uint64]bool{}
	err := filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		if st := lstat(t, path); err == nil && !seen[st.Ino] {
			seen[st.Ino] = true
			size += st.Blocks * 512
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if meta.Size != size || meta.Inodes != int64(len(seen)) {
		t.Errorf("recorded %d bytes, %d inodes; found %d, %d", meta.Size, meta.Inodes, size, len(seen))
	}
}

// TestExtractNames holds which files a list of entries leaves.
func TestExtractNames(t *testing.T) {
	tests := []struct {
		name    string
		items   []item
		want    string // sorted files as kind+path; W: whiteout, O: opaque directory
		implied string
	}{
		{"whiteout", []item{file("a/.wh.b", "")}, "d:. d:a W:a/b", ". a"},
		{"whiteout before the real entry", []item{file(".wh.b", ""), file("b", "x")}, "d:. f:b", "."},
		{"whiteout after the real entry", []item{file("b", "x"), file(".wh.b", "")}, "d:. f:b", "."},
		{"whiteout and a directory hide the lower one", []item{file("b/c", "x"), file(".wh.b", "")}, "d:. O:b f:b/c", "."},
		{"whiteout and a real directory", []item{file(".wh.b", ""), folder("b", 0o700)}, "d:. O:b", "."},
		{"opaque", []item{folder("d", 0o755), file("d/.wh..wh..opq", ""), file("d/f", "")}, "d:. O:d f:d/f", "."},
		{"opaque implied", []item{file("d/f", ""), file("d/.wh..wh..opq", "")}, "d:. O:d f:d/f", ". d"},
		{"opaque root", []item{file(".wh..wh..opq", "")}, "O:.", "."},
		{"aufs metadata", []item{file(".wh..wh.aufs", ""), folder(".wh..wh.plnk", 0o700), file(".wh..wh.plnk/1.2", "x")}, "d:.", "."},
		{"replace file by file", []item{file("a", "1"), file("a", "22")}, "d:. f:a", "."},
		{"replace file by directory", []item{file("a", "1"), folder("a", 0o755), file("a/b", "")}, "d:. O:a f:a/b", "."},
		{"replace directory by link", []item{file("a/b/c", "1"), link("a", "x")}, "d:. l:a", "."},
		{"replace link by directory", []item{folder("x", 0o755), link("a", "x"), folder("a", 0o755), file("a/f", "")}, "d:. O:a f:a/f d:x", "."},
		{"replace directory, then again", []item{file("a/b", ""), file("a", ""), folder("a", 0o755), file("a/c", "")}, "d:. O:a f:a/c", "."},
		{"directory keeps its content", []item{file("a/b", ""), folder("a", 0o700)}, "d:. d:a f:a/b", "."},
		{"hard link to itself", []item{file("a", ""), hard("a", "a")}, "d:. f:a", "."},
		{"hard link twice", []item{file("a", ""), hard("b", "a"), hard("b", "a")}, "d:. f:a f:b", "."},
		{"link as a parent", []item{link("lib", "usr/lib"), file("lib/x", "")}, "d:. l:lib d:usr d:usr/lib f:usr/lib/x", ". usr usr/lib"},
		{"absolute link as a parent", []item{folder("t", 0o755), link("a", "/t"), file("a/x", ""), file("a/.wh.y", "")}, "d:. l:a d:t f:t/x W:t/y", "."},
		{"link out as a parent", []item{link("a", "../../../../../../../../tmp/gantry-test-outside"), file("a/x", "")}, "d:. l:a d:tmp d:tmp/gantry-test-outside f:tmp/gantry-test-outside/x", ". tmp tmp/gantry-test-outside"},
		{"file through a link is not followed", []item{link("a", "/tmp/gantry-test-outside"), file("a", "x")}, "d:. f:a", "."},
		{"dot dot and absolute", []item{file("../../a", ""), file("/b", ""), file("c/../../d", "")}, "d:. f:a f:b f:d", "."},
		{"device 0:0 is left out", []item{device(tar.TypeChar, "a", 0, 0), file("b", "")}, "d:. f:b", "."},
		{"changing links", []item{folder("x", 0o755), folder("y", 0o755), link("l", "x"), file("l/1", ""), link("l", "y"), file("l/2", "")}, "d:. l:l d:x f:x/1 d:y f:y/2", "."},
		{"global header", []item{{Header: tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "x"}}}, file("a", "")}, "d:. f:a", "."},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, dir := open(t)
			root, meta := add(t, s, tt.items...)
			if got := listing(t, root); got != tt.want {
				t.Errorf("\n got %s\nwant %s", got, tt.want)
			}
			if tt.name == "global header" && len(meta.Skipped) > 0 {
				t.Errorf("a comment is told of: %+v", meta.Skipped)
			}
			if got := strings.Join(meta.Implied, " "); got != tt.implied {
				t.Errorf("implied %q, want %q", got, tt.implied)
			}
			checkUsage(t, root, meta)
			isEmpty(t, filepath.Join(dir, "tmp"))
			if _, err := os.Lstat("/tmp/gantry-test-outside"); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("reached outside: %v", err)
			}
		})
	}
}

func listing(t *testing.T, root string) string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(root, func(path string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		kind := "f"
		switch {
		case e.IsDir() && getxattr(t, path, "trusted.overlay.opaque") == "y":
			kind = "O"
		case e.IsDir():
			kind = "d"
		case e.Type()&os.ModeSymlink != 0:
			kind = "l"
		case e.Type()&os.ModeCharDevice != 0 && lstat(t, path).Rdev == 0:
			kind = "W"
		}
		rel, err := filepath.Rel(root, path)
		all = append(all, kind+":"+rel)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(all, " ")
}

// TestExtractRefuses holds what is refused, with the word that says why, and
// that nothing is left of it.
func TestExtractRefuses(t *testing.T) {
	many := make([]item, 21)
	for i := range many {
		many[i] = file(string(rune('a'+i)), "")
	}
	deep := strings.Repeat("d/", 31) + "f"
	tests := []struct {
		name  string
		items []item
		is    error
		says  string
	}{
		{"hard link out", []item{hard("a", "/etc/passwd")}, errdefs.ErrInvalid, `entry "a": hard link to "/etc/passwd", which this layer does not have`},
		{"hard link out by dots", []item{hard("a", "../../../../etc/passwd")}, errdefs.ErrInvalid, "does not have"},
		{"hard link through a link", []item{link("e", "/etc"), hard("a", "e/passwd")}, errdefs.ErrInvalid, "does not have"},
		{"hard link to a directory", []item{folder("d", 0o755), hard("a", "d")}, errdefs.ErrInvalid, "hard link to directory"},
		{"file as a parent", []item{file("a", ""), file("a/b", "")}, errdefs.ErrInvalid, `"a" is not a directory`},
		{"links in a circle", []item{link("a", "b"), link("b", "a"), file("a/x", "")}, errdefs.ErrInvalid, "symbolic links"},
		{"whiteout of nothing", []item{file(".wh.", "")}, errdefs.ErrInvalid, "whiteout"},
		{"whiteout of the parent", []item{file("a/.wh...", "")}, errdefs.ErrInvalid, "whiteout"},
		{"root as a file", []item{file(".", "")}, errdefs.ErrInvalid, "root"},
		{"owner", []item{file("a", "", owned(math.MaxUint32, 0))}, errdefs.ErrInvalid, "owner"},
		{"name", []item{file(strings.Repeat("n", 256), "")}, errdefs.ErrInvalid, "name longer than 200 bytes: invalid: limit passed (layerLimits.nameLength)"},
		{"path", []item{file(strings.Repeat(strings.Repeat("n", 99)+"/", 11)+"f", "")}, errdefs.ErrInvalid, "(layerLimits.pathLength)"},
		{"depth", []item{file(deep, "")}, errdefs.ErrInvalid, "deeper than 30 directories: invalid: limit passed (layerLimits.depth)"},
		{"entries", many, errdefs.ErrInvalid, "more than 20 entries: invalid: limit passed (layerLimits.entries)"},
		{"implied entries", []item{file(strings.Repeat("d/", 25)+"f", "")}, errdefs.ErrInvalid, "more than 20 entries"},
		{"bytes", []item{file("a", strings.Repeat("x", 5<<20))}, errdefs.ErrInvalid, "invalid: limit passed (layerLimits.bytes)"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, dir := open(t)
			s.Limits = tree.Limits{Entries: 20, Bytes: 4 << 20, PathLength: 1000, NameLength: 200, Depth: 30}
			if tt.name == "depth" {
				s.Limits.Entries = 100
			}
			data := archive(t, tt.items...)
			p, err := s.Extract(t.Context(), plainLayer(data), bytes.NewReader(data))
			if !errors.Is(err, tt.is) || p != nil {
				t.Fatalf("Extract = %v, %v; want %v", p, err, tt.is)
			}
			if !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error %q does not say %q", err, tt.says)
			}
			isEmpty(t, filepath.Join(dir, "tmp"))
			isEmpty(t, filepath.Join(dir, "trees"))
		})
	}
}

// TestMemory holds that what has to be remembered until a layer's end is bounded, of
// whatever kind it is, and that what is remembered no more does not count.
func TestMemory(t *testing.T) {
	const many = 100
	each := func(make func(name string) []item) (all []item) {
		for i := range many {
			all = append(all, make(fmt.Sprint("n", i))...)
		}
		return all
	}
	again := each(func(n string) []item { return []item{file("d/f", n)} })
	described := each(func(n string) []item { return []item{file(n+"/f", ""), folder(n, 0o700)} })
	tests := []struct {
		name   string
		items  []item
		passes bool
	}{
		{"implied directories", each(func(n string) []item { return []item{file(n+"/f", "")} }), true},
		{"directories", each(func(n string) []item { return []item{folder(n, 0o755)} }), false},
		{"whiteouts", each(func(n string) []item { return []item{file(".wh."+n, "")} }), true},
		{"opaque directories", each(func(n string) []item { return []item{folder(n, 0o755), file(n+"/.wh..wh..opq", "")} }), true},
		{"attributes of directories", each(func(n string) []item { return []item{folder(n, 0o755, xattr("user.x", "1"))} }), true},
		{"attributes of files", each(func(n string) []item { return []item{file(n, "", xattr("user.x", "1"))} }), false},
		{"replaced files", each(func(n string) []item { return []item{file(n, "1"), file(n, "2")} }), true},
		{"the same file", again, false},
		{"directories that are described later", described, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, dir := open(t)
			s.Limits.Memory = 3000
			data := archive(t, tt.items...)
			p, err := s.Extract(t.Context(), plainLayer(data), bytes.NewReader(data))
			if tt.passes != errors.Is(err, errdefs.ErrInvalid) || tt.passes && !strings.Contains(err.Error(), "more than 3000 bytes of memory: invalid: limit passed (layerLimits.memory)") {
				t.Fatalf("Extract: %v", err)
			}
			if err == nil {
				if err := p.Discard(); err != nil {
					t.Error(err)
				}
			}
			isEmpty(t, filepath.Join(dir, "tmp"))
		})
	}
}

// TestRatio ends the extraction of a small blob that becomes too large, unless the
// ratio allows it.
func TestRatio(t *testing.T) {
	const length = 1100 << 20
	var blob bytes.Buffer
	sum := digest.Canonical.Digester()
	z, err := zstd.NewWriter(&blob, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20))
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(io.MultiWriter(z, sum.Hash()))
	err = w.WriteHeader(&tar.Header{Name: "zeros", Typeflag: tar.TypeReg, Mode: 0o600, Size: length})
	if err == nil {
		_, err = io.CopyN(w, zeros{}, length)
	}
	if err := errors.Join(err, w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	l := tree.Layer{Digest: digest.FromBytes(blob.Bytes()), Size: int64(blob.Len()), DiffID: sum.Digest(), MediaType: ocispec.MediaTypeImageLayerZstd}
	s, dir := open(t)
	_, err = s.Extract(t.Context(), l, bytes.NewReader(blob.Bytes()))
	if !errors.Is(err, errdefs.ErrInvalid) || !strings.Contains(err.Error(), "larger than 1073741824 bytes") || !strings.Contains(err.Error(), "(layerLimits.ratio)") {
		t.Errorf("%d bytes of %d: %v", length, blob.Len(), err)
	}
	isEmpty(t, filepath.Join(dir, "tmp"))
	s.Limits.Ratio = length/int64(blob.Len()) + 1
	p, err := s.Extract(t.Context(), l, bytes.NewReader(blob.Bytes()))
	if err != nil {
		t.Fatalf("within the ratio: %v", err)
	}
	if err := p.Discard(); err != nil {
		t.Error(err)
	}
}

type zeros struct{}

// Read is part of io.Reader.
func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestExtractSkips holds that overlay's own attributes do not come from an archive.
func TestExtractSkips(t *testing.T) {
	s, _ := open(t)
	root, meta := add(t, s,
		folder("d", 0o755, xattr("trusted.overlay.opaque", "y"), xattr("user.kept", "1")),
		file("m", "", xattr("trusted.overlay.metacopy", "")),
		device(tar.TypeChar, "c", 0, 0),
		make1(tar.TypeSymlink, "l", 0o777, "", []func(*tar.Header){xattr("user.no", "1"), func(h *tar.Header) { h.Linkname = "m" }}),
		item{Header: tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "global", PAXRecords: map[string]string{"comment": "x", "uid": "7", "SCHILY.xattr.user.all": "1"}}},
		file("after", ""),
	)
	if st := lstat(t, root+"/after"); st.Uid != 0 || getxattr(t, root+"/after", "user.all") != "" {
		t.Errorf("a global header had an effect: owner %d", st.Uid)
	}
	if last := (tree.Skipped{Path: "global", Reason: "global header of SCHILY.xattr.user.all, uid"}); !slices.Contains(meta.Skipped, last) {
		t.Errorf("skipped = %+v", meta.Skipped)
	}
	if getxattr(t, root+"/d", "trusted.overlay.opaque") != "" || getxattr(t, root+"/d", "user.kept") != "1" {
		t.Error("attributes of d are wrong")
	}
	if len(meta.Skipped) != 5 {
		t.Errorf("skipped = %+v", meta.Skipped)
	}
}

// TestExtractVerifies holds that nothing passes that is not what was promised.
func TestExtractVerifies(t *testing.T) {
	random := make([]byte, 700_000)
	if _, err := rand.Read(random); err != nil {
		t.Fatal(err)
	}
	data := archive(t, file("a", string(random)), file("b", "b"))
	gz, zst := zipped(t, data), zstandard(t, data, 1<<20)
	other := digest.FromString("other")
	const gzipped = ocispec.MediaTypeImageLayerGzip
	change := func(l tree.Layer, f func(*tree.Layer)) tree.Layer { f(&l); return l }
	flipped := slices.Clone(gz)
	flipped[len(gz)/2] ^= 1
	cut := gz[:len(gz)/2]
	trailing := append(slices.Clone(data), make([]byte, 1<<20)...)
	member := append(slices.Clone(gz), zipped(t, nil)...)
	wide := zstandard(t, append(slices.Clone(data), make([]byte, 20<<20)...), 16<<20)
	tests := []struct {
		name  string
		layer tree.Layer
		blob  []byte
		is    error
		says  string
	}{
		{"gzip", promise(gz, data, gzipped), gz, nil, ""},
		{"docker gzip", promise(gz, data, "application/vnd.docker.image.rootfs.diff.tar.gzip"), gz, nil, ""},
		{"zstd", promise(zst, data, ocispec.MediaTypeImageLayerZstd), zst, nil, ""},
		{"plain with zeros behind", plainLayer(trailing), trailing, nil, ""},
		{"member behind the trailer", promise(member, data, gzipped), member, nil, ""},
		{"more than promised is not read", promise(gz, data, gzipped), append(slices.Clone(gz), "more"...), nil, ""},
		{"media type", promise(gz, data, "application/x-lzma"), gz, errdefs.ErrUnsupported, "application/x-lzma"},
		{"digest", change(promise(gz, data, gzipped), func(l *tree.Layer) { l.Digest = other }), gz, errdefs.ErrUnverified, "another digest"},
		{"diff ID", change(promise(gz, data, gzipped), func(l *tree.Layer) { l.DiffID = other }), gz, errdefs.ErrUnverified, "diff ID"},
		{"size too small", change(promise(gz, data, gzipped), func(l *tree.Layer) { l.Size-- }), gz, errdefs.ErrUnverified, "another digest"},
		{"size too large", change(promise(gz, data, gzipped), func(l *tree.Layer) { l.Size++ }), gz, errdefs.ErrUnverified, "ended after"},
		{"cut on the way", promise(gz, data, gzipped), cut, errdefs.ErrUnverified, "ended after"},
		{"flipped on the way", promise(gz, data, gzipped), flipped, errdefs.ErrUnverified, "another digest"},
		{"page in place of a blob", promise(gz, data, gzipped), bytes.Repeat([]byte("<html>"), len(gz)), errdefs.ErrUnverified, "another digest"},
		{"cut gzip as promised", promise(cut, data, gzipped), cut, errdefs.ErrInvalid, "unexpected EOF"},
		{"plain as gzip", promise(data, data, gzipped), data, errdefs.ErrInvalid, "decompress"},
		{"gzip as plain", promise(gz, data, ocispec.MediaTypeImageLayer), gz, errdefs.ErrInvalid, "tar"},
		{"cut tar", plainLayer(data[:300_000]), data[:300_000], errdefs.ErrInvalid, "tar"},
		{"zstd window", promise(wide, data, ocispec.MediaTypeImageLayerZstd), wide, errdefs.ErrInvalid, "window"},
		{"negative size", change(promise(gz, data, gzipped), func(l *tree.Layer) { l.Size = -1 }), gz, errdefs.ErrInvalid, "size"},
		{"no digest", change(promise(gz, data, gzipped), func(l *tree.Layer) { l.Digest = "sha256:xyz" }), gz, errdefs.ErrInvalid, "digest"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, dir := open(t)
			blob := bytes.NewReader(tt.blob)
			p, err := s.Extract(t.Context(), tt.layer, blob)
			if !errors.Is(err, tt.is) || tt.is != nil && !strings.Contains(err.Error(), tt.says) {
				t.Fatalf("Extract: %v; want %v with %q", err, tt.is, tt.says)
			}
			if read := int64(len(tt.blob) - blob.Len()); read > max(tt.layer.Size, 0) {
				t.Errorf("read %d bytes of %d", read, tt.layer.Size)
			}
			if err == nil {
				if err := s.Commit(t.Context(), p); err != nil {
					t.Fatal(err)
				}
			}
			isEmpty(t, filepath.Join(dir, "tmp"))
		})
	}
}

// TestZstdDecoderAgain holds that what a decoder did before, whole, damaged or with
// another window, is not to be seen in the next layer that it decompresses.
func TestZstdDecoderAgain(t *testing.T) {
	s, _ := open(t)
	content := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	for i, window := range []int{8 << 20, 1 << 20, 4 << 20, 1 << 20, 8 << 20} {
		copy(content[i<<18:], fmt.Sprintf("layer %d", i)) // what a window of before would lead to
		data := archive(t, file(fmt.Sprint("f", i), string(content)))
		blob := zstandard(t, data, window)
		for _, broken := range [][]byte{blob[:len(blob)/2], append(slices.Clone(blob[:len(blob)-8]), "garbage!"...)} {
			l := promise(broken, data, ocispec.MediaTypeImageLayerZstd)
			if _, err := s.Extract(t.Context(), l, bytes.NewReader(broken)); !errors.Is(err, errdefs.ErrInvalid) && !errors.Is(err, errdefs.ErrUnverified) {
				t.Fatalf("layer %d, damaged: %v", i, err)
			}
		}
		l := promise(blob, data, ocispec.MediaTypeImageLayerZstd)
		p, err := s.Extract(t.Context(), l, bytes.NewReader(blob))
		if err != nil {
			t.Fatalf("layer %d: %v", i, err)
		}
		if err := s.Commit(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join(s.Root(p.Name()), fmt.Sprint("f", i)))
		if err != nil || !bytes.Equal(got, content) {
			t.Errorf("layer %d: %d bytes, err %v", i, len(got), err)
		}
	}
}

// hang is a blob that stops to come.
type hang struct {
	io.Reader
	free chan struct{}
}

func (h hang) Read(p []byte) (int, error) {
	n, err := h.Reader.Read(p)
	if errors.Is(err, io.EOF) {
		<-h.free
	}
	return n, err
}

func TestExtractCancel(t *testing.T) {
	s, dir := open(t)
	data := archive(t, file("a", strings.Repeat("x", 3<<20)), file("b", "b"))
	l := plainLayer(data)
	h := hang{bytes.NewReader(data[:2<<20]), make(chan struct{})}
	defer close(h.free)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	begin := time.Now()
	if _, err := s.Extract(ctx, l, h); !errors.Is(err, context.Canceled) {
		t.Fatalf("Extract: %v", err)
	}
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("took %v", d)
	}
	isEmpty(t, filepath.Join(dir, "tmp"))
}

// TestExtractReadError holds that the source's own error comes through.
func TestExtractReadError(t *testing.T) {
	s, dir := open(t)
	data := archive(t, file("a", strings.Repeat("x", 3<<20)))
	broken := errors.New("connection reset")
	blob := io.MultiReader(bytes.NewReader(data[:1<<20]), iotestErr{broken})
	if _, err := s.Extract(t.Context(), plainLayer(data), blob); !errors.Is(err, broken) {
		t.Errorf("Extract: %v", err)
	}
	isEmpty(t, filepath.Join(dir, "tmp"))
}

type iotestErr struct{ err error }

func (e iotestErr) Read([]byte) (int, error) { return 0, e.err }
