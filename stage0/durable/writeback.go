package durable

import (
	"sync"
	"sync/atomic"
)

// WriteBack has what is written to a file system go to its disk while there is more to
// write, so that the sync of a commit is short: the disk has its time, and the flush of its
// cache takes the longer the more there is. It makes nothing durable that anybody relies on.
type WriteBack struct {
	path  string
	every int64

	pending atomic.Int64 // bytes since the last began

	mu      sync.Mutex
	running chan struct{} // closed when it ends; nil while none runs
}

// NewWriteBack is for the file system of a directory, and begins to write each time that
// so many bytes were added, one at a time.
func NewWriteBack(path string, every int64) *WriteBack {
	return &WriteBack{path: path, every: every}
}

// Add counts bytes that are to be written.
func (b *WriteBack) Add(n int64) {
	if b.pending.Add(n) < b.every {
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

func (b *WriteBack) run() {
	_ = SyncFS(b.path) // who syncs by a FileSystem is told of failed writes as well
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.running)
	b.running = nil
}

// Wait returns when none of those that were begun before runs any longer and holds the
// file system open.
func (b *WriteBack) Wait() {
	b.mu.Lock()
	running := b.running
	b.mu.Unlock()
	if running != nil {
		<-running
	}
}
