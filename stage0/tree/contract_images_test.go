package tree_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/disktest"
)

// contractImage is one image of the contract test.
type contractImage struct {
	name   string
	layers [][]byte
	// source is the directory that the only layer was made of, and that it shows again.
	source string
	// umoci says why umoci unpacks it differently and is not asked.
	umoci string
	// uncounted are files of which a layer above hides another name: overlay shows
	// the number of names in the layer.
	uncounted []string
	// memory has all of it on a file system in memory: it is very many files, which a
	// disk takes minutes to make and to delete.
	memory bool
}

// room has t's directories where there is room for all files of the image.
func (img contractImage) room(t *testing.T) {
	t.Helper()
	if img.memory {
		t.Setenv("TMPDIR", disktest.Memory(t, "8g"))
	}
}

// workers are how many layers are extracted at once, for each order.
func (img contractImage) workers() []int {
	n := len(img.layers)
	return slices.Compact([]int{1, 2, n}[:min(3, n)])
}

func contractImages(t *testing.T) []contractImage {
	t.Helper()
	stack := func(layers ...[]item) (all [][]byte) {
		for _, l := range layers {
			all = append(all, archive(t, l...))
		}
		return all
	}
	files := contractFiles(t)
	return []contractImage{
		{name: "everything", layers: stack(corpus...), umoci: "it writes through was-link, which a lower layer has"},
		{name: "implied parents", layers: stack(impliedLayers...)},
		{name: "whiteouts and directories made again", layers: stack(remadeLayers...)},
		{name: "opaque", layers: stack(opaqueLayers...)},
		{name: "hard links", layers: stack(hardLayers...), uncounted: []string{"kept", "d/kept"}},
		{name: "kinds change", layers: stack(kindLayers...)},
		{name: "attributes", layers: stack(attributeLayers...)},
		{name: "times", layers: stack(timeLayers...)},
		{name: "kinds", layers: stack(deviceLayers...)},
		{name: "odd parents", layers: stack(oddLayers...), umoci: "it makes no directory for a whiteout, refuses a lower file as a parent, and lets what is implied inherit from its parent; it knows no contiguous files"},
		{name: "links as parents", layers: stack(linkLayers...)},
		{name: "every byte", layers: stack(byteLayers()...)},
		{name: "long names", layers: stack(longLayers()...)},
		{name: "127 layers", layers: stack(manyLayers(127)...)},
		{name: "many files", layers: stack(fileLayers(files)...), memory: files > 10_000},
		packed(t, "GNU tar", "--format=gnu"),
		packed(t, "old GNU tar", "--format=oldgnu"),
		packed(t, "PAX tar, sparse 0.0", "--format=posix", "--sparse-version=0.0"),
		packed(t, "PAX tar, sparse 0.1", "--format=posix", "--sparse-version=0.1"),
		packed(t, "PAX tar, sparse 1.0", "--format=posix", "--sparse-version=1.0"),
	}
}

var impliedLayers = [][]item{
	{folder("./", 0o751, owned(1, 1)), folder("a", 0o1777, owned(2, 3), later(1)), folder("a/b", 0o2750, owned(4, 5), xattr("user.x", "1"), later(2)), folder("a/b/c", 0o500, later(3))},
	{file("a/b/c/d/e/f", "1")},
	{file("a/b/x", "2"), file("n/o/p", "3")},
	{folder("n", 0o700, owned(6, 7), later(4)), file("n/o/q", "4")},
	{folder("a/b", 0o711, later(5)), file("a/b/c/y", "5")},
	{file("a/z", "6")},
}

var remadeLayers = [][]item{
	{folder("d", 0o700, owned(1, 2), xattr("user.x", "1")), folder("d/s", 0o750), file("d/s/f", "1"), file("d/g", "2"), folder("e", 0o711), file("e/f", "3"), folder("p/q", 0o701), file("p/q/r", "")},
	{file(".wh.d", ""), folder("d", 0o755, later(1)), file("d/h", "4")}, // in one layer
	{file(".wh.e", ""), file("p/.wh.q", "")},
	{folder("e", 0o755, later(2)), file("e/i", "5"), file("p/q/s", "6")}, // in a layer above
	{file("e/.wh.i", ""), file("e/.wh.never", ""), file(".wh.nothing", "")},
	{file("e/i", "again"), file("d/s/t", "7"), file("d/s/.wh.f", "")},
}

