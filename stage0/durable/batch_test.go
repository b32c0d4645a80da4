package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/gantry-cri/gantry/stage0/disktest"
)

// TestBatch cuts the power after Sync: no file is missing, or empty.
func TestBatch(t *testing.T) {
	for _, kind := range []string{"ext4 -q", "xfs -q", "btrfs -q"} {
		t.Run(kind, func(t *testing.T) {
			disk := disktest.New(t, kind)
			dir := filepath.Join(disk.Dir, "dir")
			if err := os.Mkdir(dir, 0o750); err != nil {
				t.Fatal(err)
			}
			names := []string{"a", "b", "c"}
			writeBatch(t, dir, names, func(b *Batch) error { return b.Sync(dir, disk.Dir) })
			unsynced := filepath.Join(disk.Dir, "unsynced")
			if err := os.Mkdir(unsynced, 0o750); err != nil {
				t.Fatal(err)
			}
			writeBatch(t, unsynced, names, func(*Batch) error { return nil })
			disk.PowerCut(t)
			wantNames(t, dir, names...)
			for _, name := range names {
				path := filepath.Join(dir, name)
				if got, err := os.ReadFile(path); err != nil || string(got) != "content of "+name {
					t.Errorf("%s is %q, %v", name, got, err)
				}
				if st, err := os.Stat(path); err != nil || st.Mode() != 0o640 {
					t.Errorf("%s: mode %v, %v", name, st.Mode(), err)
				}
			}
			if got, err := os.ReadFile(filepath.Join(unsynced, "c")); err == nil && string(got) == "content of c" {
				t.Error("what was not synced is there too: this test shows nothing")
			}
		})
	}
}

func writeBatch(t *testing.T, dir string, names []string, sync func(*Batch) error) {
	t.Helper()
	var b Batch
	for _, name := range names {
		if err := b.Write(filepath.Join(dir, name), []byte("content of "+name), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	wantNames(t, dir, names...)
	if err := errors.Join(sync(&b), b.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestBatchThatFails(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "f", "full"), 0o700); err != nil {
		t.Fatal(err)
	}
	var b Batch
	if err := b.Write(filepath.Join(dir, "f"), nil, 0o600); err == nil {
		t.Error("a file replaced a directory")
	}
	if err := b.Write(filepath.Join(dir, "missing", "f"), nil, 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
	wantNames(t, dir, "f")
	if err := b.Sync(dir, filepath.Join(dir, "missing")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("sync of no directory: %v", err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

// TestBatchOnFailingDisk has the second of two files that the disk does not take.
func TestBatchOnFailingDisk(t *testing.T) {
	dir := disktest.Failing(t)
	var b Batch
	defer b.Close() // the disk is broken
	for name, size := range map[string]int{"small": 1, "large": 40 << 20} {
		if err := b.Write(filepath.Join(dir, name), make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Sync(); err == nil {
		t.Error("a disk took more than it has")
	}
}
