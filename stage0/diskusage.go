package stage0

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/manifest"
	"github.com/gantry-cri/gantry/stage0/pod"
	"github.com/gantry-cri/gantry/stage0/store"
	"github.com/gantry-cri/gantry/stage0/usage"
)

// Share is what one kind of things takes of the data directory.
type Share struct {
	Count int `json:"count"`
	usage.Usage
	// Reclaimable are the bytes that gantry gc and gantry image gc would free
	// without any grace period.
	Reclaimable int64 `json:"reclaimable"`
}

// DiskUsage is what a data directory takes, as du counts it. What lies in read-only
// stores is no part of it.
type DiskUsage struct {
	// Trees are extracted layers and fix-up trees.
	Trees Share `json:"trees"`
	// Images are the records of images, their names and pins.
	Images Share `json:"images"`
	// Pods are writable layers, volumes, logs and records of pods.
	Pods Share `json:"pods"`
	// Temporary is work in progress, or what was left of it.
	Temporary Share `json:"temporary"`
}

// Total returns the sum.
func (d DiskUsage) Total() Share {
	var sum Share
	for _, s := range []Share{d.Trees, d.Images, d.Pods, d.Temporary} {
		sum.Count += s.Count
		sum.Usage = sum.Plus(s.Usage)
		sum.Reclaimable += s.Reclaimable
	}
	return sum
}

// ImageUsage returns what images take: their trees, from the trees' records, and
// what is recorded of them.
func (p *Pipeline) ImageUsage(ctx context.Context) (usage.Usage, error) {
	trees, err := p.Trees.Usage(ctx)
	if err != nil {
		return usage.Usage{}, err
	}
	images, err := p.Images.Usage(ctx)
	return trees.Plus(images), err
}

// DiskUsage measures the data directory: trees by their records, all else by a walk.
// It takes no lock; what a pull has extracted and not yet recorded counts as
// reclaimable.
func (p *Pipeline) DiskUsage(ctx context.Context) (DiskUsage, error) {
	d, err := p.measure(ctx)
	if err == nil {
		err = p.measureReclaimable(ctx, &d)
	}
	if err != nil {
		return DiskUsage{}, fmt.Errorf("disk usage: %w", err)
	}
	return d, nil
}

func (p *Pipeline) measure(ctx context.Context) (d DiskUsage, err error) {
	trees, err := p.Trees.List()
	if err != nil {
		return d, err
	}
	images, err := p.Images.List()
	if err != nil {
		return d, err
	}
	pods, err := p.Pods.List()
	if err != nil {
		return d, err
	}
	images = slices.DeleteFunc(images, func(e store.Entry) bool { return e.ReadOnly != "" })
	d.Trees.Count, d.Images.Count, d.Pods.Count = len(trees), len(images), len(pods)
	if d.Trees.Usage, err = p.Trees.Usage(ctx); err != nil {
		return d, err
	}
	if d.Images.Usage, err = p.Images.Usage(ctx); err != nil {
		return d, err
	}
	if d.Pods.Usage, err = usage.Of(ctx, filepath.Dir(p.Pods.PlaceDir(pod.InRun))); err != nil {
		return d, err
	}
	d.Temporary.Usage, err = usage.Of(ctx, p.Images.TempDir())
	return d, err
}

func (p *Pipeline) measureReclaimable(ctx context.Context, d *DiskUsage) error {
	pods, err := p.endedPods(ctx)
	if err != nil {
		return err
	}
	gone := Gone{Pods: map[manifest.UUID]bool{}, Images: map[digest.Digest]bool{}}
	for _, f := range pods {
		gone.Pods[manifest.UUID(f.Name)] = true
	}
	images, err := p.unusedImages(gone, time.Now())
	if err != nil {
		return err
	}
	for _, e := range images {
		gone.Images[e.Image.ID] = true
		f, err := p.imageFreed(ctx, e)
		if err != nil {
			return err
		}
		d.Images.Reclaimable += f.Bytes
	}
	trees, err := p.unusedTrees(ctx, gone)
	if err != nil {
		return err
	}
	d.Pods.Reclaimable, d.Trees.Reclaimable = BytesOf(pods), BytesOf(trees)
	d.Temporary.Reclaimable, err = p.Left(ctx, time.Now())
	return err
}

// endedPods are garbage, and pods of the command line that have ended.
func (p *Pipeline) endedPods(ctx context.Context) ([]Freed, error) {
	ended, err := p.PodGarbage(ctx)
	if err != nil {
		return nil, err
	}
	running, err := p.Pods.InPlace(pod.InRun)
	if err != nil {
		return nil, err
	}
	var exited []manifest.UUID
	for _, u := range running {
		found, err := p.Pods.Load(u)
		if errors.Is(err, errdefs.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if found.Record.Owner == pod.OwnerCLI && found.State() == pod.Exited {
			exited = append(exited, u)
		}
	}
	sizes, err := p.PodSizes(ctx, exited)
	return append(ended, sizes...), err
}
