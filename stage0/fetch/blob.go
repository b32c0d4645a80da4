package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// maxConfig is the largest configuration that is read into memory, bytes.
const maxConfig = 8 << 20

// Blob is part of Remote.
func (m *remote) Blob(ctx context.Context, layer ocispec.Descriptor) (io.ReadCloser, error) {
	r, err := m.open(ctx, layer)
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", layer.Digest, err)
	}
	return r, nil
}

// open connects at the first Read.
func (m *remote) open(ctx context.Context, desc ocispec.Descriptor) (*blobReader, error) {
	// A manifest may send its reader to any address in the world, or behind the
	// firewall; docker stopped to follow.
	desc.URLs = nil
	ctx, tr := withTrace(discardLogs(ctx))
	ctx, cancel := context.WithCancelCause(ctx)
	rc, err := m.fetcher.Fetch(ctx, desc)
	if err != nil {
		err = tr.explain(ctx, err)
		cancel(nil)
		return nil, err
	}
	b := &blobReader{ctx: ctx, cancel: cancel, trace: tr, rc: rc, desc: desc, idle: m.cfg.IdleTimeout}
	b.timer = time.AfterFunc(b.idle, b.stalled)
	b.timer.Stop()
	return b, nil
}

// read returns a small object whose bytes match the descriptor.
func (m *remote) read(ctx context.Context, desc ocispec.Descriptor, limit int64) (_ []byte, err error) {
	if desc.Size > limit {
		return nil, fmt.Errorf("it has %d bytes, at most %d are read: %w", desc.Size, limit, errdefs.ErrInvalid)
	}
	r, err := m.open(ctx, desc)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	if got := desc.Digest.Algorithm().FromBytes(data); got != desc.Digest {
		return nil, fmt.Errorf("%s: its digest is %s: %w", r.trace.where(), got, errdefs.ErrUnverified)
	}
	return data, nil
}

// readDocument reads a manifest or an index.
func (m *remote) readDocument(ctx context.Context, desc ocispec.Descriptor) ([]byte, document, error) {
	served := desc.MediaType
	if !indexTypes[served] && !manifestTypes[served] {
		// Only by these does containerd's client know where to ask for it.
		desc.MediaType = ocispec.MediaTypeImageManifest
	}
	data, err := m.read(ctx, desc, docker.MaxManifestSize)
	if err != nil {
		return nil, document{}, fmt.Errorf("manifest %s: %w", desc.Digest, err)
	}
	doc, err := decodeDocument(data, served)
	if err != nil {
		return nil, document{}, fmt.Errorf("manifest %s: %w", desc.Digest, err)
	}
	return data, doc, nil
}

// blobReader reads one object, ends when no byte comes for a while, and counts.
type blobReader struct {
	ctx    context.Context //nolint:containedctx // of this one download; Read has none
	cancel context.CancelCauseFunc
	trace  *trace
	rc     io.ReadCloser
	desc   ocispec.Descriptor
	idle   time.Duration
	timer  *time.Timer // runs while a Read waits: a slow disk is not a slow registry

	mu  sync.Mutex // held by Read and by Close, so that rc is not closed under a Read
	got int64
	err error // ends all further reads
}

func (b *blobReader) stalled() {
	b.cancel(fmt.Errorf("got no byte of %s for %s: %w", b.desc.Digest, b.idle, errdefs.ErrUnavailable))
}

// Read is part of io.Reader.
func (b *blobReader) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return 0, b.err
	}
	b.timer.Reset(b.idle)
	n, err := b.rc.Read(p)
	b.timer.Stop()
	b.got += int64(n)
	if n > 0 {
		b.trace.progress()
	}
	switch {
	case err == io.EOF && b.got == b.desc.Size:
		b.err = io.EOF
	case err == io.EOF:
		b.err = fmt.Errorf("%s: it has %d bytes, %d were promised: %w", b.trace.where(), b.got, b.desc.Size, errdefs.ErrUnverified)
	case err != nil:
		b.err = b.trace.explain(b.ctx, err)
	}
	return n, b.err
}

// Close is part of io.Closer. It ends a Read that another goroutine is in.
func (b *blobReader) Close() error {
	// Ends the request even where containerd's decoders do not close the body
	// below them.
	b.cancel(nil)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.timer.Stop()
	if b.err == nil {
		b.err = fs.ErrClosed
	}
	_ = b.rc.Close() // what it says about a connection that was cut is no news
	return nil
}
