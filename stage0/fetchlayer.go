package stage0

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync/atomic"
	"time"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/fetch"
	"github.com/gantry-cri/gantry/stage0/spool"
	"github.com/gantry-cri/gantry/stage0/tree"
)

// extractLayer fetches one layer. A spool is no more trusted than the network: when it
// had a part in what came out wrong, it is dropped and the layer fetched again, once.
// So it is when the disk is full: there may be room for the tree alone.
func (p *Pipeline) extractLayer(ctx context.Context, remote fetch.Remote, l layer, times *fetchTimes) (readyLayer, error) {
	if err := context.Cause(ctx); err != nil {
		return readyLayer{}, err // another layer failed before this one began
	}
	s, err := p.openSpool(ctx, remote, l)
	if err != nil {
		return readyLayer{}, err
	}
	made, err := p.passLayer(ctx, remote, l, s, times)
	full := errors.Is(err, errdefs.ErrNoSpace)
	guilty := s.Have() > 0 || s != nil && full // also when it has given way meanwhile
	if err == nil || !guilty || isSourceError(ctx, err) {
		return readyLayer{made, s}, errors.Join(err, leaveSpool(ctx, s, err))
	}
	if s.Kept() {
		p.spoolLost(l, err)
	}
	if dropErr := s.Drop(); dropErr != nil {
		return readyLayer{}, errors.Join(err, dropErr)
	}
	s = nil
	if !full {
		if s, err = p.openSpool(ctx, remote, l); err != nil {
			return readyLayer{}, err
		}
	}
	made, err = p.passLayer(ctx, remote, l, s, times)
	return readyLayer{made, s}, errors.Join(err, leaveSpool(ctx, s, err))
}

// passLayer downloads, verifies and extracts a layer in one pass. What the spool has is
// read from there, what it has not goes into it.
func (p *Pipeline) passLayer(ctx context.Context, remote fetch.Remote, l layer, s *spool.Spool, times *fetchTimes) (pending *tree.Pending, err error) {
	err = p.pass(ctx, l, times, func(r *meteredReader) error {
		start := time.Now()
		blob, err := p.openBlob(ctx, remote, l, s)
		if err != nil {
			return err
		}
		r.blob = blob
		pending, err = p.Trees.Extract(ctx, l.Layer, r)
		times.pass(r, time.Since(start))
		return errors.Join(err, blob.Close())
	})
	if err != nil && pending != nil {
		return nil, errors.Join(err, pending.Discard())
	}
	return pending, err
}

// pass waits for a slot, tells that a layer is fetched while read reads it, and then
// what came of it.
func (p *Pipeline) pass(ctx context.Context, l layer, times *fetchTimes, read func(*meteredReader) error) error {
	collector.begin()
	defer collector.end()
	release, err := p.slots.acquire(ctx, p.layersInAll(), l.share, l.MediaType)
	if err != nil {
		return err
	}
	defer release()
	r := &meteredReader{pipeline: p, layer: l, times: times}
	p.layerIs(l, LayerFetching, 0)
	err = read(r)
	state := LayerDone
	if err != nil {
		state = LayerFailed
	}
	p.layerIs(l, state, r.got.Load())
	return err
}

func (p *Pipeline) openBlob(ctx context.Context, remote fetch.Remote, l layer, s *spool.Spool) (io.ReadCloser, error) {
	if s == nil {
		blob, err := remote.Blob(ctx, l.desc)
		return &countedBlob{blob, p}, err
	}
	rest, err := remote.(fetch.Resumable).BlobFrom(ctx, l.desc, s.Have()) // openSpool has asked
	if err != nil {
		return nil, err
	}
	return s.Reader(&countedBlob{rest, p}, func(err error) { p.spoolLost(l, err) }), nil
}

// openSpool returns nil for a layer that is not spooled.
func (p *Pipeline) openSpool(ctx context.Context, remote fetch.Remote, l layer) (*spool.Spool, error) {
	if _, ok := remote.(fetch.Resumable); !ok || p.SpoolAbove <= 0 || l.Size <= p.SpoolAbove {
		return nil, nil
	}
	s, err := spool.Open(ctx, p.Images.TempDir(), l.Digest, l.Size)
	if errors.Is(err, errdefs.ErrBusy) || errors.Is(err, errdefs.ErrNoSpace) {
		p.spoolLost(l, err)
		return nil, nil
	}
	return s, err
}

// leaveSpool keeps a spool until its tree is committed, and after an error that says
// nothing against it for the next Fetch.
func leaveSpool(ctx context.Context, s *spool.Spool, err error) error {
	switch {
	case err == nil:
		return nil
	case isSourceError(ctx, err) && !errors.Is(err, errdefs.ErrNoSpace):
		return s.Close()
	}
	return s.Drop()
}

// isSourceError tells whether it was the source that failed, or the wait for it that
// ended, and not what came.
func isSourceError(ctx context.Context, err error) bool {
	return ctx.Err() != nil || slices.ContainsFunc(sourceErrors, func(class error) bool { return errors.Is(err, class) })
}

func (p *Pipeline) spoolLost(l layer, err error) {
	if p.Observer != nil {
		p.Observer.SpoolLost(l.Digest, err)
	}
}

// countedBlob counts what comes from the source.
type countedBlob struct {
	io.ReadCloser
	pipeline *Pipeline
}

// Read is part of io.Reader.
func (c *countedBlob) Read(b []byte) (int, error) {
	n, err := c.ReadCloser.Read(b)
	c.pipeline.fetched(n)
	return n, err
}

// meteredReader tells how long its reader waited for bytes. After a pass that
// failed it may still be in a Read.
type meteredReader struct {
	blob     io.Reader
	pipeline *Pipeline
	layer    layer
	times    *fetchTimes
	waited   atomic.Int64 // nanoseconds
	got      atomic.Int64 // bytes, from source and spool
}

// Read is part of io.Reader.
func (r *meteredReader) Read(b []byte) (int, error) {
	start := time.Now()
	n, err := r.blob.Read(b)
	r.waited.Add(int64(time.Since(start)))
	r.times.got.Add(int64(n))
	if n > 0 {
		r.pipeline.layerIs(r.layer, LayerFetching, r.got.Add(int64(n)))
	}
	return n, err
}
