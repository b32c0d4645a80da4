package overlay

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestFirstThreadStays holds that no namespace is entered on the process's first thread,
// which would keep it, and what is mounted there, until the process ends.
func TestFirstThreadStays(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("a mount namespace needs root")
	}
	first := func() string {
		ns, err := os.Readlink("/proc/self/ns/mnt")
		if err != nil {
			t.Fatal(err)
		}
		return ns
	}
	before := first()
	for range 1000 {
		if err := onThread(func() error { return unix.Unshare(unix.CLONE_NEWNS) }); err != nil {
			t.Fatal(err)
		}
	}
	if now := first(); now != before {
		t.Errorf("the process is in %s and was in %s", now, before)
	}
}