var opaqueLayers = [][]item{
	{folder("d", 0o701, owned(1, 1), later(1)), file("d/a", "1"), folder("d/s", 0o702), file("d/s/b", "2"), folder("i", 0o703), file("i/a", ""), folder("o", 0o704), folder("o/o", 0o705), file("o/o/x", "")},
	{file("d/c", "3"), file("d/s/d", "4")},
	{folder("d", 0o750, later(2)), file("d/.wh..wh..opq", ""), file("d/e", "5"), file("i/.wh..wh..opq", ""), file("i/b", "6")},
	{file("d/s/f", "7"), file("o/.wh..wh..opq", ""), file("o/o/y", ""), file("o/o/.wh..wh..opq", "")},
	{file("d/.wh.e", ""), file("o/o/.wh.y", ""), file("o/z", "")},
}

var hardLayers = [][]item{
	{
		folder("d", 0o755), file("a", "1"), hard("b", "a"), hard("d/c", "./b"), hard("d/d", "/a"),
		file("kept", "2"), hard("gone", "kept"), file("d/kept", "3"), hard("d/over", "d/kept"),
		link("l", "a"), hard("ll", "l"), device(tar.TypeFifo, "p", 0, 0), hard("pp", "p"), device(tar.TypeChar, "n", 1, 3), hard("nn", "n"),
		file("first", "4"), hard("second", "first"), file("first", "5"), // the second stays what the first was
	},
	{file(".wh.gone", ""), file("d/over", "new"), file("a2", "x"), hard("b2", "a2"), hard("d/c2", "b2")},
	{file("same/a", "1"), hard("same/b", "same/a"), hard("same/a", "same/b")},
}

var kindLayers = [][]item{
	{
		folder("dir-link", 0o700), file("dir-link/f", "1"), file("file-dir", "2"), link("link-file", "file-dir"), folder("dir-file", 0o711), file("dir-file/f", ""),
		link("link-dir", "dir-link"), file("file-link", "3"), device(tar.TypeFifo, "fifo-dir", 0, 0), folder("dir-device", 0o700),
	},
	{
		link("dir-link", "link-dir"), folder("file-dir", 0o750), file("file-dir/g", "4"), file("link-file", "5"), file("dir-file", "6"),
		folder("link-dir", 0o701), file("link-dir/h", "7"), link("file-link", "nowhere"), folder("fifo-dir", 0o702), device(tar.TypeBlock, "dir-device", 7, 1),
	},
	{ // and back
		folder("dir-link", 0o703), file("dir-link/i", "8"), file("file-dir", "9"), link("link-file", "x"), folder("dir-file", 0o712), file("dir-file/j", ""),
		link("link-dir", "y"), file("file-link", "10"), device(tar.TypeFifo, "fifo-dir", 0, 0), folder("dir-device", 0o704),
	},
	{ // twice in one layer
		file("dir-link", ""), folder("dir-link", 0o705, later(3)), file("dir-link/k", ""), folder("file-dir", 0o706), file("file-dir/l/m", ""), file("file-dir", "12"),
	},
}

// acl is an access control list as the kernel keeps it: entries of tag, bits and id.
func acl(entries ...[3]uint32) string {
	b := []byte{2, 0, 0, 0}
	for _, e := range entries {
		b = append(b, byte(e[0]), 0, byte(e[1]), 0, byte(e[2]), byte(e[2]>>8), byte(e[2]>>16), byte(e[2]>>24))
	}
	return string(b)
}

var (
	nobody   = uint32(0xffffffff)
	someACL  = acl([3]uint32{1, 7, nobody}, [3]uint32{2, 5, 1000}, [3]uint32{4, 5, nobody}, [3]uint32{16, 5, nobody}, [3]uint32{32, 0, nobody})
	capNext  = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" // cap_net_bind_service+ep
	allBytes = func() string {
		b := make([]byte, 256)
		for i := range b {
			b[i] = byte(i)
		}
		return string(b)
	}()
)

