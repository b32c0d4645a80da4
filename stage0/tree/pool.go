package tree

import (
	"archive/tar"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	// poolWorkers is how many files are finished at once, as was
	// measured to be best (docs/adr/0013).
	poolWorkers = 4
	// poolFile is the size up to which a file goes through the pool, bytes: its content
	// is in memory as a whole.
	poolFile = 64 << 10
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
	fd      int
	header  *tar.Header
	content []byte
	buf     []byte // in which content lies
}

// newPool starts the workers, which stop ends.
func newPool() *pool {
	p := &pool{jobs: make(chan *pooled, 2*poolWorkers), free: make(chan *pooled, 3*poolWorkers)}
	for range cap(p.free) {
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

// write is what regular does to a file with extended attributes or more content.
func (f *pooled) write() (blocks int64, err error) {
	defer func() {
		if closed := unix.Close(f.fd); err == nil {
			err = syscallError(closed)
		}
	}()
	if err := writeAll(f.fd, f.content); err != nil {
		return 0, fmt.Errorf("write: %w", syscallError(err))
	}
	st, err := attributes(f.fd, f.header)
	if err != nil {
		return 0, err
	}
	times := timespecs(f.header.AccessTime, f.header.ModTime)
	if err := unix.UtimesNanoAt(f.fd, "", times[:], unix.AT_EMPTY_PATH); err != nil {
		return 0, fmt.Errorf("set times: %w", syscallError(err))
	}
	return st.Blocks, nil
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
