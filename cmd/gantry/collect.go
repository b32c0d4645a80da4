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
	doomed, err := h.PodGarbage(ctx)
	if err != nil {
		return err
	}
	errs := []error{h.runner.Sweep(ctx)}
	swept, err := h.Sweep(ctx)
	printEach(w.stdout, "pod %s was prepared by half: deleted\n", swept.Pods)
	spools, spoolsErr := h.SweepSpools(time.Now().Add(-c.grace))
	errs = append(errs, err, spoolsErr, h.Images.Sweep(ctx))
	trees, err := h.collectTrees(ctx, w.stderr)
	printTrees(w.stdout, trees, "deleted")
	errs = append(errs, err)
	pods, err := h.deleted(doomed)
	printFreed(w.stdout, "freed", swept.Temporary+spools, pods, trees)
	return errors.Join(append(errs, err)...)
}

// wouldCollect says what collect would do, and does nothing.
func (h *house) wouldCollect(ctx context.Context, c collection, w output) error {
	expired, err := h.Pods.Expired(pod.OwnerCLI, time.Now().Add(-c.expire))
	printEach(w.stdout, "pod %s was never run: would be garbage\n", expired)
	if err != nil {
		return err
	}
	exited, err := h.exited(time.Now().Add(-c.grace))
	printEach(w.stdout, "pod %s has exited: would be garbage\n", exited)
	if err != nil || c.markOnly {
		return err
	}
	pods, err := h.PodGarbage(ctx)
	if err != nil {
		return err
	}
	marked, err := h.PodSizes(ctx, slices.Concat(expired, exited))
	if err != nil {
		return err
	}
	pods = append(pods, marked...)
	temporary, err := h.Left(ctx, time.Now().Add(-c.grace))
	if err != nil {
		return err
	}
	gone := stage0.Gone{Pods: map[manifest.UUID]bool{}}
	for _, p := range pods {
		gone.Pods[manifest.UUID(p.Name)] = true
	}
	trees, err := h.UnusedTrees(ctx, gone)
	if err = laterIfBusy(err, w.stderr); err != nil {
		return err
	}
	printTrees(w.stdout, trees, "would be deleted")
	printFreed(w.stdout, "would free", temporary, pods, trees)
	return nil
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

func printEach[T any](w io.Writer, format string, all []T) {
	for _, v := range all {
		fmt.Fprintf(w, format, v)
	}
}

func printTrees(w io.Writer, trees []stage0.Freed, done string) {
	for _, t := range trees {
		fmt.Fprintf(w, "layer %s is in no image and no pod: %s\n", t.Name, done)
	}
}

// printFreed prints the sum of bytes on disk, exactly and for people.
func printFreed(w io.Writer, verb string, temporary int64, all ...[]stage0.Freed) {
	sum := temporary
	for _, f := range all {
		sum += stage0.BytesOf(f)
	}
	fmt.Fprintf(w, "%s %d bytes (%s)\n", verb, sum, size(sum))
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
