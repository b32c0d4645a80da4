package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/manifest"
	"github.com/gantry-cri/gantry/stage0/pod"
)

// collect marks what is garbage and deletes it. What cannot be deleted now is
// reported and stays for the next time.
func (h *house) collect(ctx context.Context, c collection, w output) error {
	expired, err := h.Pods.ExpirePrepared(pod.OwnerCLI, time.Now().Add(-c.expire))
	printEach(w.stdout, "pod %s was never run: garbage\n", expired)
	if err != nil {
		return err
	}
	exited, err := h.markExited(ctx, time.Now().Add(-c.grace))
	printEach(w.stdout, "pod %s has exited: garbage\n", exited)
	if err != nil || c.markOnly {
		return err
	}
	errs := []error{h.runner.Sweep(ctx)}
	swept, err := h.Sweep(ctx)
	printEach(w.stdout, "pod %s was prepared by half: deleted\n", swept.Pods)
	errs = append(errs, err, h.Images.Sweep(ctx))
	trees, err := h.collectTrees(ctx, w.stderr)
	printEach(w.stdout, "layer %s is in no image and no pod: deleted\n", trees)
	return errors.Join(append(errs, err)...)
}

// collectTrees leaves layers to a later collection while an image is fetched:
// that may take hours.
func (h *house) collectTrees(ctx context.Context, notes io.Writer) ([]string, error) {
	trees, err := h.CollectTrees(ctx)
	if errors.Is(err, errdefs.ErrBusy) {
		fmt.Fprintln(notes, "layers that nothing needs are left to the next collection: an image is being fetched")
		return nil, nil
	}
	return trees, err
}

func printEach[T any](w io.Writer, format string, all []T) {
	for _, v := range all {
		fmt.Fprintf(w, format, v)
	}
}

// markExited moves pods that ended before a moment to exited-garbage.
func (h *house) markExited(ctx context.Context, before time.Time) ([]manifest.UUID, error) {
	pods, err := h.loadAll(ctx)
	if err != nil {
		return nil, err
	}
	var marked []manifest.UUID
	for _, p := range pods {
		if p.Record.Owner != pod.OwnerCLI || p.State() != pod.Exited || !endOf(p).Before(before) {
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
