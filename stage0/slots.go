package stage0

import (
	"context"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"

	"github.com/gantry-cri/gantry/stage0/tree"
)

const (
	// minParallel is how many layers of an image are fetched at once on a node of few
	// cores, where most of them wait for the network most of the time.
	minParallel = 3
	// imagesAtOnce is how many images have as many layers in flight as one may have.
	imagesAtOnce = 2
	// imageMemory is what the passes over an image's layers may have in memory at once,
	// bytes. With the garbage that gcPercent allows, what decoders that have ended leave
	// behind and what the code itself takes it stays below 64 MB.
	imageMemory = 28 << 20
	// gcPercent is how much garbage there may be while layers are fetched, by what is in
	// use. Go's own 100 would double that. It is buffers without pointers, so it costs
	// next to nothing to look at it twice as often.
	gcPercent = 50
)

// layersOfImage is how many layers of one image are fetched at once.
func (p *Pipeline) layersOfImage() int {
	if p.MaxDownloads > 0 {
		return p.MaxDownloads
	}
	return max(minParallel, runtime.GOMAXPROCS(0))
}

func (p *Pipeline) layersInAll() int {
	if p.MaxDownloadsTotal > 0 {
		return p.MaxDownloadsTotal
	}
	return imagesAtOnce * p.layersOfImage()
}

// slots bounds how many layers are fetched at once, of all images together. A slot that
// becomes free goes to the image with the fewest, and of several to the one that has
// waited longest: a small image waits for one layer of a large one to be done, not for
// all of them. Who has a slot waits for no lock.
type slots struct {
	mu      sync.Mutex
	used    int
	waiting []*waiter // in the order in which they came
}

// share is what one Fetch has of the slots.
type share struct {
	slots  int
	memory int64 // bytes of its passes
}

type waiter struct {
	share   *share
	memory  int64
	granted chan struct{} // closed when it has a slot
}

// acquire waits for one of limit slots, and for the image's memory, and returns what
// gives them back.
func (s *slots) acquire(ctx context.Context, limit int, to *share, mediaType string) (release func(), err error) {
	w := &waiter{share: to, memory: tree.Memory(mediaType), granted: make(chan struct{})}
	s.mu.Lock()
	s.waiting = append(s.waiting, w)
	s.grant(limit)
	s.mu.Unlock()
	release = func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.used--
		w.share.slots--
		w.share.memory -= w.memory
		s.grant(limit)
	}
	select {
	case <-w.granted:
		return release, nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	i := slices.Index(s.waiting, w)
	if i >= 0 {
		s.waiting = slices.Delete(s.waiting, i, i+1)
	}
	s.mu.Unlock()
	if i < 0 { // it was granted at the same moment
		release()
	}
	return nil, context.Cause(ctx)
}

// grant gives the free slots away. s.mu is held.
func (s *slots) grant(limit int) {
	for s.used < limit {
		next := -1
		for i, w := range s.waiting {
			if w.share.slots > 0 && w.share.memory+w.memory > imageMemory {
				continue
			}
			if next < 0 || w.share.slots < s.waiting[next].share.slots {
				next = i
			}
		}
		if next < 0 {
			return
		}
		w := s.waiting[next]
		s.waiting = slices.Delete(s.waiting, next, next+1)
		s.used++
		w.share.slots++
		w.share.memory += w.memory
		close(w.granted)
	}
}

// collector is the garbage collector, of which a process has one.
var collector gc

// gc makes the garbage collector run more often while layers are fetched.
type gc struct {
	mu     sync.Mutex
	passes int
	before int // the percentage without us
}

func (g *gc) begin() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.passes++; g.passes > 1 {
		return
	}
	g.before = debug.SetGCPercent(gcPercent)
	if g.before < gcPercent { // GOGC in the environment, or off
		debug.SetGCPercent(g.before)
	}
}

func (g *gc) end() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.passes--; g.passes == 0 {
		debug.SetGCPercent(g.before)
	}
}
