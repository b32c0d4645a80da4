package main

import (
	"crypto/sha256"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/gantry-cri/gantry/stage0/disktest"
	"github.com/gantry-cri/gantry/stage0/fetch/registrytest"
)

// baked is gantry with a read-only store, on a disk that is mounted read-only.
type baked struct {
	t     *testing.T
	dir   string // of what gantry writes
	store string
	looks int // system calls that named the store
}

// traced are the calls that could change something, with those that open and lock.
const traced = "open,openat,openat2,creat,flock,fcntl,mkdir,mkdirat,rename,renameat,renameat2,unlink,unlinkat,rmdir,link,linkat,symlink,symlinkat,mknod,mknodat," +
	"chmod,fchmod,fchmodat,chown,fchown,lchown,fchownat,utimensat,truncate,ftruncate,fsync,fdatasync,syncfs,setxattr,lsetxattr,fsetxattr,removexattr,lremovexattr,fremovexattr"

// harmless are calls that only look: the mount refuses the others, but not a lock.
var harmless = regexp.MustCompile(`^\d+ +(openat2?\([^)]*O_RDONLY|open\([^)]*O_RDONLY|fcntl\([^)]*F_(GETFL|SETFL|GETFD|SETFD|DUPFD_CLOEXEC))`)

// try runs gantry under strace and holds that it did nothing to the store but look.
func (b *baked) try(args ...string) (string, error) {
	b.t.Helper()
	trace := filepath.Join(b.t.TempDir(), "trace")
	flags := []string{
		"--seccomp-bpf", "-f", "-y", "-qq", "-s", "1000", "-o", trace, "-e", "trace=" + traced, "-e", "signal=none",
		"gantry", "--dir", filepath.Join(b.dir, "data"), "--run-dir", filepath.Join(b.dir, "run"), "--read-only-store", b.store,
	}
	out, err := exec.Command("strace", append(flags, args...)...).CombinedOutput()
	text, readErr := os.ReadFile(trace)
	if readErr != nil {
		b.t.Fatal(readErr)
	}
	for line := range strings.Lines(string(text)) {
		if !strings.Contains(line, b.store) || strings.Contains(line, "resumed>") {
			continue
		}
		b.looks++
		if !harmless.MatchString(line) || strings.Contains(line, "O_CREAT") || strings.Contains(line, "O_TRUNC") {
			b.t.Errorf("gantry %q: %s", args, line)
		}
	}
	return string(out), err
}

func (b *baked) run(args ...string) string {
	b.t.Helper()
	out, err := b.try(args...)
	if err != nil {
		b.t.Fatalf("gantry %q: %v: %s", args, err, out)
	}
	return out
}

