package stage0

import (
	"cmp"
	"context"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/gantry-cri/gantry/stage0/credential"
	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/failpoint"
	"github.com/gantry-cri/gantry/stage0/fetch"
	"github.com/gantry-cri/gantry/stage0/imageref"
	"github.com/gantry-cri/gantry/stage0/spool"
	"github.com/gantry-cri/gantry/stage0/store"
	"github.com/gantry-cri/gantry/stage0/tree"
)

// Source is where images come from; fetch.Registry is one.
type Source interface {
	Resolve(ctx context.Context, ref imageref.Ref, creds credential.Source) (fetch.Remote, error)
}

// FetchRequest is what both doors ask Fetch for.
type FetchRequest struct {
	Ref imageref.Ref
	// Platform chooses from an image index; nil is the node's own.
	Platform *ocispec.Platform
	// Credentials are asked when a registry wants some; nil leaves them to the
	// source's configuration.
	Credentials credential.Source
}

// Fetch brings an image into the store: its layers as trees, its record, its
// names. The source is asked every time, with the request's credentials, also
// when everything is there already; what then is not read again are the layers.
// A layer is fetched once, however many goroutines and processes want it.
//
// A pull by tag sets the names repo:tag and repo@digest, one by digest only the
// latter. When Fetch fails no record and no name has changed and nothing is left
// in tmp but spools; layers that were complete stay as trees, so that the next
// attempt goes on from there, unless the disk is full.
//
// A layer of more than SpoolAbove bytes is spooled while it comes in: whoever fetches
// it next, after this call failed or its process was killed, asks for the rest alone.
//
// The errors are those of package fetch, and ErrNoSpace.
//
// Each of its stages is reported once, and a failed one ends the report. Layers
// are downloaded, hashed and extracted in one pass and several at a time, so the
// time that this takes is divided: fetch has the share in which the passes waited
// for bytes (the manifest's download added), extract the rest and the commit,
// verify what is checked before the layers. A layer that is not what was promised
// counts as a failed verify.
func (p *Pipeline) Fetch(ctx context.Context, req FetchRequest) (_ store.Entry, err error) {
	ctx, cancel := p.limited(ctx)
	defer cancel()
	var remote fetch.Remote
	err = p.timed(StageResolve, func() error {
		remote, err = p.Source.Resolve(ctx, req.Ref, req.Credentials)
		return err
	})
	if err != nil {
		return store.Entry{}, fmt.Errorf("fetch: %w", err)
	}
	failpoint.Hit(failpoint.FetchResolved)
	return p.bring(ctx, "fetch", source{Remote: remote, label: req.Ref.String(), platform: req.Platform, want: req.Ref.Digest(), names: names(req.Ref, remote.Digest())})
}

// errTooLong marks the end of FetchTimeout.
var errTooLong = fmt.Errorf("the total time-out (pullTimeout): %w", errdefs.ErrUnavailable)

func (p *Pipeline) limited(ctx context.Context) (context.Context, context.CancelFunc) {
	if p.FetchTimeout <= 0 {
		return ctx, func() {}
	}
	return context.WithTimeoutCause(ctx, p.FetchTimeout, fmt.Errorf("not done within %s, %w", p.FetchTimeout, errTooLong))
}

// Load brings an image of the file system into the store, as Fetch does one of a
// registry. It gets the name by which the layout or the archive knows it, unless
// that is a tag alone; an ACI gets none, and is for no platform but its own. The
// errors are those of fetch.OpenLocal and of Fetch.
func (p *Pipeline) Load(ctx context.Context, at imageref.Location, platform *ocispec.Platform) (_ store.Entry, err error) {
	if at.Transport == imageref.ACI {
		return p.loadACI(ctx, at)
	}
	var local *fetch.Local
	err = p.timed(StageResolve, func() error {
		local, err = fetch.OpenLocal(ctx, at, p.Images.TempDir())
		return err
	})
	if err != nil {
		return store.Entry{}, fmt.Errorf("load: %w", err)
	}
	src := source{Remote: local, label: at.String(), platform: platform, want: local.Digest()}
	// Nobody vouches that a registry has it under this digest, so that is no name.
	if tag := local.Ref().Tagged(); tag != "" {
		src.names = []store.Ref{{Name: tag, Digest: local.Digest()}}
	}
	return p.bring(ctx, "load", src)
}

