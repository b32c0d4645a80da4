package tree_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/disktest"
	"github.com/gantry-cri/gantry/stage0/tree"
)

// TestCommitSeesFailedWrites holds that a file that could not be written to disk fails
// the commit, also when another process has synced the file system meanwhile: it was
// told, and who opens the file system later is not.
func TestCommitSeesFailedWrites(t *testing.T) {
	s, err := tree.Open(disktest.Failing(t))
	if err != nil {
		t.Fatal(err)
	}
	p := pend(t, s, file("a", string(bytes.Repeat([]byte("x"), 32<<20))))
	defer func() {
		if err := p.Discard(); err != nil {
			t.Logf("on a disk that fails: %v", err)
		}
	}()
	out, err := exec.Command("sync", "-f", s.Dir()).CombinedOutput()
	if err == nil {
		t.Fatal("the disk does not fail")
	}
	t.Logf("another is told: %s", out)
	if err := exec.Command("sync", "-f", s.Dir()).Run(); err != nil {
		t.Fatalf("who asks again is told once more, and would be by itself: %v", err)
	}
	if err := s.Commit(t.Context(), p); !errors.Is(err, unix.EIO) && !errors.Is(err, unix.ENOSPC) {
		t.Errorf("Commit = %v", err)
	}
	if names, err := s.List(); err != nil || len(names) != 0 {
		t.Errorf("List = %q, %v", names, err)
	}
}

// TestWriteback holds that much of a big layer is on disk before it is committed.
func TestWriteback(t *testing.T) {
	disk := disktest.New(t, "ext4 -q")
	s, err := tree.Open(disk.Dir)
	if err != nil {
		t.Fatal(err)
	}
	content := make([]byte, 80<<20)
	rand.NewChaCha8([32]byte{}).Read(content)
	before := disktest.DU(t, "--block-size=1", disk.Image())
	p := pend(t, s, file("a", string(content)))
	var written int64
	for range 200 { // the kernel by itself waits for half a minute
		if written = disktest.DU(t, "--block-size=1", disk.Image()) - before; written >= 32<<20 {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if written < 32<<20 {
		t.Errorf("%d bytes of %d are on disk", written, len(content))
	}
	if err := s.Commit(t.Context(), p); err != nil {
		t.Error(err)
	}
}
