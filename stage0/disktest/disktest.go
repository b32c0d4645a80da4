// Package disktest gives a test a file system of its own, and says what du says of one.
package disktest

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// size is that of the file; it is sparse.
const size = "400M"

// Disk is a file system in a file. It is mounted until the test ends.
type Disk struct {
	Dir     string
	image   string
	options string
}

// New makes a file system with mkfs.NAME, where mkfs is the name and the options behind
// it, and mounts it. Without root, or where the kernel does not have it, the test skips.
func New(t testing.TB, mkfs string) *Disk {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	words := strings.Fields(mkfs)
	list, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(list, []byte("\t"+words[0]+"\n")) {
		t.Skip("the kernel has no " + words[0])
	}
	d := &Disk{image: filepath.Join(t.TempDir(), "image"), Dir: t.TempDir(), options: "loop"}
	run(t, "truncate", "-s", size, d.image)
	run(t, "mkfs."+words[0], append(words[1:], d.image)...)
	d.mount(t)
	t.Cleanup(func() { d.unmount(t) })
	return d
}

// Failing is a file system on a disk that takes 16 MiB of the 200 that it has said, until
// the test ends. It has no journal, which would make it read-only at the first error.
func Failing(t testing.TB) string {
	t.Helper()
	memory := Memory(t, "16m")
	d := &Disk{image: filepath.Join(memory, "image"), Dir: t.TempDir(), options: "loop"}
	run(t, "truncate", "-s", "200M", d.image)
	run(t, "mkfs.ext4", "-q", "-O", "^has_journal", d.image)
	d.mount(t)
	t.Cleanup(func() { d.unmount(t) })
	return d.Dir
}

// Memory is a file system in memory, of at most so many bytes and any number of files.
func Memory(t testing.TB, size string) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	run(t, "mount", "-t", "tmpfs", "-o", "nr_inodes=0,size="+size, "disk", dir)
	t.Cleanup(func() { (&Disk{Dir: dir}).unmount(t) })
	return dir
}

// Remount has the file system forget what is in memory only.
func (d *Disk) Remount(t testing.TB) {
	t.Helper()
	d.unmount(t)
	d.mount(t)
}

// PowerCut leaves of the file system what the disk has got by now.
func (d *Disk) PowerCut(t testing.TB) {
	t.Helper()
	run(t, "cp", "--sparse=always", d.image, d.image+".cut")
	d.unmount(t)
	run(t, "mv", d.image+".cut", d.image)
	d.mount(t)
}

// ReadOnly mounts the file system anew, such that nothing can write to it.
func (d *Disk) ReadOnly(t testing.TB) {
	t.Helper()
	d.options = "loop,ro"
	d.Remount(t)
}

// Image is the file that holds the file system.
func (d *Disk) Image() string { return d.image }

func (d *Disk) mount(t testing.TB) {
	t.Helper()
	run(t, "mount", "-o", d.options, d.image, d.Dir)
}

// unmount leaves no mount behind, also where the test has left it in use, which is an
// error.
func (d *Disk) unmount(t testing.TB) {
	t.Helper()
	if err := unix.Unmount(d.Dir, 0); err != nil {
		t.Errorf("unmount %s: %v, then %v", d.Dir, err, unix.Unmount(d.Dir, unix.MNT_DETACH))
	}
}

// DU is what du says that lies at path, in the unit of the flag: --block-size=1 or
// --inodes.
func DU(t testing.TB, flag, path string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(strings.Fields(run(t, "du", "-s", flag, path))[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}