// TestReadOnlyStore makes a store with gantry fetch --dir, mounts it read-only, and has
// every command work with it; not a byte of the disk changes, and nothing is locked.
func TestReadOnlyStore(t *testing.T) {
	if _, err := exec.LookPath("strace"); err != nil {
		t.Skipf("needs strace (hack/deps): %v", err)
	}
	disk := disktest.New(t, "ext4")
	reg := registrytest.Start(t)
	base := registrytest.Layer(t, false, registrytest.Tar(t, "d/", "", "d/base", "base", "etc/passwd", "root:x:0:0::/:/bin/sh\n"))
	top := registrytest.Layer(t, false, registrytest.Tar(t, "d/top", "top"))
	other := registrytest.Layer(t, false, registrytest.Tar(t, "d/other", "other"))
	reg.Push(t, "i:1", registrytest.Image(t, registrytest.Spec{Layers: []v1.Layer{base, top}}))
	reg.Push(t, "j:1", registrytest.Image(t, registrytest.Spec{Layers: []v1.Layer{base, other}}))
	maker := cli{t, t.TempDir()}
	store := filepath.Join(disk.Dir, "store")
	image := "docker://" + reg.Host + "/i:1"
	id := strings.TrimSpace(maker.run("--dir", store, "fetch", "--quiet", image))
	disk.ReadOnly(t)
	before := sum(t, disk.Image())
	b := &baked{t: t, dir: t.TempDir(), store: store}

	for _, tc := range []struct{ want, args string }{
		{`"readOnlyStore": "` + store + `"`, "image list --format=json"},
		{"trees are proven", "image verify " + id},
		{"trees are proven", "fsck"},
		{"trees are proven", "fsck --repair"},
		{id, "image pin " + id},
		{id, "image unpin " + id},
		{id, "fetch --quiet " + image},
		{"freed", "gc --grace-period=0s"},
		{"freed 0 bytes", "image gc --grace-period=0s"},
	} {
		if out := b.run(strings.Fields(tc.args)...); !strings.Contains(out, tc.want) {
			t.Errorf("gantry %s: %s", tc.args, out)
		}
	}
	if trees := entries(t, filepath.Join(b.dir, "data/trees")); len(trees) > 0 {
		t.Errorf("layers of the store were fetched again: %v", trees)
	}

	// An image with one layer of the store, of which a stack over both is made.
	x := reg.Wire(t, digestOf(t, base), 0, nil)
	second := strings.TrimSpace(b.run("fetch", "--quiet", "docker://"+x.Host+"/j:1"))
	if _, sent := x.Traffic(); sent != 0 {
		t.Errorf("%d bytes of a layer came that the store has", sent)
	}
	for _, args := range [][]string{{"prepare", "--quiet", second}, {"prepare", "--quiet", id}, {"prepare", "--quiet", "--no-overlay", second}} {
		uuid := strings.TrimSpace(b.run(append(args, "--exec=/x")...))
		if out := b.run("status", uuid); !strings.Contains(out, "prepared") {
			t.Errorf("status: %s", out)
		}
		if args[2] == "--no-overlay" {
			copies, err := filepath.Glob(filepath.Join(b.dir, "data/pods/by-id", uuid, "upper/*/d/base"))
			if err != nil || len(copies) != 1 {
				t.Errorf("the copy: %q, %v", copies, err)
			}
		}
	}
	b.run("gc", "--grace-period=0s")
	var df struct{ Images, Trees struct{ Count int } }
	if err := json.Unmarshal([]byte(b.run("system", "df", "--format=json")), &df); err != nil || df.Images.Count != 1 || df.Trees.Count != 2 {
		t.Errorf("system df: %+v, %v; want the second image, its own layer and its fix-up tree", df, err)
	}
	out, err := b.try("image", "rm", id)
	if err == nil || !strings.Contains(out, "it lies in the read-only store "+store) || strings.Contains(out, "unpin") {
		t.Errorf("image rm: %v: %s", err, out)
	}
	b.run("image", "rm", second)

	if b.looks < 100 {
		t.Errorf("%d system calls named the store: the trace is not what it was", b.looks)
	}
	if sum(t, disk.Image()) != before {
		t.Error("the disk has changed")
	}
}

// TestReadOnlyStoreRefused names what is no store.
func TestReadOnlyStoreRefused(t *testing.T) {
	data := t.TempDir()
	maker := cli{t, data}
	maker.run("image", "list")
	for dir, want := range map[string]string{
		filepath.Join(data, "nothing"): "there is no images/: not found",
		filepath.Join(data, "data"):    "it is the data directory: invalid",
	} {
		out, err := maker.command("--read-only-store", dir, "image", "list").CombinedOutput()
		if err == nil || !strings.Contains(string(out), "open read-only store "+dir+": "+want) {
			t.Errorf("%s: %v: %s", dir, err, out)
		}
	}
}

func digestOf(t *testing.T, l v1.Layer) string {
	t.Helper()
	d, err := l.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d.String()
}

func entries(t *testing.T, dir string) []os.DirEntry {
	t.Helper()
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// sum is the SHA-256 of a file.
func sum(t *testing.T, path string) [sha256.Size]byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() // only read
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return [sha256.Size]byte(h.Sum(nil))
}
