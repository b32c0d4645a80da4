package tree

import (
	"sync"
	"sync/atomic"

	"github.com/gantry-cri/gantry/stage0/durable"
)

// writebackEvery is after how many bytes of archives what was made of them begins to
// go to disk. A commit's sync finds at most so much left and what a slower disk has not
// taken yet; less would have the disk write the same directories again and again.
const writebackEvery = 64 << 20

// writeback has the files of extractions written to disk while these use the processors
// for the rest, so that the sync of the commit is short. It makes nothing durable that
// anybody relies on.
type writeback struct {
	path string // of the file system

	pending atomic.Int64 // bytes since the last began

	mu      sync.Mutex
	running chan struct{} // closed when it ends; nil while none runs
}

// add counts what was read of an archive.
func (b *writeback) add(n int) {
	if b.pending.Add(int64(n)) < writebackEvery {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.running == nil {
		b.pending.Store(0)
		b.running = make(chan struct{})
		go b.run()
	}
}

func (b *writeback) run() {
	// A write that failed is reported to the commit as well (checkWritten).
	_ = durable.SyncFS(b.path)
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.running)
	b.running = nil
}

// wait returns when none of those that were begun before runs any longer and holds the
// file system open.
func (b *writeback) wait() {
	b.mu.Lock()
	running := b.running
	b.mu.Unlock()
	if running != nil {
		<-running
	}
}