// source is an image at its source, and what is wanted of it.
type source struct {
	fetch.Remote
	label    string // for people
	platform *ocispec.Platform
	want     digest.Digest // that of the manifest or index, where it is known before
	names    []store.Ref   // that the image gets
}

// bring brings an image that was resolved into the store, and closes its source.
// An error says by verb what was being done.
func (p *Pipeline) bring(ctx context.Context, verb string, src source) (_ store.Entry, err error) {
	times := &fetchTimes{}
	defer func() {
		times.report(p, err)
		err = errors.Join(err, src.Close())
	}()
	img, err := p.fetchImage(ctx, src, times)
	if errors.Is(err, errTooLong) {
		err = fmt.Errorf("%w; %d of the %d bytes of the layers that were missing had come", err, times.got.Load(), times.missing.Load())
	}
	if err != nil {
		return store.Entry{}, fmt.Errorf("%s %s: %w", verb, src.label, err)
	}
	return p.Images.Lookup(img.String())
}

// fetchImage reads manifest and layers, commits them and returns the image's id.
func (p *Pipeline) fetchImage(ctx context.Context, src source, times *fetchTimes) (digest.Digest, error) {
	man, err := p.fetchManifest(ctx, src, times)
	if err != nil {
		return "", err
	}
	if err := times.verifying(func() error { return verifyManifest(src, man) }); err != nil {
		return "", err
	}
	// From the look whether a tree is there until a record names it, nothing but
	// this lock keeps a collection from taking it.
	unlock, err := p.Images.LockShared(ctx)
	if err != nil {
		return "", err
	}
	defer unlock()
	defer times.extracting()()
	ls := distinctLayers(src.label, man)
	for _, l := range ls {
		times.missing.Add(l.Size)
	}
	if err := p.fetchLayers(ctx, src.Remote, ls, times); err != nil {
		return "", err
	}
	img, err := p.describe(ctx, man)
	if err != nil {
		return "", err
	}
	return img.ID, p.Images.Commit(ctx, img, man.Bytes, man.Config, src.names...)
}

func (p *Pipeline) fetchManifest(ctx context.Context, src source, times *fetchTimes) (fetch.Manifest, error) {
	start := time.Now()
	man, err := src.Manifest(ctx, src.platform)
	times.fetch = time.Since(start)
	p.fetched(len(man.Bytes) + len(man.Config))
	return man, err
}

// verifyManifest holds what a source delivered to what was asked for, whatever the source
// has checked itself.
func verifyManifest(src source, man fetch.Manifest) error {
	if src.want != "" && src.want != src.Digest() {
		return fmt.Errorf("the source has %s: %w", src.Digest(), errdefs.ErrUnverified)
	}
	if err := man.Digest.Validate(); err != nil {
		return fmt.Errorf("manifest digest %q: %w: %w", man.Digest, err, errdefs.ErrInvalid)
	}
	if man.Digest.Algorithm().FromBytes(man.Bytes) != man.Digest {
		return fmt.Errorf("manifest is not %s: %w", man.Digest, errdefs.ErrUnverified)
	}
	if digest.FromBytes(man.Config) != man.ConfigID {
		return fmt.Errorf("config is not %s: %w", man.ConfigID, errdefs.ErrUnverified)
	}
	if len(man.Layers) != len(man.DiffIDs) {
		return fmt.Errorf("%d layers have %d diff IDs: %w", len(man.Layers), len(man.DiffIDs), errdefs.ErrInvalid)
	}
	return nil
}

// layer is one that the image needs.
type layer struct {
	tree.Layer
	image  string // that needs it, for people
	desc   ocispec.Descriptor
	name   string // of its tree
	share  *share // of the slots: all layers of one Fetch have the same
	unlock func() // set while we are the ones who fetch it
}

// distinctLayers returns each layer once, the largest first: then the last ones
// to be fetched are short. Equal diff IDs are equal trees, however their blobs
// are compressed.
func distinctLayers(image string, man fetch.Manifest) []layer {
	seen := map[digest.Digest]bool{}
	of := &share{}
	var ls []layer
	for i, d := range man.Layers {
		id := man.DiffIDs[i]
		if seen[id] {
			continue
		}
		seen[id] = true
		ls = append(ls, layer{
			Layer: tree.Layer{Digest: d.Digest, DiffID: id, Size: d.Size, MediaType: d.MediaType},
			image: image,
			desc:  d,
			name:  tree.Name(id),
			share: of,
		})
	}
	slices.SortStableFunc(ls, func(a, b layer) int { return cmp.Compare(b.Size, a.Size) })
	return ls
}

