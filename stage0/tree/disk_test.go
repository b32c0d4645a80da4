package tree_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gantry-cri/gantry/stage0/disktest"
	"github.com/gantry-cri/gantry/stage0/tree"
)

// TestUsageIsThatOfDu holds the sizes that are recorded at the commit against du
// after the file system was mounted anew, on each kind that this machine can make.
func TestUsageIsThatOfDu(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs", "btrfs"} {
		t.Run(kind, func(t *testing.T) {
			fs := disktest.New(t, kind)
			s, err := tree.Open(filepath.Join(fs.Dir, "data"))
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
			fs.Remount(t)
			for flag, got := range map[string]int64{"--block-size=1": used.Bytes, "--inodes": used.Inodes} {
				want := disktest.DU(t, flag, s.Dir())
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
