package tree

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/failpoint"
	"github.com/gantry-cri/gantry/stage0/inflate"
)

// Extract reads one layer's blob and writes its files, in one pass, into an
// entry of tmp/ that nobody sees before Commit. It reads at most l.Size bytes
// and all of them, also those behind the end of the compressed stream.
//
// On an error nothing remains on disk. A blob or a tar with another digest or
// size than l says is ErrUnverified, and that is said before anything that may
// follow from it; an archive that cannot be a layer or passes a limit is
// ErrInvalid; an unknown media type is ErrUnsupported; a full disk is
// ErrNoSpace. When ctx ends, so does Extract, without waiting for a Read in
// progress: after an error the blob may still be in one, and the caller, who
// owns it, closes it.
func (s *Store) Extract(ctx context.Context, l Layer, blob io.Reader) (*Pending, error) {
	p, err := s.extract(ctx, l, blob)
	if err != nil {
		return nil, fmt.Errorf("extract layer %s: %w", l.Digest, err)
	}
	return p, nil
}

func (s *Store) extract(ctx context.Context, l Layer, blob io.Reader) (*Pending, error) {
	open, err := decompressor(l.MediaType)
	if err != nil {
		return nil, err
	}
	if err := validate(l); err != nil {
		return nil, err
	}
	p, err := s.newEntry(ctx)
	if err != nil {
		return nil, err
	}
	limits := s.Limits.withDefaults()
	err = s.write(p, limits, func(w *writer) error {
		p.name, p.meta.DiffID = Name(l.DiffID), l.DiffID
		return stream(ctx, l, flow{blob: blob, open: open, writer: w, length: limits.length(l.Size)})
	})
	if err != nil {
		return nil, err
	}
	return p, nil
}

// write makes p's files of the archive that stream has the writer read, its record and
// what meta.json tells; stream sets name and keys of p. What failed is discarded.
func (s *Store) write(p *Pending, limits Limits, stream func(*writer) error) error {
	w, err := s.newWriter(p.path, limits)
	if err == nil {
		w.seen = s.written.Add
		s.archives.Add(1)
		defer s.archives.Add(-1)
		w.alone = func() bool { return s.archives.Load() == 1 }
		err = w.recorded(func() error { return stream(w) })
		m := w.meta()
		m.DiffID, m.ACI, m.TarSplit = p.meta.DiffID, p.meta.ACI, true
		p.meta = m
		err = errors.Join(err, w.close())
	}
	if err == nil {
		failpoint.Hit(failpoint.TreeExtracted)
		err = writeMeta(p.path, p.meta)
	}
	if err != nil {
		s.written.Wait()
		return errors.Join(err, p.Discard())
	}
	failpoint.Hit(failpoint.TreeDescribed)
	return nil
}

// recorded has the archive's record written while the archive streams in.
func (w *writer) recorded(stream func() error) (err error) {
	if w.split, err = newSplitter(w.tmp); err != nil {
		return err
	}
	if err := stream(); err != nil {
		_ = w.split.close() // of what is deleted
		return err
	}
	return w.split.close()
}

func validate(l Layer) error {
	if l.Size < 0 {
		return fmt.Errorf("size %d: %w", l.Size, errdefs.ErrInvalid)
	}
	if err := l.Digest.Validate(); err != nil {
		return fmt.Errorf("digest %q: %w: %w", l.Digest, errdefs.ErrInvalid, err)
	}
	if err := l.DiffID.Validate(); err != nil {
		return fmt.Errorf("diff ID %q: %w: %w", l.DiffID, errdefs.ErrInvalid, err)
	}
	return nil
}

// flow is what one layer streams through.
type flow struct {
	blob   io.Reader
	open   func(io.Reader) (decoder, error)
	writer *writer
	length lengthLimit
}

