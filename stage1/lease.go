package stage1

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/failpoint"
	"github.com/gantry-cri/gantry/stage0/manifest"
)

// releases is how many orphaned attachments are given back at once.
const releases = 16

// releaseOrphans gives back what CNI plugins keep for pods whose directory is gone, and
// their intents with it: it was deleted by hand, or a backup was put in its place. What
// is not of our directories is left alone. An address that a process uses still, or that
// the plugins do not take back in time, is left for the next time, with an error.
func (r *Runner) releaseOrphans(ctx context.Context) error {
	ids, err := r.network.Cached()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, networkTimeout)
	defer cancel()
	var g errgroup.Group
	g.SetLimit(releases)
	var mu sync.Mutex // guards errs
	var errs []error
	for _, id := range ids {
		g.Go(func() error {
			err := r.releaseOrphan(ctx, id)
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, err)
			return nil
		})
	}
	_ = g.Wait() // they return none
	return errors.Join(errs...)
}

// releaseOrphan relies on the order in which a pod comes and goes: its directory is there
// before ADD is called and until DEL has succeeded.
func (r *Runner) releaseOrphan(ctx context.Context, id string) error {
	u, err := manifest.ID(id).UUID()
	if err != nil {
		return nil // no pod's
	}
	if _, err := os.Lstat(r.pods.Path(u)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	a, err := r.network.Remembered(id)
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil // somebody else was faster
	}
	if err != nil {
		return fmt.Errorf("pod %s is gone: %w", u, err)
	}
	if !a.Within(id, r.pods.RunPath(u)) {
		return nil
	}
	failpoint.Hit(failpoint.NetworkUndoing)
	if err := r.network.Release(ctx, a); err != nil {
		return fmt.Errorf("pod %s is gone: %w", u, err)
	}
	failpoint.Hit(failpoint.NetworkUndone)
	return nil
}
