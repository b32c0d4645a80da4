package main

import (
	"fmt"
	"io"

	"github.com/gantry-cri/gantry/stage0"
	"github.com/gantry-cri/gantry/stage0/manifest"
)

// garbage is what a collection found, and has deleted unless it was a dry run. Bytes are
// those on disk.
type garbage struct {
	DryRun bool `json:"dryRun"`
	// NeverRun, Exited and Half are pods that became garbage: prepared ones that expired,
	// those that have exited, and what killed commands prepared by half.
	NeverRun []manifest.UUID `json:"neverRun"`
	Exited   []manifest.UUID `json:"exited"`
	Half     []manifest.UUID `json:"halfPrepared"`
	// Pods are the directories of pods that were deleted, of this or an earlier collection.
	Pods      []stage0.Freed `json:"pods"`
	Images    []stage0.Freed `json:"images"`
	Layers    []stage0.Freed `json:"layers"`
	Temporary int64          `json:"temporary"` // of downloads and of extractions
	Freed     int64          `json:"freed"`     // in all

	swept bool // deletion was begun, or would have been
}

// sum tells Freed of the rest.
func (g *garbage) sum() {
	g.swept = true
	g.Freed = g.Temporary + stage0.BytesOf(g.Pods) + stage0.BytesOf(g.Images) + stage0.BytesOf(g.Layers)
}

func (g *garbage) print(w io.Writer, f format) error {
	if f.json {
		g.NeverRun, g.Exited, g.Half = list(g.NeverRun), list(g.Exited), list(g.Half)
		g.Pods, g.Images, g.Layers = list(g.Pods), list(g.Images), list(g.Layers)
		return printJSON(w, g)
	}
	marked, deleted, freed := "garbage", "deleted", "freed"
	if g.DryRun {
		marked, deleted, freed = "would be garbage", "would be deleted", "would free"
	}
	for _, u := range g.NeverRun {
		fmt.Fprintf(w, "pod %s was never run: %s\n", u, marked)
	}
	for _, u := range g.Exited {
		fmt.Fprintf(w, "pod %s has exited: %s\n", u, marked)
	}
	for _, u := range g.Half {
		fmt.Fprintf(w, "pod %s was prepared by half: %s\n", u, deleted)
	}
	for _, i := range g.Images {
		fmt.Fprintf(w, "image %s is in no pod and not pinned: %s\n", i.Name, deleted)
	}
	for _, l := range g.Layers {
		fmt.Fprintf(w, "layer %s is in no image and no pod: %s\n", l.Name, deleted)
	}
	if g.swept {
		fmt.Fprintf(w, "%s %d bytes (%s)\n", freed, g.Freed, size(g.Freed))
	}
	return nil
}

// list is all, and never null in JSON.
func list[T any](all []T) []T {
	if all == nil {
		return []T{}
	}
	return all
}
