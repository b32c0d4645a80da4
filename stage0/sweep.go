package stage0

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/manifest"
)

// Swept says what a sweep found and removed.
type Swept struct {
	// Pods are prepares that were cut short.
	Pods []manifest.UUID
	// Trees are layers that no image and no pod names.
	Trees []string
}

// Sweep removes what killed processes left: aborted prepares and temporary
// trees. It takes nothing that somebody holds, and may run at any time.
func (p *Pipeline) Sweep(ctx context.Context) (Swept, error) {
	pods, err := p.Pods.SweepAborted()
	return Swept{Pods: pods}, errors.Join(err, p.Trees.Sweep(ctx))
}

// How long, and how often, a collection looks whether those who prepare are done.
const (
	collectPatience = 2 * time.Second
	collectPause    = 20 * time.Millisecond
)

// CollectTrees removes the trees that no image and no pod names. The store's lock
// is held alone while they are looked for and renamed away; whoever prepares or
// fetches waits that long, not until the files are gone. A pull that is under way
// is not waited for: ErrBusy says to try again later.
func (p *Pipeline) CollectTrees(ctx context.Context) ([]string, error) {
	unlock, err := p.lockCollection(ctx)
	if err != nil {
		return nil, fmt.Errorf("collect trees: %w", err)
	}
	retired, err := p.retireUnused(ctx)
	unlock()
	if err != nil {
		return nil, fmt.Errorf("collect trees: %w", err)
	}
	// The renamed trees lie in tmp, where every sweep looks.
	return retired, p.Trees.Sweep(ctx)
}

// lockCollection waits for a prepare, which takes a moment.
func (p *Pipeline) lockCollection(ctx context.Context) (unlock func(), err error) {
	patience := time.After(collectPatience)
	for {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		if unlock, err = p.Images.TryLockExclusive(); !errors.Is(err, errdefs.ErrBusy) {
			return unlock, err
		}
		select {
		case <-ctx.Done():
		case <-patience:
			return nil, err
		case <-time.After(collectPause):
		}
	}
}

func (p *Pipeline) retireUnused(ctx context.Context) ([]string, error) {
	used, err := p.usedTrees()
	if err != nil {
		return nil, err
	}
	names, err := p.Trees.List()
	if err != nil {
		return nil, err
	}
	var retired []string
	for _, n := range names {
		if used[n] {
			continue
		}
		if err := p.Trees.Retire(ctx, n); err != nil {
			return retired, err
		}
		retired = append(retired, n)
	}
	return retired, nil
}

// usedTrees fails rather than guess: a tree whose user cannot be read may be in use.
func (p *Pipeline) usedTrees() (map[string]bool, error) {
	used := map[string]bool{}
	images, err := p.Images.List()
	if err != nil {
		return nil, err
	}
	broken, err := p.Images.Broken()
	if err != nil {
		return nil, err
	}
	for _, b := range broken {
		if errors.Is(b.Err, errdefs.ErrUnsupported) {
			return nil, b.Err // of a later version: not damaged, and with trees
		}
	}
	for _, e := range images {
		for _, t := range e.Image.Trees() {
			used[t] = true
		}
	}
	pods, err := p.Pods.List()
	if err != nil {
		return nil, err
	}
	for _, u := range pods {
		pod, err := p.Pods.Load(u)
		if errors.Is(err, errdefs.ErrNotFound) {
			continue // not committed, so its prepare would hold the lock that we have
		}
		if err != nil {
			return nil, err
		}
		for _, a := range pod.Record.Apps {
			for _, t := range a.Layers {
				used[t] = true
			}
		}
	}
	return used, nil
}