var attributeLayers = [][]item{
	{
		folder("./", 0o1751, owned(7, 8), xattr("user.root", "1")),
		folder("inherits", 0o2775, owned(1, 50)), file("inherits/f", "", owned(3, 4)), folder("inherits/d", 0o755, owned(3, 4)), link("inherits/l", "f"), device(tar.TypeFifo, "inherits/p", 0, 0),
		folder("acl", 0o750, xattr("system.posix_acl_access", someACL), xattr("system.posix_acl_default", someACL)), file("acl/f", ""), folder("acl/d", 0o700), link("acl/l", "f"), device(tar.TypeFifo, "acl/p", 0, 0),
		file("suid", "", mode(0o4711)), file("sgid", "", mode(0o2711), owned(5, 6)), file("sticky", "", mode(0o1644)), file("none", "x", mode(0)), folder("closed", 0, owned(9, 9)), file("closed/f", ""),
		file("cap", "x", mode(0o755), owned(10, 11), xattr("security.capability", capability)), file("caps", "x", mode(0o6755), owned(10, 11), xattr("security.capability", capNext)),
		file("many", "", xattr("user.empty", ""), xattr("user.bytes", allBytes), xattr("user.with space", " "), xattr("trusted.t", "1"), xattr("security.x", "1"), xattr("user.large", strings.Repeat("v", 2000))),
		folder("dir", 0o755, xattr("user.a", "1"), xattr("trusted.b", "2")),
		{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: "link", Linkname: "many", Mode: 0o777, Uid: 12, Gid: 13, ModTime: stamp, Format: tar.FormatPAX, PAXRecords: map[string]string{"SCHILY.xattr.trusted.l": "1"}}},
		file("owner", "", owned(1<<31, 4294967294)), file("plain", "", owned(65534, 65535)),
	},
	{folder("dir", 0o700, later(1)), file("cap", "y"), file("many", "less", xattr("user.other", "1")), file("acl/g", ""), file("inherits/g", "")},
	{folder("twice", 0o755, xattr("user.gone", "1")), file("twice/f", ""), folder("twice", 0o701, xattr("user.new", "1"), later(2))},
}

var timeLayers = [][]item{
	{
		folder("d", 0o755, at(time.Unix(1, 1))), file("d/f", "", at(time.Unix(0, 999_999_999))), folder("d/e", 0o755, at(time.Unix(-1, 500))), file("before", "", at(time.Unix(-86_400, 1))),
		link("l", "f"), file("late", "", at(time.Date(2100, 1, 2, 3, 4, 5, 6, time.UTC))), file("later", "", at(time.Unix(1<<33, 7))), folder("z", 0o755, at(time.Unix(2, 0))), file("zero", "", at(time.Unix(0, 0))),
	},
	{
		file("read/after", "", accessed(time.Unix(1_700_000_000, 5))), file("read/before", "x", accessed(time.Unix(7, 8))), file("read/long-before", "", accessed(time.Unix(-7, 8))),
		folder("read/dir", 0o755, accessed(time.Unix(1_700_000_001, 6))), file("read/dir/f", ""), folder("read", 0o755, accessed(time.Unix(9, 10))), hard("read/too", "read/before"),
		make1(tar.TypeFifo, "read/fifo", 0o600, "", []func(*tar.Header){accessed(time.Unix(11, 12))}),
		make1(tar.TypeSymlink, "read/link", 0o777, "", []func(*tar.Header){func(h *tar.Header) { h.Linkname = "f" }, accessed(time.Unix(13, 14))}),
		file("read/twice", "1", accessed(time.Unix(15, 16))), hard("read/stays", "read/twice"), file("read/twice", "2"),
	},
	{file("d/g", "")},
	{folder("z", 0o755, at(time.Unix(3, 0))), file("z/.wh.x", ""), file("z/y", "")},
}

