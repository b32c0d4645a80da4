package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/manifest"
	"github.com/gantry-cri/gantry/stage0/pod"
)

// load reads a pod. One whose app ended while nobody looked gets its exit record
// first, if we may write it.
func (h *house) load(ctx context.Context, u manifest.UUID) (*pod.Pod, error) {
	p, err := h.Pods.Load(u)
	if err != nil || os.Geteuid() != 0 || !lost(p) {
		return p, err
	}
	if err := h.runner.Settle(ctx, u); err != nil {
		return nil, err
	}
	return p, p.Refresh()
}

func lost(p *pod.Pod) bool {
	return slices.ContainsFunc(p.Record.Apps, func(a pod.AppRecord) bool { return p.AppPhase(a.Name) == pod.Lost })
}

// loadAll reads every pod, oldest first. Pods that go away while it reads, and
// pods that are still being made and have no record, are left out.
func (h *house) loadAll(ctx context.Context) ([]*pod.Pod, error) {
	uuids, err := h.Pods.List()
	if err != nil {
		return nil, err
	}
	var all []*pod.Pod
	for _, u := range uuids {
		p, err := h.load(ctx, u)
		if errors.Is(err, errdefs.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b *pod.Pod) int {
		return cmp.Or(a.Record.CreatedAt.Compare(b.Record.CreatedAt), cmp.Compare(a.Record.UUID, b.Record.UUID))
	})
	return all, nil
}

// mine finds the pods that a command may change, before it changes the first:
// those of the kubelet are changed by force alone.
func (h *house) mine(spellings []string, force bool) ([]*pod.Pod, error) { //nolint:revive // force is the user's flag
	var found []*pod.Pod
	for _, s := range spellings {
		u, err := h.Pods.Resolve(s)
		if err != nil {
			return nil, err
		}
		p, err := h.Pods.Load(u)
		if err != nil {
			return nil, err
		}
		if p.Record.Owner != pod.OwnerCLI && !force {
			return nil, hintError{fmt.Errorf("pod %s is the kubelet's: %w", u, errdefs.ErrState), "--force changes it all the same"}
		}
		found = append(found, p)
	}
	return found, nil
}

// members are the containers of a sandbox; other pods have none.
func (h *house) members(p *pod.Pod) ([]manifest.UUID, error) {
	if p.Record.Kind != pod.KindSandbox {
		return nil, nil
	}
	uuids, err := h.Pods.List()
	if err != nil {
		return nil, err
	}
	var members []manifest.UUID
	for _, u := range uuids {
		c, err := h.Pods.Load(u)
		if errors.Is(err, errdefs.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if c.Record.Sandbox == p.Record.UUID {
			members = append(members, u)
		}
	}
	return members, nil
}
