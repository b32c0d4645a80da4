package stage0

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/manifest"
	"github.com/gantry-cri/gantry/stage0/pod"
	"github.com/gantry-cri/gantry/stage0/spool"
	"github.com/gantry-cri/gantry/stage0/store"
)

// Swept says what a sweep found and removed.
type Swept struct {
	// Pods are prepares that were cut short.
	Pods []manifest.UUID
	// Temporary is what extractions, removals and downloads that were cut short took
	// on disk, in bytes.
	Temporary int64
}

// SpoolKeep is how long a download that was cut short may wait to be taken up again.
const SpoolKeep = 24 * time.Hour

// Sweep removes what killed processes left: aborted prepares, temporary trees, and
// spools that got no byte for SpoolKeep. It takes nothing that somebody holds, and may
// run at any time.
func (p *Pipeline) Sweep(ctx context.Context) (Swept, error) {
	pods, err := p.Pods.SweepAborted()
	trees, treesErr := p.Trees.Sweep(ctx)
	downloads, spoolsErr := p.SweepSpools(time.Now().Add(-SpoolKeep))
	return Swept{Pods: pods, Temporary: trees + downloads}, errors.Join(err, treesErr, spoolsErr)
}

// SweepSpools removes the spools that nobody holds and that got no byte since a moment,
// and returns the bytes on disk that this frees.
func (p *Pipeline) SweepSpools(before time.Time) (int64, error) {
	return spool.Sweep(p.Images.TempDir(), before)
}

