package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/gantry-cri/gantry/stage0"
	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/manifest"
	"github.com/gantry-cri/gantry/stage0/pod"
)

// collect marks what is garbage and deletes it. What cannot be deleted now is
// reported and stays for the next time; what was done till then is told as well.
func (h *house) collect(ctx context.Context, c collection, notes io.Writer) (g garbage, err error) {
	if g.NeverRun, err = h.Pods.ExpirePrepared(pod.OwnerCLI, time.Now().Add(-c.expire)); err != nil {
		return g, err
	}
	if g.Exited, err = h.markExited(ctx, time.Now().Add(-c.grace)); err != nil || c.markOnly {
		return g, err
	}
	doomed, err := h.PodGarbage(ctx)
	if err != nil {
		return g, err
	}
	errs := []error{h.runner.Sweep(ctx)}
	swept, err := h.Sweep(ctx)
	spools, spoolsErr := h.SweepSpools(time.Now().Add(-c.grace))
	g.Half, g.Temporary = swept.Pods, swept.Temporary+spools
	errs = append(errs, err, spoolsErr, h.Images.Sweep(ctx))
	g.Layers, err = h.collectTrees(ctx, notes)
	errs = append(errs, err)
	g.Pods, err = h.deleted(doomed)
	g.sum()
	return g, errors.Join(append(errs, err)...)
}

// wouldCollect says what collect would do, and does nothing.
func (h *house) wouldCollect(ctx context.Context, c collection, notes io.Writer) (g garbage, err error) {
	g.DryRun = true
	if g.NeverRun, err = h.Pods.Expired(pod.OwnerCLI, time.Now().Add(-c.expire)); err != nil {
		return g, err
	}
	if g.Exited, err = h.exited(time.Now().Add(-c.grace)); err != nil || c.markOnly {
		return g, err
	}
	pods, err := h.PodGarbage(ctx)
	if err != nil {
		return g, err
	}
	marked, err := h.PodSizes(ctx, slices.Concat(g.NeverRun, g.Exited))
	if err != nil {
		return g, err
	}
	g.Pods = append(pods, marked...)
	if g.Temporary, err = h.Left(ctx, time.Now().Add(-c.grace)); err != nil {
		return g, err
	}
	gone := stage0.Gone{Pods: map[manifest.UUID]bool{}}
	for _, p := range g.Pods {
		gone.Pods[manifest.UUID(p.Name)] = true
	}
	g.Layers, err = h.UnusedTrees(ctx, gone)
	if err = laterIfBusy(err, notes); err == nil {
		g.sum()
	}
	return g, err
}

// deleted returns those pods that are no longer there.
func (h *house) deleted(doomed []stage0.Freed) ([]stage0.Freed, error) {
	var gone []stage0.Freed
	for _, f := range doomed {
		_, err := os.Lstat(h.Pods.Path(manifest.UUID(f.Name)))
		if errors.Is(err, fs.ErrNotExist) {
			gone = append(gone, f)
		} else if err != nil {
			return gone, err
		}
	}
	return gone, nil
}

// collectTrees leaves layers to a later collection while an image is fetched:
// that may take hours.
func (h *house) collectTrees(ctx context.Context, notes io.Writer) ([]stage0.Freed, error) {
	trees, err := h.CollectTrees(ctx)
	return trees, laterIfBusy(err, notes)
}

// laterIfBusy makes a note of a collection that is put off.
func laterIfBusy(err error, notes io.Writer) error {
	if errors.Is(err, errdefs.ErrBusy) {
		fmt.Fprintln(notes, "layers that nothing needs are left to the next collection: an image is being fetched")
		return nil
	}
	return err
}

// markExited moves pods that ended before a moment to exited-garbage. One that
// ended while nobody looked gets its exit record first, and so ends now.
func (h *house) markExited(ctx context.Context, before time.Time) ([]manifest.UUID, error) {
	pods, err := h.loadAll(ctx)
	if err != nil {
		return nil, err
	}
	var marked []manifest.UUID
	for _, p := range pods {
		if !collectable(p, before) {
			continue
		}
		err := h.mark(ctx, p.Record.UUID)
		if errors.Is(err, errdefs.ErrNotFound) {
			continue
		}
		if err != nil {
			return marked, err
		}
		marked = append(marked, p.Record.UUID)
	}
	return marked, nil
}

// exited are the pods that markExited would move.
func (h *house) exited(before time.Time) ([]manifest.UUID, error) {
	uuids, err := h.Pods.List()
	if err != nil {
		return nil, err
	}
	var found []manifest.UUID
	for _, u := range uuids {
		p, err := h.Pods.Load(u)
		if errors.Is(err, errdefs.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if !lost(p) && collectable(p, before) {
			found = append(found, u)
		}
	}
	return found, nil
}

func collectable(p *pod.Pod, before time.Time) bool {
	return p.Record.Owner == pod.OwnerCLI && p.State() == pod.Exited && endOf(p).Before(before)
}

func (h *house) mark(ctx context.Context, u manifest.UUID) error {
	d, err := h.Pods.Lock(ctx, u)
	if err != nil {
		return err
	}
	if d.Place() == pod.InRun {
		err = d.MoveTo(pod.InExitedGarbage)
	}
	return errors.Join(err, d.Close())
}

// endOf is when the last app of a pod ended.
func endOf(p *pod.Pod) time.Time {
	end := p.Record.CreatedAt
	for _, e := range p.Exits {
		if e.EndedAt.After(end) {
			end = e.EndedAt
		}
	}
	return end
}