// fetchLayers returns when all layers are trees. Those that somebody else is
// fetching are waited for last, when we hold no other: two images that share
// layers would wait for each other.
func (p *Pipeline) fetchLayers(ctx context.Context, remote fetch.Remote, left []layer, times *fetchTimes) error {
	for len(left) > 0 {
		held, busy, err := p.claim(ctx, left, times)
		failpoint.Hit(failpoint.LayerLocked)
		if err == nil {
			err = p.extractLayers(ctx, remote, held, times)
		}
		for _, l := range held {
			l.unlock()
		}
		if err != nil {
			return err
		}
		left = busy
	}
	return nil
}

// claim divides the layers: those that are trees already are dropped, those that
// nobody fetches are held, the others are busy. When all are busy it waits for
// the first.
func (p *Pipeline) claim(ctx context.Context, ls []layer, times *fetchTimes) (held, busy []layer, err error) {
	for _, l := range ls {
		if _, there, err := p.Trees.Has(l.DiffID); there || err != nil {
			if err != nil {
				return held, busy, err
			}
			if err := p.present(l, times); err != nil {
				return held, busy, err
			}
			continue
		}
		l.unlock, err = p.Images.TryLockLayer(l.name)
		if errors.Is(err, errdefs.ErrBusy) {
			busy = append(busy, l)
			p.layerIs(l, LayerWaiting, 0)
			continue
		}
		if held, err = p.keepMissing(held, l, times, err); err != nil {
			return held, busy, err
		}
	}
	if len(held) > 0 || len(busy) == 0 {
		return held, busy, nil
	}
	l := busy[0]
	start := time.Now()
	l.unlock, err = p.Images.LockLayer(ctx, l.name)
	times.waited(time.Since(start))
	held, err = p.keepMissing(held, l, times, err)
	return held, busy[1:], err
}

// keepMissing looks again, now that we hold the lock: whoever held it before us
// has probably made the tree.
func (p *Pipeline) keepMissing(held []layer, l layer, times *fetchTimes, lockErr error) ([]layer, error) {
	if lockErr != nil {
		return held, lockErr
	}
	_, there, err := p.Trees.Has(l.DiffID)
	if err != nil || there {
		l.unlock()
		if there {
			err = p.present(l, times)
		}
		return held, err
	}
	return append(held, l), nil
}

// present also drops the spool of a process that was killed when it had made the tree.
func (p *Pipeline) present(l layer, times *fetchTimes) error {
	times.missing.Add(-l.Size)
	p.layerIs(l, LayerPresent, 0)
	return spool.Discard(p.Images.TempDir(), l.Digest)
}

// readyLayer is a layer that is complete and not visible yet, with its spool, which is
// of use until it is.
type readyLayer struct {
	*tree.Pending
	spool *spool.Spool
}

// extractLayers fetches the layers that we hold, several at once, and makes them
// visible together.
func (p *Pipeline) extractLayers(ctx context.Context, remote fetch.Remote, ls []layer, times *fetchTimes) error {
	made := make([]readyLayer, len(ls))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(p.layersOfImage())
	for i, l := range ls {
		g.Go(func() (err error) {
			made[i], err = p.extractLayer(gctx, remote, l, times)
			return err
		})
	}
	err := g.Wait()
	made = slices.DeleteFunc(made, func(m readyLayer) bool { return m.Pending == nil })
	if !errors.Is(err, errdefs.ErrNoSpace) {
		// What is complete is kept even when ctx is over; it is only a sync away.
		committed := p.commitTrees(context.WithoutCancel(ctx), made)
		err = errors.Join(err, committed)
	}
	for _, m := range made {
		err = errors.Join(err, m.Discard(), leaveSpool(ctx, m.spool, err))
	}
	return err
}

// commitTrees drops the spools of the trees that it makes visible.
func (p *Pipeline) commitTrees(ctx context.Context, made []readyLayer) error {
	var pending []*tree.Pending
	for _, m := range made {
		pending = append(pending, m.Pending)
	}
	if err := p.Trees.Commit(ctx, pending...); err != nil {
		return err
	}
	var err error
	for _, m := range made {
		err = errors.Join(err, m.spool.Drop())
	}
	return err
}

