package harness

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
)

// SmallDisk mounts a fresh ext4 file system of some megabytes from a file and
// returns its mount point: a data directory ([GantryOptions.Dir]) that fills up.
func SmallDisk(tb testing.TB, megabytes int) string {
	tb.Helper()
	dir := Dir(tb)
	file, mount := filepath.Join(dir, "disk"), filepath.Join(dir, "mnt")
	if err := os.Mkdir(mount, 0o755); err != nil {
		tb.Fatalf("make mount point: %v", err)
	}
	for _, argv := range [][]string{
		{"truncate", "-s", strconv.Itoa(megabytes) + "M", file},
		// All of it now: later the kernel would do it while something is measured.
		{"mkfs.ext4", "-q", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0", file},
		{"mount", "-o", "loop", file, mount},
	} {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			tb.Fatalf("%q: %v: %s", argv, err, out)
		}
	}
	tb.Cleanup(func() {
		if out, err := exec.Command("umount", mount).CombinedOutput(); err != nil {
			tb.Errorf("unmount small disk: %v: %s", err, out)
		}
	})
	return mount
}
