package stage0

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"slices"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"golang.org/x/sync/errgroup"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/manifest"
	"github.com/gantry-cri/gantry/stage0/pod"
	"github.com/gantry-cri/gantry/stage0/readonly"
	"github.com/gantry-cri/gantry/stage0/store"
	"github.com/gantry-cri/gantry/stage0/tree"
	"github.com/gantry-cri/gantry/stage0/verify"
)

// CheckedTree is what was found of a tree, and who uses it.
type CheckedTree struct {
	verify.Report
	Images []digest.Digest `json:"images"` // that are made of it
	Pods   []TreeUser      `json:"pods"`   // that stack it
	Repair *Repair         `json:"repair,omitempty"`
	// ReadOnly is the read-only store that has it, where nothing is repaired.
	ReadOnly readonly.Dir `json:"readOnlyStore,omitempty"`

	// fixupOf are the layers of a fix-up tree, bottom first.
	fixupOf []digest.Digest
}

// TreeUser is a pod that stacks a tree.
type TreeUser struct {
	UUID  manifest.UUID `json:"uuid"`
	State pod.State     `json:"state"`
	// Mounted says that the tree may not be touched: the pod's root filesystem is
	// mounted, or may be.
	Mounted bool `json:"mounted"`
}

// Good says that nothing is known against the tree, or that it was repaired.
func (c CheckedTree) Good() bool {
	return len(c.Findings) == 0 || c.Repair != nil && c.Repair.Done
}

// CheckedRecord is an image's record, or a name of an image, that is damaged.
type CheckedRecord struct {
	Path    string `json:"path"` // or the image's id
	Problem string `json:"problem"`
}

// Check is what a check of the store has found.
type Check struct {
	// Trees are all that were looked at, the good ones too: layers, then fix-up trees.
	Trees   []CheckedTree   `json:"trees"`
	Records []CheckedRecord `json:"records"`
}

// Good says that nothing was found, or that all was repaired.
func (c Check) Good() bool {
	return len(c.Records) == 0 && !slices.ContainsFunc(c.Trees, func(t CheckedTree) bool { return !t.Good() })
}

// VerifyImages proves the trees of images against the diff IDs that the images'
// configurations name, several trees at once. A tree that is not there is found to be
// missing.
func (p *Pipeline) VerifyImages(ctx context.Context, images []store.Entry) (Check, error) {
	c := p.expected(images)
	if err := p.checkTrees(ctx, c.Trees); err != nil {
		return Check{}, fmt.Errorf("verify images: %w", err)
	}
	return c, nil
}

// CheckStore proves all trees of the store, and the records of all images; of
// read-only stores, the trees that images are made of. Nothing is
// kept from anybody but from a collection, for as long as a tree takes. What is
// removed meanwhile is no finding.
func (p *Pipeline) CheckStore(ctx context.Context) (Check, error) {
	c, err := p.checkStore(ctx)
	if err != nil {
		return Check{}, fmt.Errorf("check store: %w", err)
	}
	return c, nil
}

func (p *Pipeline) checkStore(ctx context.Context) (Check, error) {
	images, err := p.Images.List()
	if err != nil {
		return Check{}, err
	}
	c := p.expected(images)
	broken, err := p.Images.Broken()
	if err != nil {
		return Check{}, err
	}
	for _, b := range broken {
		c.Records = append(c.Records, CheckedRecord{Path: b.Path, Problem: b.Err.Error()})
	}
	others, err := p.others(c.Trees)
	if err != nil {
		return Check{}, err
	}
	c.Trees = append(c.Trees, others...)
	if err := p.checkTrees(ctx, c.Trees); err != nil {
		return Check{}, err
	}
	c.Trees = slices.DeleteFunc(c.Trees, p.collected)
	return c, nil
}

// collected says that a tree is missing since nothing needs it any more.
func (p *Pipeline) collected(t CheckedTree) bool {
	if len(t.Findings) != 1 || t.Findings[0] != missingTree {
		return false
	}
	return !slices.ContainsFunc(t.Images, func(id digest.Digest) bool {
		_, err := p.Images.Get(id)
		return !errors.Is(err, errdefs.ErrNotFound)
	})
}

