package durable

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/disktest"
	"github.com/gantry-cri/gantry/stage0/errdefs"
)

func TestWriteFile(t *testing.T) {
	for name, s := range map[string]Survival{"kill": Kill, "flush": Flush, "power cut": PowerCut} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "f")
			if err := os.WriteFile(path, []byte("something longer, of before"), 0o400); err != nil {
				t.Fatal(err)
			}
			old := syscall.Umask(0o077)
			err := WriteFile(path, []byte("new"), 0o644, s)
			syscall.Umask(old)
			if err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(path)
			if err != nil || string(got) != "new" {
				t.Errorf("read %q, %v", got, err)
			}
			if st, err := os.Stat(path); err != nil || st.Mode() != 0o644 {
				t.Errorf("mode %v, %v", st.Mode(), err)
			}
			wantNames(t, dir, "f")
		})
	}
}

func TestWriteFileThatFailsLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "f", "full"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(filepath.Join(dir, "f"), nil, 0o600, PowerCut); err == nil {
		t.Error("a file replaced a directory")
	}
	wantNames(t, dir, "f")
	if err := WriteFile(filepath.Join(dir, "missing", "f"), nil, 0o600, Kill); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
}

// TestFull needs a file system of its own.
func TestFull(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	path := filepath.Join(dir, "f")
	if err := WriteFile(path, []byte("small"), 0o600, Kill); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(path, make([]byte, 1<<20), 0o600, Kill); !errors.Is(err, errdefs.ErrNoSpace) {
		t.Errorf("a full disk: %v, want ErrNoSpace", err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "small" {
		t.Errorf("what was there before is %q, %v", got, err)
	}
	wantNames(t, dir, "f")
}

func wantNames(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if !slices.Equal(names, want) {
		t.Errorf("the directory holds %v, want %v", names, want)
	}
}

func TestNoSpace(t *testing.T) {
	for _, tt := range []struct {
		name string
		err  error
		want bool
	}{
		{"disk", &fs.PathError{Op: "write", Path: "f", Err: syscall.ENOSPC}, true},
		{"quota", syscall.EDQUOT, true},
		{"classed already", NoSpace(syscall.ENOSPC), true},
		{"another", syscall.EIO, false},
		{"none", nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := NoSpace(tt.err)
			if errors.Is(got, errdefs.ErrNoSpace) != tt.want || !errors.Is(got, tt.err) {
				t.Errorf("%v becomes %v, want the class: %v", tt.err, got, tt.want)
			}
		})
	}
}

func TestLockModes(t *testing.T) {
	for _, tt := range []struct {
		name        string
		held, asked Mode
		busy        bool
	}{
		{"readers", Shared, Shared, false},
		{"writer beside a reader", Shared, Exclusive, true},
		{"reader beside a writer", Exclusive, Shared, true},
		{"writers", Exclusive, Exclusive, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			held, err := TryLock(dir, tt.held)
			if err != nil {
				t.Fatal(err)
			}
			f, err := TryLock(dir, tt.asked)
			if errors.Is(err, errdefs.ErrBusy) != tt.busy || err != nil && !tt.busy {
				t.Fatalf("beside it: %v, want busy: %v", err, tt.busy)
			}
			if err == nil {
				Unlock(f)
			}
			Unlock(held)
			if f, err = TryLock(dir, tt.asked); err != nil {
				t.Fatalf("after it: %v", err)
			}
			Unlock(f)
		})
	}
}

// A lock that was given up while it was waited for is not kept.
func TestLockAbandoned(t *testing.T) {
	dir := t.TempDir()
	held, err := TryLock(dir, Exclusive)
	if err != nil {
		t.Fatal(err)
	}
	cause := errors.New("told to stop")
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(20*time.Millisecond, func() { cancel(cause) })
	if _, err := Lock(ctx, dir, Exclusive); !errors.Is(err, cause) {
		t.Fatalf("ended while waiting: %v, want %v", err, cause)
	}
	Unlock(held)
	long, stop := context.WithTimeout(t.Context(), 10*time.Second)
	defer stop()
	again, err := Lock(long, dir, Exclusive)
	if err != nil {
		t.Fatal(err)
	}
	Unlock(again)
}

// A lock of what was deleted or moved away while it was waited for is none.
func TestLockOfWhatIsGone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	if _, err := TryLock(dir, Shared); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing there: %v", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	held, err := TryLock(dir, Exclusive)
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan error, 1)
	go func() {
		_, err := Lock(t.Context(), dir, Exclusive)
		got <- err
	}()
	select {
	case err := <-got:
		t.Fatalf("somebody holds it: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	if err := os.Rename(dir, dir+".gone"); err != nil {
		t.Fatal(err)
	}
	Unlock(held)
	if err := <-got; !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("moved away meanwhile: %v, want ErrNotExist", err)
	}
}

// TestLockFile has many take turns at a file that each removes.
func TestLockFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	var inside atomic.Int32
	errs := make(chan error)
	for range 20 {
		go func() {
			f, err := LockFile(t.Context(), path)
			if err == nil && inside.Add(1) != 1 {
				err = errors.New("two hold the lock")
			}
			if err == nil {
				if _, busy := TryLockFile(path); !errors.Is(busy, errdefs.ErrBusy) {
					err = errors.Join(errors.New("a third got it"), busy)
				}
				inside.Add(-1)
				err = errors.Join(err, os.Remove(path))
				Unlock(f)
			}
			errs <- err
		}()
	}
	for range 20 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

// TestFileSystemMissesNoFailure holds that who opened a file system before a write is told
// that it failed, although another was told before; who opens it later is not.
func TestFileSystemMissesNoFailure(t *testing.T) {
	dir := disktest.Failing(t)
	disk, err := OpenFileSystem(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := disk.Close(); err != nil {
			t.Error(err)
		}
	}()
	if err := os.WriteFile(filepath.Join(dir, "a"), bytes.Repeat([]byte("x"), 32<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := SyncFS(dir); err == nil {
		t.Fatal("the disk does not fail")
	}
	if err := SyncFS(dir); err != nil {
		t.Errorf("who asks again is told once more: %v", err)
	}
	if err := disk.Sync(); err == nil {
		t.Error("Sync says that all is on disk")
	}
}
