package tree_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/gantry-cri/gantry/stage0/tree"
)

// TestUsageIsThatOfDu holds the sizes that are recorded at the commit against du
// after the file system was mounted anew, on each kind that this machine can make.
func TestUsageIsThatOfDu(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs", "btrfs"} {
		t.Run(kind, func(t *testing.T) {
			fs := freshDisk(t, kind)
			s, err := tree.Open(filepath.Join(fs.dir, "data"))
			if err != nil {
				t.Fatal(err)
			}
			small := pend(t, s, file("one", "small layer"))
			if err := s.Commit(t.Context(), pend(t, s, assorted()...), small); err != nil {
				t.Fatal(err)
			}
			used, err := s.Usage(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			fs.remount(t)
			for flag, got := range map[string]int64{"--block-size=1": used.Bytes, "--inodes": used.Inodes} {
				want := du(t, flag, s.Dir())
				if off := got - want; off > want/100 || off < -want/100 {
					t.Errorf("du %s says %d, the records %d: %+.2f %%", flag, want, got, 100*float64(off)/float64(want))
				}
			}
		})
	}
}

// assorted are files of all sizes in directories of all sizes, links and a device.
func assorted() []item {
	var items []item
	for i := range 600 {
		dir := fmt.Sprintf("usr/share/d%d/sub%d", i%37, i%7)
		items = append(items, file(fmt.Sprintf("%s/file-%d", dir, i), strings.Repeat(fmt.Sprintln(i), 1<<(i%13))))
	}
	for i := range 4 {
		items = append(items, file(fmt.Sprintf("usr/lib/big%d", i), strings.Repeat(fmt.Sprintln("big", i), 70_001*(i+1))))
	}
	for i := range 1000 {
		items = append(items, file(fmt.Sprintf("many/%d", i), ""))
	}
	return append(items, hard("usr/lib/again", "usr/lib/big0"), link("long", strings.Repeat("a/", 400)), device('3', "null", 1, 3))
}

// disk is a file system of its own, in a file.
type disk struct{ dir, image string }

func freshDisk(t *testing.T, kind string) *disk {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	mkfs, err := exec.LookPath("mkfs." + kind)
	if err != nil {
		t.Skipf("no mkfs.%s", kind)
	}
	d := &disk{dir: t.TempDir(), image: filepath.Join(t.TempDir(), "disk")}
	f, err := os.Create(d.image)
	if err == nil {
		err = f.Truncate(400 << 20)
	}
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if out, err := exec.Command(mkfs, "-q", d.image).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.%s: %v: %s", kind, err, out)
	}
	if out, err := exec.Command("mount", "-o", "loop", d.image, d.dir).CombinedOutput(); err != nil {
		t.Skipf("mount %s: %v: %s", kind, err, out)
	}
	t.Cleanup(func() { d.unmount(t) })
	return d
}

func (d *disk) unmount(t *testing.T) {
	t.Helper()
	if out, err := exec.Command("umount", d.dir).CombinedOutput(); err != nil {
		t.Errorf("umount: %v: %s", err, out)
	}
}

// remount forgets what is in memory only.
func (d *disk) remount(t *testing.T) {
	t.Helper()
	d.unmount(t)
	if out, err := exec.Command("mount", "-o", "loop", d.image, d.dir).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
}

// du runs the program of that name.
func du(t *testing.T, flag, path string) int64 {
	t.Helper()
	out, err := exec.Command("du", "-s", flag, path).Output()
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseInt(strings.Fields(string(out))[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