// expected are the trees that images should have, each once, fix-up trees last, and
// what is wrong with the images' records.
func (p *Pipeline) expected(images []store.Entry) Check {
	c := Check{Trees: []CheckedTree{}, Records: []CheckedRecord{}}
	at := map[string]int{}
	add := func(t CheckedTree, id digest.Digest) {
		i, ok := at[t.Tree]
		if !ok {
			i = len(c.Trees)
			at[t.Tree] = i
			c.Trees = append(c.Trees, t)
		}
		if !slices.Contains(c.Trees[i].Images, id) {
			c.Trees[i].Images = append(c.Trees[i].Images, id)
		}
	}
	for _, e := range images {
		keys, err := p.recorded(e.Image)
		if errors.Is(err, errdefs.ErrNotFound) {
			continue // removed since the list was made
		}
		if err != nil {
			c.Records = append(c.Records, CheckedRecord{Path: string(e.Image.ID), Problem: err.Error()})
			continue
		}
		for i, l := range e.Image.Layers {
			t := CheckedTree{Report: verify.Report{Tree: l.Tree, DiffID: keys[i], Findings: []verify.Finding{}}}
			if l.MediaType == mediaTypeRendered {
				t.Unverifiable = "rendered by a pathWhitelist of trees that are not kept"
			}
			add(t, e.Image.ID)
		}
		if e.Image.Fixup != "" {
			add(CheckedTree{Report: verify.Report{Tree: e.Image.Fixup, Fixup: true, DiffID: identity.ChainID(slices.Clone(keys)), Findings: []verify.Finding{}}, fixupOf: keys}, e.Image.ID)
		}
	}
	slices.SortStableFunc(c.Trees, func(a, b CheckedTree) int { return cmp.Compare(rank(a), rank(b)) })
	return c
}

func rank(t CheckedTree) int {
	if t.Fixup {
		return 1
	}
	return 0
}

// recorded returns the keys of an image's layers in the tree store, as its
// configuration and not its record names them, and holds the records to each other.
func (p *Pipeline) recorded(img store.Image) ([]digest.Digest, error) {
	if _, err := p.Images.Manifest(img.ID); err != nil {
		return nil, err
	}
	config, err := p.Images.Config(img.ID)
	if err != nil {
		return nil, err
	}
	ids := config.RootFS.DiffIDs
	if len(ids) != len(img.Layers) {
		return nil, fmt.Errorf("image.json has %d layers, the configuration %d: %w", len(img.Layers), len(ids), errdefs.ErrUnverified)
	}
	keys := make([]digest.Digest, len(ids))
	for i, l := range img.Layers {
		keys[i] = ids[i]
		if l.MediaType == mediaTypeACI {
			keys[i] = tree.ACIKey(ids[i])
		}
		if l.DiffID != ids[i] || l.Tree != tree.Name(keys[i]) {
			return nil, fmt.Errorf("image.json has tree %s of %s where the configuration has %s: %w", l.Tree, l.DiffID, ids[i], errdefs.ErrUnverified)
		}
	}
	return keys, nil
}

// others are the trees of the store that are none of these.
func (p *Pipeline) others(known []CheckedTree) ([]CheckedTree, error) {
	names, err := p.Trees.List()
	if err != nil {
		return nil, err
	}
	var more []CheckedTree
	for _, name := range names {
		if slices.ContainsFunc(known, func(t CheckedTree) bool { return t.Tree == name }) {
			continue
		}
		t := CheckedTree{Report: verify.Report{Tree: name, Findings: []verify.Finding{}}, Images: []digest.Digest{}}
		m, err := p.Trees.Meta(name)
		if _, statErr := os.Lstat(p.Trees.Path(name)); errors.Is(err, errdefs.ErrNotFound) && errors.Is(statErr, fs.ErrNotExist) {
			continue // collected since it was listed
		}
		t.DiffID, t.Fixup = m.DiffID, m.Fixup
		switch {
		case errors.Is(err, errdefs.ErrUnsupported):
			t.Unverifiable = err.Error()
		case err != nil:
			t.Findings = append(t.Findings, verify.Finding{Path: tree.MetaName, What: verify.Record, Want: "one that can be read", Got: err.Error()})
		case m.Fixup:
			t.Unverifiable = "a fix-up tree that is in no image"
		case tree.Name(m.DiffID) != name:
			t.Findings = append(t.Findings, verify.Finding{Path: tree.MetaName, What: verify.Record, Want: "that of tree " + name, Got: string(m.DiffID)})
		}
		more = append(more, t)
	}
	return more, nil
}

