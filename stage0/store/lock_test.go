package store

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

func TestLockSharedAndExclusive(t *testing.T) {
	s, dir := open(t)
	other, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	one, err := s.LockShared(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	two, err := other.LockShared(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, unlock := range []func(){one, two} {
		if _, err := s.TryLockExclusive(); !errors.Is(err, errdefs.ErrBusy) {
			t.Fatalf("TryLockExclusive beside readers: %v", err)
		}
		unlock()
	}
	unlock, err := other.TryLockExclusive()
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := s.LockShared(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("LockShared beside a collection: %v", err)
	}
	unlock()
	if unlock, err = s.LockShared(t.Context()); err != nil {
		t.Fatal(err)
	}
	unlock()
}

func TestLockLayerExcludes(t *testing.T) {
	s, dir := open(t)
	other, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	var inside, entered atomic.Int32
	var wg sync.WaitGroup
	for i := range 20 {
		s := []*Store{s, other}[i%2]
		wg.Go(func() {
			unlock, err := s.LockLayer(context.Background(), "x")
			if err != nil {
				t.Error(err)
				return
			}
			if inside.Add(1) != 1 {
				t.Error("two hold the lock")
			}
			entered.Add(1)
			time.Sleep(time.Millisecond)
			inside.Add(-1)
			unlock()
		})
	}
	wg.Wait()
	if entered.Load() != 20 {
		t.Errorf("%d of 20 had the lock", entered.Load())
	}
	if _, err := os.Stat(filepath.Join(dir, tmpDir, lockPrefix+"x")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the lock file is left: %v", err)
	}
}

func TestTryLockLayer(t *testing.T) {
	s, _ := open(t)
	unlock, err := s.TryLockLayer("x")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.TryLockLayer("x"); !errors.Is(err, errdefs.ErrBusy) {
		t.Errorf("TryLockLayer: %v, want ErrBusy", err)
	}
	if free, err := s.TryLockLayer("y"); err != nil {
		t.Errorf("another layer: %v", err)
	} else {
		free()
	}
	unlock()
	if again, err := s.TryLockLayer("x"); err != nil {
		t.Errorf("after unlock: %v", err)
	} else {
		again()
	}
}
