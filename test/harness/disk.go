package harness

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// SmallDisk mounts a fresh ext4 file system of some megabytes from a file and
// returns its mount point: a data directory ([GantryOptions.Dir]) that fills up.
func SmallDisk(tb testing.TB, megabytes int) string {
	tb.Helper()
	return mountDisk(tb, megabytes, "off")
}

// DirectDisk is SmallDisk without a second copy of all content in the page cache:
// the kernel writes to the file as to a disk, in no more processor time.
func DirectDisk(tb testing.TB, megabytes int) string {
	tb.Helper()
	return mountDisk(tb, megabytes, "on")
}

func mountDisk(tb testing.TB, megabytes int, direct string) string {
	tb.Helper()
	dir := Dir(tb)
	file, mount := filepath.Join(dir, "disk"), filepath.Join(dir, "mnt")
	if err := os.Mkdir(mount, 0o755); err != nil {
		tb.Fatalf("make mount point: %v", err)
	}
	output(tb, "truncate", "-s", strconv.Itoa(megabytes)+"M", file)
	// All of it now: later the kernel would do it while something is measured.
	output(tb, "mkfs.ext4", "-q", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0", file)
	device := output(tb, "losetup", "--find", "--show", "--direct-io="+direct, file)
	// The kernel keeps it while it is mounted and no longer, however the test ends.
	defer output(tb, "losetup", "--detach", device)
	if got := output(tb, "losetup", "--noheadings", "--output", "DIO", device); (got == "1") != (direct == "on") {
		tb.Fatalf("direct I/O of %s is %s, want it %s", device, got, direct)
	}
	output(tb, "mount", device, mount)
	tb.Cleanup(func() { output(tb, "umount", mount) })
	return mount
}

// output is what a program prints, without space around it.
func output(tb testing.TB, name string, args ...string) string {
	tb.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		tb.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
	return strings.TrimSpace(string(out))
}