var deviceLayers = [][]item{
	{
		folder("dev", 0o755), device(tar.TypeChar, "dev/null", 1, 3), device(tar.TypeBlock, "dev/big", 4095, 1048575), device(tar.TypeBlock, "dev/zero", 0, 0), device(tar.TypeChar, "dev/minor", 0, 1), device(tar.TypeFifo, "dev/fifo", 0, 0),
		link("long", strings.Repeat("x/", 2000)), link("odd", "/../..//a/./b/"), link("bytes", "\xff\xfe\n"), file("empty", ""), file("big", strings.Repeat("0123456789abcdef", 100_000)),
	},
	{file("dev/.wh.null", ""), device(tar.TypeChar, "dev/big", 1, 9), file("dev/fifo", "a file")},
}

var linkLayers = [][]item{
	{folder("usr", 0o755), folder("usr/lib", 0o711), link("lib", "usr/lib"), file("lib/a", "1"), link("abs", "/usr"), file("abs/b", "2"), folder("abs/d", 0o700), link("abs/rel", "../usr/lib"), file("abs/rel/c", "3"), hard("h", "lib/a"), link("up", "../../../usr"), file("up/e", "4")},
	{file("usr/lib/f", "5")},
	{link("x", "usr/deep/er"), folder("usr/deep/er", 0o755), file("x/g", "6")},
}

var oddLayers = [][]item{
	{
		folder("inherits", 0o2775, owned(1, 50)), file("inherits/implied/f", ""), folder("acl", 0o750, xattr("system.posix_acl_default", someACL)), file("acl/implied/f", ""),
		file("file-deep", ""), link("link-deep", "file-deep"), device(tar.TypeChar, "device-deep", 1, 3), file("self", ""), hard("self", "self"), hard("./self", "/self"),
		make1(tar.TypeCont, "contiguous", 0o644, "c", nil),
	},
	{file("nowhere/.wh.nothing", ""), file("empty/.wh..wh..opq", ""), file("file-deep/a/b", ""), file("link-deep/a", ""), file("device-deep/.wh.a", ""), file("inherits/implied/too/f", ""), file("acl/implied/g", "")},
	{file("self", "1"), folder("self", 0o700), file("self/a", ""), file("..wh.x", ""), file("wh./x", "")},
}

// byteLayers have every byte that a name can have, alone and in company.
func byteLayers() [][]item {
	var below, above []item
	for b := 1; b < 256; b++ {
		name := string([]byte{byte(b)})
		if name == "/" || name == "." {
			continue
		}
		below = append(below, file("alone/"+name, name), folder("dirs/"+name+name, 0o755), file("dirs/"+name+name+"/x"+name+"y", ""))
		if b%2 == 0 {
			above = append(above, file("alone/.wh."+name, ""), file("dirs/"+name+name+"/z", ""))
		} else {
			above = append(above, link("alone/"+name, name+"/"+name))
		}
	}
	below = append(below, folder("alone", 0o750, later(1)), folder("dirs", 0o750), file("alone/...", ""), file("alone/ . ", ""), file("alone/.w.h.", ""), file("alone/wh.x", ""))
	return [][]item{below, above}
}

// longLayers have names and targets at the limits, in each way that archives have for them.
func longLayers() [][]item {
	long := strings.Repeat("n", 255)
	deep := strings.Repeat(strings.Repeat("d", 99)+"/", 30)
	gnu := func(it item) item {
		it.Format, it.PAXRecords, it.ModTime = tar.FormatGNU, nil, it.ModTime.Truncate(time.Second)
		return it
	}
	ustar := func(it item) item {
		it = gnu(it)
		it.Format = tar.FormatUSTAR
		return it
	}
	return [][]item{
		{file(long, "pax"), file(deep+long, "deep"), link("l", deep), folder(deep+"dir", 0o700), hard("h", deep+long)},
		{gnu(file("g"+long[1:], "gnu")), gnu(file("g/"+deep+long, "deep")), gnu(link("gl", deep)), gnu(hard("gh", "g/"+deep+long)), gnu(file("big-owner", "", owned(1<<30, 1<<31)))},
		{ustar(file(strings.Repeat("p", 140)+"/"+strings.Repeat("n", 90), "prefix")), ustar(file(strings.Repeat("n", 100), "full"))},
		{file(deep+".wh."+long[:251], ""), file(deep+"new", "")},
	}
}

