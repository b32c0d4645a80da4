package tree

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	// poolWorkers is how many files are finished at once (docs/adr/0013).
	poolWorkers = 4
	// poolFiles is how many files are in memory, those that wait for a worker included.
	poolFiles = 3 * poolWorkers
	// poolFile is the size up to which a file goes through the pool, bytes: its content
	// is in memory as a whole.
	poolFile = smallFile
)

// pool writes the contents of small files, and gives them what belongs to them, while
// the archive is read on. Names come about in the archive's order: a file is made, and is
// given away with nothing but its descriptor, which no later entry can change.
type pool struct {
	jobs chan *pooled
	free chan *pooled // as many as there are
	work sync.WaitGroup

	blocks atomic.Int64 // of 512 bytes, that the files take
	failed atomic.Pointer[error]
}

// pooled is a file in the pool. The pool owns the descriptor.
type pooled struct {
	fd     int
	header *tar.Header
	buf    []byte // begins with the content
}

func (f *pooled) content() []byte { return f.buf[:f.header.Size] }

// pools says whether the pool finishes the file: a small one while no other archive
// keeps the processors busy. What it does not do is to leave out what the file system
// cannot keep.
func (w *writer) pools(h *tar.Header) bool {
	return w.alone != nil && w.alone() && w.split != nil && h.Size <= poolFile && !isSparse(h) && !hasXattrs(h)
}

// givePool reads the content and gives the file, which is the pool's from then on.
func (w *writer) givePool(ctx context.Context, f opened, h *tar.Header, content io.Reader) error {
	if w.pool == nil {
		w.pool = newPool()
	}
	given := w.pool.take()
	given.fd, given.header = f.fd, h
	if err := w.readContent(ctx, f.place, given, content); err != nil {
		w.pool.giveBack(given)
		return errors.Join(err, unix.Close(f.fd))
	}
	w.pool.give(given)
	return nil
}

// readContent reads all of a file's content and has its record written.
func (w *writer) readContent(ctx context.Context, p place, f *pooled, content io.Reader) error {
	if err := w.spend(f.header); err != nil || f.header.Size == 0 {
		return err
	}
	buf := f.content()
	name := join(p.dir, p.name)
	w.split.begin(name, w.dirs.marks.generations[name])
	w.split.into(buf, 0)
	n, err := fill(content, buf)
	w.split.end()
	if n < len(buf) {
		return readError(ctx, err)
	}
	return nil
}

// settle waits until the pool has finished all files.
func (w *writer) settle() error {
	if w.pool == nil {
		return nil
	}
	return w.pool.wait()
}

// newPool starts the workers, which stop ends.
func newPool() *pool {
	p := &pool{jobs: make(chan *pooled, poolFiles), free: make(chan *pooled, poolFiles)}
	for range poolFiles {
		p.free <- &pooled{}
	}
	for range poolWorkers {
		go func() {
			for f := range p.jobs {
				p.finish(f)
			}
		}()
	}
	return p
}

// take returns an empty file with a buffer, waiting for one.
func (p *pool) take() *pooled {
	f := <-p.free
	if f.buf == nil {
		f.buf = make([]byte, poolFile)
	}
	return f
}

// give has the file finished.
func (p *pool) give(f *pooled) {
	p.work.Add(1)
	p.jobs <- f // never waits: there are no more files than have room
}

// giveBack is for a file that came to nothing.
func (p *pool) giveBack(f *pooled) {
	*f = pooled{buf: f.buf}
	p.free <- f
}

func (p *pool) finish(f *pooled) {
	defer p.work.Done()
	blocks, err := f.write()
	if err != nil {
		err = entryError(f.header, err)
		p.failed.CompareAndSwap(nil, &err)
	}
	p.blocks.Add(blocks)
	p.giveBack(f)
}

// write does by the descriptor alone what regular does to the files that it keeps, and
// returns the blocks that the file takes.
func (f *pooled) write() (blocks int64, err error) {
	defer func() {
		if closed := unix.Close(f.fd); err == nil {
			err = syscallError(closed)
		}
	}()
	if err := writeAll(f.fd, f.content()); err != nil {
		return 0, fmt.Errorf("write: %w", syscallError(err))
	}
	return describe(f.fd, f.header)
}

// wait returns when all files that were given are finished, and the first error.
func (p *pool) wait() error {
	p.work.Wait()
	return p.err()
}

func (p *pool) err() error {
	if err := p.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// stop waits for all files and ends the workers.
func (p *pool) stop() {
	p.work.Wait()
	close(p.jobs)
}
