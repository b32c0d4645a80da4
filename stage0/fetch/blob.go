package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// maxConfig is the largest configuration that is read into memory, bytes.
const maxConfig = 8 << 20

// Blob is part of Remote.
func (m *remote) Blob(ctx context.Context, layer ocispec.Descriptor) (io.ReadCloser, error) {
	return m.BlobFrom(ctx, layer, 0)
}

// BlobFrom is part of Resumable.
func (m *remote) BlobFrom(ctx context.Context, layer ocispec.Descriptor, from int64) (io.ReadCloser, error) {
	r, err := m.open(ctx, layer, from)
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", layer.Digest, err)
	}
	return r, nil
}

// open connects at the first Read.
func (m *remote) open(ctx context.Context, desc ocispec.Descriptor, from int64) (*blobReader, error) {
	// A manifest may send its reader to any address in the world, or behind the
	// firewall; docker stopped to follow.
	elsewhere := desc.URLs
	desc.URLs = nil
	ctx, tr := m.withTrace(discardLogs(ctx))
	ctx, cancel := context.WithCancelCause(ctx)
	b := &blobReader{ctx: ctx, cancel: cancel, trace: tr, desc: desc, elsewhere: elsewhere, fetcher: m.fetcher, idle: m.cfg.IdleTimeout}
	b.got.Store(from)
	b.mark = from
	b.timer = time.AfterFunc(b.idle, b.silent)
	b.timer.Stop()
	if err := b.connect(); err != nil {
		err = b.explain(err)
		cancel(nil)
		return nil, err
	}
	return b, nil
}

// read returns a small object whose bytes match the descriptor.
func (m *remote) read(ctx context.Context, desc ocispec.Descriptor, limit int64) (_ []byte, err error) {
	if desc.Size > limit {
		return nil, fmt.Errorf("it has %d bytes, at most %d are read: %w", desc.Size, limit, errdefs.ErrInvalid)
	}
	r, err := m.open(ctx, desc, 0)
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

// stallShare is the part of the idle time-out for which a transfer that had begun
// may be silent before it is taken up on another connection.
const stallShare = 3

// resumeProgress is how many bytes make a transfer that broke again a new trouble.
const resumeProgress = 64 << 10

// errStalled says that a transfer stopped without an end.
var errStalled = errors.New("the transfer stopped")

// blobReader reads one object and counts. A transfer that breaks or stops goes on
// where it was, asked for at the registry again, since what it redirected to may
// be valid no longer. It ends when no byte comes for a while.
type blobReader struct {
	ctx     context.Context //nolint:containedctx // of this one download; Read has none
	cancel  context.CancelCauseFunc
	trace   *trace
	desc    ocispec.Descriptor
	fetcher remotes.Fetcher
	idle    time.Duration
	timer   *time.Timer // runs while a Read waits: a slow disk is not a slow registry

	elsewhere []string // the addresses that the manifest names, and that are not asked

	mu    sync.Mutex // held by Read and by Close, so that rc is not closed under a Read
	rc    io.ReadCloser
	drop  context.CancelCauseFunc // ends the connection of rc alone
	begun bool                    // rc has given a byte
	got   atomic.Int64            // bytes; written under mu
	mark  int64                   // got at the last time that the transfer broke
	err   error                   // ends all further reads
}

// connect makes rc a reader of what is left. It connects at its first Read.
func (b *blobReader) connect() error {
	ctx, drop := context.WithCancelCause(b.ctx)
	rc, err := b.fetcher.Fetch(ctx, b.desc)
	if err != nil {
		drop(nil)
		return err
	}
	if got := b.got.Load(); got > 0 {
		seeker, ok := rc.(io.Seeker)
		if !ok {
			drop(nil)
			return errors.Join(errors.ErrUnsupported, rc.Close())
		}
		if _, err := seeker.Seek(got, io.SeekStart); err != nil {
			drop(nil)
			return errors.Join(err, rc.Close())
		}
	}
	b.rc, b.drop, b.begun = rc, drop, false
	return nil
}

func (b *blobReader) silent() {
	b.cancel(fmt.Errorf("got no byte of %s for %s, the idle time-out (pullIdleTimeout), after %d of %d: %w",
		b.desc.Digest, b.idle, b.got.Load(), b.desc.Size, errdefs.ErrUnavailable))
}

// Read is part of io.Reader.
func (b *blobReader) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return 0, b.err
	}
	b.timer.Reset(b.idle)
	defer b.timer.Stop()
	for {
		n, err := b.readOnce(p)
		got := b.got.Add(int64(n))
		if err == nil {
			return n, nil
		}
		if err == io.EOF && got == b.desc.Size { //nolint:errorlint // one that is wrapped is a connection that closed, not the end of the bytes
			b.err = io.EOF
			return n, b.err
		}
		if err == io.EOF { //nolint:errorlint // as above
			b.err = fmt.Errorf("%s: it has %d bytes, %d were promised: %w", b.trace.where(), got, b.desc.Size, errdefs.ErrUnverified)
			return n, b.err
		}
		if b.err = b.resume(err); b.err != nil || n > 0 {
			return n, b.err
		}
	}
}

// readOnce reads from the present connection, and drops it when it had begun and
// stops.
func (b *blobReader) readOnce(p []byte) (int, error) {
	if b.begun {
		drop := b.drop
		stall := time.AfterFunc(b.idle/stallShare, func() { drop(errStalled) })
		defer stall.Stop()
	}
	n, err := b.rc.Read(p)
	b.begun = b.begun || n > 0
	return n, err
}

// resume connects again after err, if that can help, or says what went wrong.
func (b *blobReader) resume(err error) error {
	if b.ctx.Err() != nil || !errors.Is(b.trace.classify(b.ctx, err), errdefs.ErrUnavailable) {
		return b.explain(err)
	}
	got := b.got.Load()
	if got-b.mark >= resumeProgress {
		b.trace.progress()
	}
	b.mark = got
	pause, ok := b.trace.mayRetry(0)
	if !ok {
		return b.explain(err)
	}
	b.drop(nil)
	_ = b.rc.Close() // what it says about a connection that broke is no news
	if err := sleep(b.ctx, pause); err != nil {
		return b.explain(err)
	}
	if err := b.connect(); err != nil {
		return b.explain(err)
	}
	return nil
}

func (b *blobReader) explain(err error) error {
	return explainForeign(b.elsewhere, b.trace.explain(b.ctx, err))
}

// explainForeign adds to an error why a layer is not found that its manifest would have
// fetched from other addresses. It does not say which: they may be signed.
func explainForeign(elsewhere []string, err error) error {
	if len(elsewhere) == 0 || !errors.Is(err, errdefs.ErrNotFound) {
		return err
	}
	return fmt.Errorf("it is a foreign layer, and the %d addresses that its manifest names for it are never asked; push it beside the image: %w", len(elsewhere), err)
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