// describe makes the image's record; all of its layers are trees.
func (p *Pipeline) describe(ctx context.Context, man fetch.Manifest) (store.Image, error) {
	appc := sha512.Sum512(man.Bytes)
	img := store.Image{
		ID:             man.ConfigID,
		ManifestDigest: man.Digest,
		AppcID:         "sha512-" + hex.EncodeToString(appc[:]),
		PulledAt:       time.Now().UTC(),
		Platform:       man.Platform,
		Size:           int64(len(man.Bytes) + len(man.Config)),
	}
	for i, d := range man.Layers {
		id := man.DiffIDs[i]
		img.Layers = append(img.Layers, store.Layer{Digest: d.Digest, DiffID: id, MediaType: d.MediaType, Size: d.Size, Tree: tree.Name(id)})
	}
	collector.begin()
	defer collector.end()
	var err error
	if img.Fixup, err = p.Trees.Fixup(ctx, man.DiffIDs); err != nil {
		return store.Image{}, err
	}
	trees, err := p.treesSize(img)
	img.Size += trees
	return img, err
}

// treesSize is what the distinct trees of an image take on disk, bytes.
func (p *Pipeline) treesSize(img store.Image) (sum int64, err error) {
	for _, name := range img.Trees() {
		m, err := p.Trees.Meta(name)
		if err != nil {
			return 0, err
		}
		sum += m.Size
	}
	return sum, nil
}

// names returns what the image is called after a pull of ref, which resolved to d.
func names(ref imageref.Ref, d digest.Digest) []store.Ref {
	refs := []store.Ref{{Name: ref.Canonical(d), Digest: d}}
	if tag := ref.Tagged(); tag != "" {
		refs = append(refs, store.Ref{Name: tag, Digest: d})
	}
	return refs
}

func (p *Pipeline) fetched(n int) {
	if p.Observer != nil && n > 0 {
		p.Observer.BytesFetched(int64(n))
	}
}

// fetchTimes divides the duration of a Fetch among its stages.
type fetchTimes struct {
	fetch, verify time.Duration // before the layers
	layers        time.Duration // all passes and the commit, by the clock
	began         bool          // the layers

	wait, work   atomic.Int64 // of all passes together, nanoseconds
	missing, got atomic.Int64 // bytes of the blobs that were no trees, and that have come
}

func (t *fetchTimes) verifying(f func() error) error {
	start := time.Now()
	err := f()
	t.verify = time.Since(start)
	return err
}

// extracting starts the layers' clock and returns what stops it.
func (t *fetchTimes) extracting() func() {
	start := time.Now()
	t.began = true
	return func() { t.layers = time.Since(start) }
}

func (t *fetchTimes) waited(d time.Duration) { t.wait.Add(int64(d)) }

// pass adds one layer's pass.
func (t *fetchTimes) pass(r *meteredReader, took time.Duration) {
	waited := min(took, time.Duration(r.waited.Load()))
	t.waited(waited)
	t.work.Add(int64(took - waited))
}

func (t *fetchTimes) report(p *Pipeline, err error) {
	share := time.Duration(0)
	if wait, work := t.wait.Load(), t.work.Load(); wait+work > 0 {
		share = time.Duration(float64(t.layers) * (float64(wait) / float64(wait+work)))
	}
	failed := t.failedStage(err)
	for _, s := range []struct {
		stage Stage
		took  time.Duration
	}{{StageFetch, t.fetch + share}, {StageVerify, t.verify}, {StageExtract, t.layers - share}} {
		if s.stage == failed {
			p.done(s.stage, s.took, err)
			return
		}
		p.done(s.stage, s.took, nil)
	}
}

// sourceErrors are those that only a source has, and the end of the wait for one.
var sourceErrors = []error{errdefs.ErrUnavailable, errdefs.ErrDenied, errdefs.ErrNotFound, context.Canceled, context.DeadlineExceeded}

// failedStage returns the stage to which an error belongs, "" for none.
func (t *fetchTimes) failedStage(err error) Stage {
	isErr := func(class error) bool { return errors.Is(err, class) }
	switch {
	case err == nil:
		return ""
	case isErr(errdefs.ErrUnverified), !t.began && (isErr(errdefs.ErrInvalid) || isErr(errdefs.ErrUnsupported)):
		return StageVerify
	case !t.began, slices.ContainsFunc(sourceErrors, isErr):
		return StageFetch
	}
	return StageExtract
}
