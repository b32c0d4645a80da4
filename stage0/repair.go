package stage0

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/fetch"
	"github.com/gantry-cri/gantry/stage0/imageref"
	"github.com/gantry-cri/gantry/stage0/pod"
	"github.com/gantry-cri/gantry/stage0/readonly"
	"github.com/gantry-cri/gantry/stage0/spool"
	"github.com/gantry-cri/gantry/stage0/store"
	"github.com/gantry-cri/gantry/stage0/tree"
	"github.com/gantry-cri/gantry/stage0/verify"
)

// Repair says what became of the attempt to put a good tree in the place of a bad one.
type Repair struct {
	Done bool `json:"done"`
	// From is where the layer came from; empty for a fix-up tree, which is rendered.
	From string `json:"from,omitempty"`
	// Problem says why it was not done, and what to do.
	Problem string `json:"problem,omitempty"`
}

// RepairStore replaces the bad trees of a check: it fetches their layers again, and no
// other, from where their images came from, or renders fix-up trees again. What cannot
// be repaired says why and is no error.
//
// A tree that a pod has mounted stays as it is, since overlay's lower directories must
// not change, nor a file go away, under a mount. The bad tree stays until the good one
// is complete; then the two change places in a moment in which nobody prepares,
// collects or starts a pod that uses it. A kill between the two leaves no tree, and
// the next repair or fetch brings it; what else a kill leaves goes with the next repair.
func (p *Pipeline) RepairStore(ctx context.Context, c *Check) error {
	if err := p.repairEach(ctx, c.Trees, func(t *CheckedTree) bool { return !t.Fixup }); err != nil {
		return fmt.Errorf("repair store: %w", err)
	}
	var again []*CheckedTree
	for i := range c.Trees {
		if t := &c.Trees[i]; t.Fixup && t.Unverifiable != "" && t.fixupOf != nil {
			again = append(again, t)
		}
	}
	err := p.checkFixups(ctx, again, c.Trees)
	if err == nil {
		err = p.repairEach(ctx, c.Trees, func(t *CheckedTree) bool { return t.Fixup })
	}
	if err == nil {
		err = p.dropLeft(c.Trees)
	}
	if err != nil {
		return fmt.Errorf("repair store: %w", err)
	}
	return nil
}

