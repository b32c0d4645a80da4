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
	ctx := context.Background()
	one, err := s.LockShared(ctx)
	if err != nil {
		t.Fatal(err)
	}
	two, err := other.LockShared(ctx)
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := s.LockExclusive(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("LockExclusive beside readers: %v", err)
	}
	got := make(chan error, 1)
	go func() {
		unlock, err := other.LockExclusive(ctx)
		if err == nil {
			unlock()
		}
		got <- err
	}()
	one()
	two()
	if err := <-got; err != nil {
		t.Fatal(err)
	}
}

// A lock that was given up while it was waited for is not kept.
func TestLockAbandoned(t *testing.T) {
	s, _ := open(t)
	ctx := context.Background()
	unlock, err := s.LockExclusive(ctx)
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := s.LockExclusive(short); !errors.Is(err, context.Canceled) {
		t.Fatalf("LockExclusive: %v", err)
	}
	unlock()
	long, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	again, err := s.LockExclusive(long)
	if err != nil {
		t.Fatal(err)
	}
	again()
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