// Left returns the bytes on disk that Sweep and SweepSpools would free.
func (p *Pipeline) Left(ctx context.Context, spools time.Time) (int64, error) {
	spools = later(spools, time.Now().Add(-SpoolKeep))
	trees, err := p.Trees.Left(ctx)
	downloads, spoolsErr := spool.Left(p.Images.TempDir(), spools)
	return trees + downloads, errors.Join(err, spoolsErr)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// Freed is one thing that a collection removed, or would remove.
type Freed struct {
	// Name is a pod's UUID, an image's id or a tree's name.
	Name string `json:"name"`
	// Bytes are what it took on disk, as du counts it.
	Bytes int64 `json:"bytes"`
}

// NamesOf returns the names alone.
func NamesOf(all []Freed) []string {
	names := make([]string, 0, len(all))
	for _, f := range all {
		names = append(names, f.Name)
	}
	return names
}

// BytesOf returns the sum of the bytes.
func BytesOf(all []Freed) int64 {
	var sum int64
	for _, f := range all {
		sum += f.Bytes
	}
	return sum
}

// Gone are pods and images that a question takes for removed already, to learn
// what would become free with them.
type Gone struct {
	Pods   map[manifest.UUID]bool
	Images map[digest.Digest]bool
}

// PodGarbage returns the pods that a sweep deletes: those in garbage, and prepares
// that were cut short.
func (p *Pipeline) PodGarbage(ctx context.Context) ([]Freed, error) {
	doomed, err := p.Pods.Aborted()
	if err != nil {
		return nil, err
	}
	for _, place := range []pod.Place{pod.InGarbage, pod.InExitedGarbage} {
		uuids, err := p.Pods.InPlace(place)
		if err != nil {
			return nil, err
		}
		doomed = append(doomed, uuids...)
	}
	return p.PodSizes(ctx, doomed)
}

// PodSizes returns what pods take on disk. One that is not there takes nothing.
func (p *Pipeline) PodSizes(ctx context.Context, pods []manifest.UUID) ([]Freed, error) {
	var all []Freed
	for _, u := range pods {
		taken, err := p.Pods.Usage(ctx, u)
		if err != nil {
			return nil, err
		}
		all = append(all, Freed{Name: string(u), Bytes: taken.Bytes})
	}
	return all, nil
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
func (p *Pipeline) CollectTrees(ctx context.Context) ([]Freed, error) {
	unlock, err := p.lockCollection(ctx)
	if err != nil {
		return nil, fmt.Errorf("collect trees: %w", err)
	}
	retired, err := p.retireUnused(ctx)
	unlock()
	if err != nil {
		return nil, fmt.Errorf("collect trees: %w", err)
	}
	return retired, p.unlinkRetired(ctx)
}

// unlinkRetired deletes trees that were renamed away: they lie in tmp, where every
// sweep looks.
func (p *Pipeline) unlinkRetired(ctx context.Context) error {
	_, err := p.Trees.Sweep(ctx)
	return err
}

// UnusedTrees returns what CollectTrees would remove if what is gone were gone. It
// is told of a pull as CollectTrees is: by ErrBusy.
func (p *Pipeline) UnusedTrees(ctx context.Context, gone Gone) ([]Freed, error) {
	unlock, err := p.lockCollection(ctx)
	if err != nil {
		return nil, fmt.Errorf("look for unused trees: %w", err)
	}
	defer unlock()
	return p.unusedTrees(ctx, gone)
}

// CollectImages removes the images that no pod, no pin and no lease holds and that
// no pull has named since a moment, and then the trees that nothing names any
// more. Locks and errors are as with CollectTrees.
func (p *Pipeline) CollectImages(ctx context.Context, before time.Time) (images, trees []Freed, err error) {
	unlock, err := p.lockCollection(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("collect images: %w", err)
	}
	images, trees, err = p.retireImages(ctx, before)
	unlock()
	if err != nil {
		return images, trees, fmt.Errorf("collect images: %w", err)
	}
	return images, trees, p.unlinkRetired(ctx)
}

func (p *Pipeline) retireImages(ctx context.Context, before time.Time) (images, trees []Freed, err error) {
	unused, err := p.unusedImages(Gone{}, before)
	if err != nil {
		return nil, nil, err
	}
	for _, e := range unused {
		f, err := p.imageFreed(ctx, e)
		if err == nil {
			err = p.Images.Remove(ctx, e.Image.ID)
		}
		if errors.Is(err, errdefs.ErrState) {
			continue // pinned since we looked
		}
		if err != nil {
			return images, nil, err
		}
		images = append(images, f)
	}
	trees, err = p.retireUnused(ctx)
	return images, trees, err
}

// UnusedImages returns what CollectImages would remove.
func (p *Pipeline) UnusedImages(ctx context.Context, before time.Time) (images, trees []Freed, err error) {
	unlock, err := p.lockCollection(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("look for unused images: %w", err)
	}
	defer unlock()
	unused, err := p.unusedImages(Gone{}, before)
	if err != nil {
		return nil, nil, err
	}
	gone := Gone{Images: map[digest.Digest]bool{}}
	for _, e := range unused {
		gone.Images[e.Image.ID] = true
		f, err := p.imageFreed(ctx, e)
		if err != nil {
			return nil, nil, err
		}
		images = append(images, f)
	}
	trees, err = p.unusedTrees(ctx, gone)
	return images, trees, err
}

func (p *Pipeline) imageFreed(ctx context.Context, e store.Entry) (Freed, error) {
	taken, err := p.Images.UsageOf(ctx, e)
	return Freed{Name: string(e.Image.ID), Bytes: taken.Bytes}, err
}

// unusedImages fails rather than guess, as usedTrees does.
func (p *Pipeline) unusedImages(gone Gone, before time.Time) ([]store.Entry, error) {
	held := map[string]bool{}
	err := p.eachApp(gone, func(a pod.AppRecord) { held[a.ImageID] = true })
	if err != nil {
		return nil, err
	}
	images, err := p.Images.List()
	if err != nil {
		return nil, err
	}
	var unused []store.Entry
	for _, e := range images {
		if e.ReadOnly == "" && !e.Pinned && !held[string(e.Image.ID)] && e.NamedAt.Before(before) {
			unused = append(unused, e)
		}
	}
	return unused, nil
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

func (p *Pipeline) retireUnused(ctx context.Context) ([]Freed, error) {
	unused, err := p.unusedTrees(ctx, Gone{})
	if err != nil {
		return nil, err
	}
	for i, t := range unused {
		if err := p.Trees.Retire(ctx, t.Name); err != nil {
			return unused[:i], err
		}
	}
	return unused, nil
}

func (p *Pipeline) unusedTrees(ctx context.Context, gone Gone) ([]Freed, error) {
	used, err := p.usedTrees(gone)
	if err != nil {
		return nil, err
	}
	names, err := p.Trees.List()
	if err != nil {
		return nil, err
	}
	var unused []Freed
	for _, n := range names {
		if used[n] {
			continue
		}
		taken, err := p.Trees.UsageOf(ctx, n)
		if err != nil {
			return nil, err
		}
		unused = append(unused, Freed{Name: n, Bytes: taken.Bytes})
	}
	return unused, nil
}

// usedTrees fails rather than guess: a tree whose user cannot be read may be in use.
func (p *Pipeline) usedTrees(gone Gone) (map[string]bool, error) {
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
		if errors.Is(b.Err, errdefs.ErrUnsupported) && b.ReadOnly == "" {
			return nil, b.Err // of a later version: not damaged, and with trees
		}
	}
	for _, e := range images {
		if gone.Images[e.Image.ID] {
			continue
		}
		for _, t := range e.Image.Trees() {
			used[t] = used[t] || !p.readOnly(e, t)
		}
	}
	err = p.eachApp(gone, func(a pod.AppRecord) {
		for _, t := range a.Layers {
			used[t] = true
		}
	})
	return used, err
}

// readOnly says that an image needs nothing of the data directory for a tree: both lie
// in read-only stores.
func (p *Pipeline) readOnly(e store.Entry, name string) bool {
	if e.ReadOnly == "" {
		return false
	}
	_, ok := p.Trees.ReadOnly(name)
	return ok
}

// eachApp calls do for the apps of all pods but those that are gone.
func (p *Pipeline) eachApp(gone Gone, do func(pod.AppRecord)) error {
	return p.eachPod(gone.Pods, func(found *pod.Pod) error {
		for _, a := range found.Record.Apps {
			do(a)
		}
		return nil
	})
}

// eachPod calls do for all pods but those that are left out.
func (p *Pipeline) eachPod(leftOut map[manifest.UUID]bool, do func(*pod.Pod) error) error {
	pods, err := p.Pods.List()
	if err != nil {
		return err
	}
	for _, u := range pods {
		if leftOut[u] {
			continue
		}
		found, err := p.Pods.Load(u)
		if errors.Is(err, errdefs.ErrNotFound) {
			continue // not committed: its prepare holds the lock that who collects has alone
		}
		if err == nil {
			err = do(found)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