// manyLayers change the same few files and directories again and again.
func manyLayers(n int) [][]item {
	layers := make([][]item, n)
	for i := range layers {
		layers[i] = []item{
			file(fmt.Sprintf("own/%03d", i), fmt.Sprint(i)),
			folder(fmt.Sprintf("d%d", i%7), int64(0o700+i%64), owned(i, i), later(i)),
			file(fmt.Sprintf("d%d/f", i%5), fmt.Sprint(i)),
		}
		if i%3 == 1 {
			layers[i] = append(layers[i], file(fmt.Sprintf("own/.wh.%03d", i-1), ""))
		}
		if i%11 == 10 {
			layers[i] = append(layers[i], file(fmt.Sprintf(".wh.d%d", (i+3)%7), ""))
		}
	}
	return layers
}

// fileLayers have n files in all, in directories of several hundred.
func fileLayers(n int) [][]item {
	r := rand.New(rand.NewPCG(uint64(n), 3))
	layers := make([][]item, 4)
	for i := range n {
		l := &layers[i%len(layers)]
		p := fmt.Sprintf("d%d/e%d/f%d", r.IntN(8), r.IntN(1+n/2000), i)
		switch r.IntN(20) {
		case 0:
			*l = append(*l, link(p, "../x"))
		case 1:
			*l = append(*l, folder(p, 0o750), file(p+"/in", ""))
		case 2:
			*l = append(*l, file(p, "1"), hard(p+"-h", p))
		default:
			*l = append(*l, file(p, strings.Repeat("x", r.IntN(200)), owned(i%100, i%7), later(i)))
		}
	}
	for i := range n / 100 {
		layers[3] = append(layers[3], file(fmt.Sprintf("d%d/e%d/.wh.f%d", i%8, i%(1+n/2000), r.IntN(n)), ""))
	}
	return layers
}

// packed is an image of one layer, which GNU tar made of a directory with sparse
// files, long names and odd owners.
func packed(t *testing.T, name string, options ...string) contractImage {
	t.Helper()
	dir := t.TempDir()
	must := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	sparse := func(name string, size int64, at ...int64) {
		f, err := os.Create(filepath.Join(dir, name))
		must(err)
		must(f.Truncate(size))
		for _, offset := range at {
			_, err := f.WriteAt([]byte("data"), offset)
			must(err)
		}
		must(f.Close())
	}
	sparse("holes", 3<<20, 0, 1<<20, 2<<20+17)
	sparse("only-a-hole", 1<<20)
	sparse("ends-in-a-hole", 1<<20+5, 4096)
	sparse("begins-with-a-hole", 1<<20+4, 1<<20)
	var many []int64
	for i := range int64(100) {
		many = append(many, i*16384)
	}
	sparse("many-holes", 2<<20, many...)
	long := filepath.Join(dir, strings.Repeat("d", 200))
	must(os.Mkdir(long, 0o711))
	must(os.WriteFile(filepath.Join(long, strings.Repeat("f", 200)), bytes.Repeat([]byte("f"), 100_000), 0o640))
	must(os.Symlink(strings.Repeat("t/", 200), filepath.Join(dir, "link")))
	must(os.Link(filepath.Join(dir, "holes"), filepath.Join(dir, "linked-holes")))
	must(unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	must(unix.Mknod(filepath.Join(dir, "device"), unix.S_IFBLK|0o600, int(unix.Mkdev(7, 3))))
	must(os.Chown(filepath.Join(dir, "only-a-hole"), 3_000_000, 4_000_000))
	// GNU's own formats have whole seconds.
	must(filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		ts := []unix.Timespec{{Sec: 1_600_000_000}, {Sec: 1_600_000_000}}
		return errors.Join(err, unix.UtimesNanoAt(unix.AT_FDCWD, p, ts, unix.AT_SYMLINK_NOFOLLOW))
	}))
	args := append(append([]string{"-cS", "--numeric-owner"}, options...), "-C", dir, ".")
	out, err := exec.CommandContext(t.Context(), "tar", args...).Output()
	must(err)
	img := contractImage{name: name, layers: [][]byte{out}, source: dir}
	if strings.Contains(name, "GNU") {
		img.umoci = "it does not know GNU's sparse files"
	}
	return img
}