var missingTree = verify.Finding{Path: ".", What: verify.Missing, Want: "a tree"}

// checkTrees verifies trees, layers before fix-up trees, and says who uses them.
func (p *Pipeline) checkTrees(ctx context.Context, trees []CheckedTree) error {
	var layers, fixups []*CheckedTree
	for i := range trees {
		switch t := &trees[i]; {
		case t.Unverifiable != "" || len(t.Findings) > 0:
		case t.Fixup:
			fixups = append(fixups, t)
		default:
			layers = append(layers, t)
		}
	}
	if err := p.checkEach(ctx, layers); err != nil {
		return err
	}
	if err := p.checkFixups(ctx, fixups, trees); err != nil {
		return err
	}
	return p.findUsers(trees)
}

func (p *Pipeline) checkEach(ctx context.Context, trees []*CheckedTree) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(2, runtime.GOMAXPROCS(0)))
	for _, t := range trees {
		g.Go(func() error { return p.checkTree(gctx, t) })
	}
	return g.Wait()
}

// checkFixups leaves out the fix-up trees of layers that something is known against:
// from these it would be rendered wrong.
func (p *Pipeline) checkFixups(ctx context.Context, fixups []*CheckedTree, all []CheckedTree) error {
	var sound []*CheckedTree
	for _, f := range fixups {
		i := slices.IndexFunc(all, func(t CheckedTree) bool {
			return !t.Fixup && !t.Good() && slices.Contains(f.fixupOf, t.DiffID)
		})
		if i >= 0 {
			f.Unverifiable = "it goes by the layers below it, and tree " + all[i].Tree + " is damaged"
			continue
		}
		f.Unverifiable = ""
		sound = append(sound, f)
	}
	return p.checkEach(ctx, sound)
}

// checkTree verifies one tree. Meanwhile no collection takes it.
func (p *Pipeline) checkTree(ctx context.Context, t *CheckedTree) error {
	unlock, err := p.Images.LockShared(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := os.Lstat(p.Trees.Path(t.Tree)); errors.Is(err, fs.ErrNotExist) {
		t.Findings = []verify.Finding{missingTree}
		return nil
	}
	var r verify.Report
	if t.Fixup {
		r, err = verify.Fixup(ctx, p.Trees, t.Tree, t.fixupOf)
	} else {
		r, err = verify.Tree(ctx, p.Trees, t.DiffID)
	}
	if errors.Is(err, errdefs.ErrNotFound) {
		t.Findings = []verify.Finding{missingTree}
		return nil
	}
	if err == nil {
		t.Report = r
	}
	return err
}

// findUsers fills in where the trees lie and which pods use them.
func (p *Pipeline) findUsers(trees []CheckedTree) error {
	at := map[string]*CheckedTree{}
	for i := range trees {
		trees[i].Pods = []TreeUser{}
		trees[i].ReadOnly, _ = p.Trees.ReadOnly(trees[i].Tree)
		at[trees[i].Tree] = &trees[i]
	}
	return p.eachPod(nil, func(found *pod.Pod) error {
		u := found.Record.UUID
		mounted, err := p.mounted(found.Place, u)
		if err != nil {
			return err
		}
		user := TreeUser{UUID: u, State: found.State(), Mounted: mounted}
		for _, name := range stackedBy(found.Record) {
			if t := at[name]; t != nil {
				t.Pods = append(t.Pods, user)
			}
		}
		return nil
	})
}

// stackedBy are the trees that the root filesystems of a pod use.
func stackedBy(r pod.Record) []string {
	var names []string
	for _, a := range r.Apps {
		names = append(names, a.Layers...)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// mounted says whether a pod's root filesystems may be mounted: what it made outside
// of its directory is not confirmed undone.
func (p *Pipeline) mounted(at pod.Place, u manifest.UUID) (bool, error) {
	if at == pod.InPrepared {
		return false, nil
	}
	return p.Pods.Claims(u)
}
