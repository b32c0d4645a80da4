package idmap

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/gantry-cri/gantry/stage0/durable"
	"github.com/gantry-cri/gantry/stage0/errdefs"
)

func TestPool(t *testing.T) {
	p := Pool{Dir: filepath.Join(t.TempDir(), "ids")}
	var mu sync.Mutex
	gone, taken := map[string]bool{}, map[uint32]string{}
	lives := func(owner string) (bool, error) {
		mu.Lock()
		defer mu.Unlock()
		return !gone[owner], nil
	}
	take := func(owner string) error {
		m, err := p.Take(t.Context(), owner, durable.Kill, lives)
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		first := m.UIDs[0].HostID
		if err := m.Check(); err != nil || m.GIDs[0] != m.UIDs[0] || first < firstID || first+rangeSize > endID {
			t.Errorf("%s has %+v, %v", owner, m, err)
		}
		if was := taken[first]; was != "" && !gone[was] {
			t.Errorf("%s and %s have %d", was, owner, first)
		}
		taken[first] = owner
		return nil
	}
	const free = 5
	if err := os.Mkdir(p.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for i := range rangeNum - free {
		first := fmt.Sprint(firstID + (i+i/1000)*rangeSize)
		if err := os.WriteFile(filepath.Join(p.Dir, first), []byte("old"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var all sync.WaitGroup
	for i := range free {
		all.Go(func() {
			if err := take(fmt.Sprint("pod", i)); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if err := take("another"); !errors.Is(err, errdefs.ErrBusy) {
		t.Errorf("when all are taken: %v", err)
	}
	gone["pod2"] = true
	if err := take("heir"); err != nil {
		t.Errorf("when one is free again: %v", err)
	}
	if err := take("late"); !errors.Is(err, errdefs.ErrBusy) {
		t.Errorf("when that is taken too: %v", err)
	}
	lives = func(string) (bool, error) { return false, os.ErrPermission }
	if err := take("unlucky"); !errors.Is(err, os.ErrPermission) {
		t.Errorf("when nobody knows: %v", err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	lock, err := durable.Lock(t.Context(), p.Dir, durable.Exclusive)
	if err != nil {
		t.Fatal(err)
	}
	defer durable.Unlock(lock)
	if _, err := p.Take(cancelled, "impatient", durable.Kill, lives); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
