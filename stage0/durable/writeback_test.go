package durable_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/gantry-cri/gantry/stage0/disktest"
	"github.com/gantry-cri/gantry/stage0/durable"
)

// TestWriteBack holds that what was written goes to disk when there is enough of it, and
// not before.
func TestWriteBack(t *testing.T) {
	disk := disktest.New(t, "ext4 -q")
	const size = 8 << 20
	before := disktest.DU(t, "--block-size=1", disk.Image())
	back := durable.NewWriteBack(disk.Dir, 2*size)
	for _, name := range []string{"a", "b"} {
		content := bytes.Repeat([]byte(name), size)
		if err := os.WriteFile(filepath.Join(disk.Dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
		back.Add(size)
		back.Wait()
		want := map[string]int64{"a": 0, "b": 2 * size}[name]
		got := disktest.DU(t, "--block-size=1", disk.Image()) - before
		if got < want || got > want+size/2 {
			t.Errorf("after %s %d bytes are on disk, want some %d", name, got, want)
		}
	}
}
