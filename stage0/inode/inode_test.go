package inode

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gantry-cri/gantry/stage0/disktest"
)

func TestMake(t *testing.T) {
	for kind, want := range map[string]int{"ext4": 1, "xfs": 3} {
		t.Run(kind, func(t *testing.T) {
			m, err := NewMaker(disktest.New(t, kind+" -q").Dir)
			if err != nil {
				t.Fatal(err)
			}
			if got := atOnce(t, m, 3); got != want {
				t.Errorf("%d made files at once, want %d", got, want)
			}
		})
	}
}

// atOnce is how many of n callers are in Make at the same time.
func atOnce(t *testing.T, m *Maker, n int) int {
	t.Helper()
	var callers sync.WaitGroup
	var in, most atomic.Int32
	for range n {
		callers.Go(func() {
			err := m.Make(func() error {
				now := in.Add(1)
				time.Sleep(200 * time.Millisecond) // the others come meanwhile, if they can
				in.Add(-1)
				for seen := most.Load(); now > seen && !most.CompareAndSwap(seen, now); seen = most.Load() {
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	callers.Wait()
	return int(most.Load())
}

func TestErrors(t *testing.T) {
	if _, err := NewMaker(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("NewMaker of what is not there: %v", err)
	}
	m, err := NewMaker(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken")
	if err := m.Make(func() error { return broken }); !errors.Is(err, broken) {
		t.Errorf("Make: %v, want %v", err, broken)
	}
}