// stream runs the pipeline of one layer: this goroutine parses and writes,
// three others read and hash the blob, decompress, and hash the tar.
//
// A stage that finds its input malformed does not stop those before it: they
// run on to the end, so that a damaged download is reported as such and not as
// what it did to a later stage. A limit, an entry that is refused, the disk and
// the end of ctx stop all at once.
func stream(parent context.Context, l Layer, f flow) error {
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)

	packed, plain := newRing(ctx, 1), newRing(ctx, 2)
	var read, unpack, hash result
	read.start(func() error { return readBlob(packed, l, f.blob) })
	unpack.start(func() error {
		err := decompress(plain, f.open, packed.reader(0), f.length)
		if errors.Is(err, errLimit) {
			cancel(err)
		}
		return err
	})
	hash.start(func() error { return verifyTar(plain.reader(1), l.DiffID) })

	parsed := f.writer.layer(ctx, plain.reader(0))
	if parsed != nil && !errors.Is(parsed, errArchive) {
		cancel(parsed)
	}
	<-unpack.done
	<-hash.done
	// The reader alone may hang in a Read, and is not waited for once all is cancelled.
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-read.done:
	}
	for _, err := range []error{read.err, unpack.err, parsed, hash.err} {
		if err != nil {
			return err
		}
	}
	return nil
}

// result is the outcome of a goroutine; err is set when done is closed.
type result struct {
	done chan struct{}
	err  error
}

func (r *result) start(f func() error) {
	r.done = make(chan struct{})
	go func() {
		defer close(r.done)
		r.err = f()
	}()
}

const (
	chunkSize = 256 << 10
	ringSize  = 4
)

// ring carries a stream from one writer to several readers in chunks. Its
// fixed number of chunks bounds the memory, and holds the writer back.
type ring struct {
	ctx     context.Context //nolint:containedctx // the ring lives within one call
	free    chan *chunk
	readers []chan *chunk
}

type chunk struct {
	data []byte // the part of buf that is filled
	buf  []byte // with the room around it that inflate needs

	mu   sync.Mutex
	uses int // readers that have not given it back
}

// room is what is to be filled.
func (c *chunk) room() []byte { return c.buf[inflate.Window:] }

func newRing(ctx context.Context, readers int) *ring {
	r := &ring{ctx: ctx, free: make(chan *chunk, ringSize), readers: make([]chan *chunk, readers)}
	for range ringSize {
		r.free <- &chunk{buf: make([]byte, inflate.Window+chunkSize+inflate.Slack)}
	}
	for i := range r.readers {
		r.readers[i] = make(chan *chunk, ringSize) // a send never waits
	}
	return r
}

// next returns an empty chunk to fill, waiting for the slowest reader.
func (r *ring) next() (*chunk, error) {
	select {
	case c := <-r.free:
		return c, nil
	case <-r.ctx.Done():
		return nil, context.Cause(r.ctx)
	}
}

// send hands n bytes of the chunk to all readers.
func (r *ring) send(c *chunk, n int) {
	c.data, c.uses = c.room()[:n], len(r.readers)
	for _, out := range r.readers {
		out <- c
	}
}

// close ends the stream for all readers.
func (r *ring) close() {
	for _, out := range r.readers {
		close(out)
	}
}

func (r *ring) release(c *chunk) {
	c.mu.Lock()
	c.uses--
	last := c.uses == 0
	c.mu.Unlock()
	if last {
		r.free <- c
	}
}

func (r *ring) reader(i int) *ringReader { return &ringReader{ring: r, in: r.readers[i]} }

// ringReader is one reader's side of a ring as an io.Reader. It ends with
// io.EOF at the end of the stream, whether the writer was content or not: the
// writer's own error says so.
type ringReader struct {
	ring *ring
	in   chan *chunk
	cur  *chunk
	rest []byte
}

func (r *ringReader) Read(p []byte) (int, error) {
	rest, err := r.peek()
	if err != nil {
		return 0, err
	}
	n := copy(p, rest)
	r.skip(n)
	return n, nil
}

// peek returns the rest of the current chunk or the next one, not empty.
func (r *ringReader) peek() ([]byte, error) {
	for len(r.rest) == 0 {
		if r.cur != nil {
			r.ring.release(r.cur)
			r.cur = nil
		}
		select {
		case c, ok := <-r.in:
			if !ok {
				return nil, io.EOF
			}
			r.cur, r.rest = c, c.data
		case <-r.ring.ctx.Done():
			return nil, context.Cause(r.ring.ctx)
		}
	}
	return r.rest, nil
}

func (r *ringReader) skip(n int) { r.rest = r.rest[n:] }

// drain reads to the end of the stream.
func (r *ringReader) drain() error {
	for {
		rest, err := r.peek()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		r.skip(len(rest))
	}
}