// dropLeft deletes what is left of the fetching of layers whose trees are good, by a
// repair or a fetch that was killed when it had made the tree: its spool and its lock.
func (p *Pipeline) dropLeft(trees []CheckedTree) error {
	for _, t := range trees {
		if t.Fixup || !t.Good() || t.ReadOnly != "" {
			continue
		}
		unlock, err := p.Images.TryLockLayer(t.Tree)
		if errors.Is(err, errdefs.ErrBusy) {
			continue // somebody fetches it, for an image that is new
		}
		if err != nil {
			return err
		}
		err = p.dropSpools(t)
		unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

func (p *Pipeline) dropSpools(t CheckedTree) error {
	for _, id := range t.Images {
		img, err := p.Images.Get(id)
		if errors.Is(err, errdefs.ErrNotFound) {
			continue // removed since the check
		}
		if err != nil {
			return err
		}
		for _, l := range img.Layers {
			if l.Tree != t.Tree {
				continue
			}
			if err := spool.Discard(p.Images.TempDir(), l.Digest); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *Pipeline) repairEach(ctx context.Context, trees []CheckedTree, which func(*CheckedTree) bool) error {
	for i := range trees {
		t := &trees[i]
		if !which(t) || t.Good() {
			continue
		}
		t.Repair = &Repair{}
		from, err := p.repair(ctx, t)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			t.Repair.Problem = err.Error()
			continue
		}
		t.Repair.Done, t.Repair.From = true, from
	}
	_, err := p.Trees.Sweep(ctx) // of what was replaced
	return err
}

// repair replaces one tree and proves the new one. It returns where that is from.
func (p *Pipeline) repair(ctx context.Context, t *CheckedTree) (from string, err error) {
	if t.ReadOnly != "" {
		return "", fmt.Errorf("it lies in %s, which has to be made anew: %w", t.ReadOnly, readonly.ErrReadOnly)
	}
	for _, u := range t.Pods {
		if u.Mounted {
			return "", mountedError(u)
		}
	}
	if t.Fixup {
		err = p.repairFixup(ctx, t)
	} else {
		from, err = p.refetch(ctx, t)
	}
	if err != nil {
		return "", err
	}
	again := CheckedTree{Report: verify.Report{Tree: t.Tree, DiffID: t.DiffID, Fixup: t.Fixup}, fixupOf: t.fixupOf}
	if err := p.checkTree(ctx, &again); err != nil {
		return "", err
	}
	if !again.Proven() {
		return "", fmt.Errorf("%v is found of the new tree: %w", again.Findings, errdefs.ErrUnverified)
	}
	return from, nil
}

func mountedError(u TreeUser) error {
	return fmt.Errorf("pod %s (%s) has it mounted: stop the pod, repair again, and start it: %w", u.UUID, u.State, errdefs.ErrState)
}

func (p *Pipeline) repairFixup(ctx context.Context, t *CheckedTree) error {
	rebuilt, err := p.Trees.RebuildFixup(ctx, t.fixupOf)
	if err != nil {
		return err
	}
	if rebuilt == nil {
		return fmt.Errorf("its layers need none: remove the image and fetch it again: %w", errdefs.ErrState)
	}
	return errors.Join(p.exchange(ctx, t.Tree, rebuilt.Pending()), rebuilt.Discard())
}

// refetch tries the names of the images that have the layer, the digests first: a tag
// may have moved on.
func (p *Pipeline) refetch(ctx context.Context, t *CheckedTree) (from string, err error) {
	var errs []error
	for _, id := range t.Images {
		e, err := p.Images.Lookup(string(id))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, name := range slices.Concat(e.Digests, e.Tags) {
			err := p.refetchFrom(ctx, t, e.Image, name)
			if err == nil {
				return name, nil
			}
			if ctx.Err() != nil {
				return "", context.Cause(ctx)
			}
			errs = append(errs, fmt.Errorf("from %s: %w", name, err))
			if errors.Is(err, errdefs.ErrNoSpace) || errors.Is(err, errdefs.ErrState) || errors.Is(err, errdefs.ErrBusy) {
				return "", errors.Join(errs...)
			}
		}
	}
	if len(errs) == 0 {
		return "", fmt.Errorf("no image in the store names a registry for it: remove the images that have it, and load them again: %w", errdefs.ErrNotFound)
	}
	return "", errors.Join(errs...)
}

func (p *Pipeline) refetchFrom(ctx context.Context, t *CheckedTree, img store.Image, name string) (err error) {
	ref, err := imageref.Parse(name)
	if err != nil {
		return err
	}
	remote, err := p.Source.Resolve(ctx, ref, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remote.Close()) }()
	man, err := remote.Manifest(ctx, &img.Platform)
	if err != nil {
		return err
	}
	src := source{Remote: remote, label: name, platform: &img.Platform, want: ref.Digest()}
	if err := verifyManifest(src, man); err != nil {
		return err
	}
	l, err := layerOf(t.DiffID, name, man)
	if err != nil {
		return err
	}
	return p.replaceLayer(ctx, remote, l)
}

// layerOf finds a layer in a manifest.
func layerOf(diffID digest.Digest, label string, man fetch.Manifest) (layer, error) {
	for _, l := range distinctLayers(label, man) {
		if l.DiffID == diffID {
			return l, nil
		}
	}
	return layer{}, fmt.Errorf("the image has no such layer any more: %w", errdefs.ErrNotFound)
}

// replaceLayer fetches a layer whose tree is there and bad, as the only one who does.
func (p *Pipeline) replaceLayer(ctx context.Context, remote fetch.Remote, l layer) error {
	unlock, err := p.Images.LockLayer(ctx, l.name)
	if err != nil {
		return err
	}
	defer unlock()
	made, err := p.extractLayer(ctx, remote, l, &fetchTimes{})
	if err != nil {
		return err
	}
	err = p.exchange(ctx, l.name, made.Pending)
	if err == nil {
		err = made.spool.Drop()
	}
	return errors.Join(err, made.Discard(), leaveSpool(ctx, made.spool, err))
}

// exchange puts a tree that is complete in the place of the one with its name, which
// the next sweep deletes.
func (p *Pipeline) exchange(ctx context.Context, name string, pending *tree.Pending) error {
	unlock, err := p.lockCollection(ctx) // nobody prepares
	if err != nil {
		return err
	}
	defer unlock()
	// Nobody starts what is prepared: whoever does holds the pod.
	release, err := p.holdUsers(ctx, name)
	defer release()
	if err != nil {
		return err
	}
	if err := p.Trees.Retire(ctx, name); err != nil {
		return err
	}
	return p.Trees.Commit(context.WithoutCancel(ctx), pending)
}

// holdUsers locks the pods that stack a tree. One that has it mounted is ErrState.
func (p *Pipeline) holdUsers(ctx context.Context, name string) (release func(), err error) {
	var held []*pod.Dir
	release = func() {
		for _, d := range held {
			_ = d.Close() // a flock goes with the descriptor
		}
	}
	err = p.eachPod(nil, func(found *pod.Pod) error {
		if !slices.Contains(stackedBy(found.Record), name) {
			return nil
		}
		d, err := p.Pods.Lock(ctx, found.Record.UUID)
		if errors.Is(err, errdefs.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		held = append(held, d)
		mounted, err := p.mounted(d.Place(), d.UUID())
		if err == nil && mounted {
			err = mountedError(TreeUser{UUID: d.UUID(), State: found.State()})
		}
		return err
	})
	return release, err
}
