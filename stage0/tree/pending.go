package tree

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/durable"
	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/failpoint"
)

// tmpPrefix begins the names of this package's entries in tmp/.
const tmpPrefix = "tree-"

// Pending is an extracted layer that is not visible yet. It holds the lock of
// its entry in tmp/ until Commit or Discard; a process that dies drops it, and
// Sweep finds the rest.
type Pending struct {
	name  string
	meta  Meta
	path  string   // tmp/tree-…
	lock  *os.File // nil: committed or discarded
	began int64    // counted by the store: more than that of every Pending that had its lock before
}

// Name returns the name under trees/ that Commit gives the tree.
func (p *Pending) Name() string { return p.name }

// Meta returns what will be recorded of the tree.
func (p *Pending) Meta() Meta { return p.meta }

// Discard deletes the tree. It may be called again, and after Commit it does nothing.
func (p *Pending) Discard() error {
	if p.lock == nil {
		return nil
	}
	err := removeAll(context.Background(), p.path)
	err = errors.Join(err, p.lock.Close())
	p.lock = nil
	if err != nil {
		return fmt.Errorf("discard tree: %w", err)
	}
	return nil
}

// Commit makes the trees durable by one sync of the file system and then
// visible. nil means that all of them are present, not that this call put
// them there: a tree that somebody else committed meanwhile is kept, and ours
// is discarded. After an error some may be visible, each complete; Discard is
// right for all of them.
func (s *Store) Commit(ctx context.Context, ps ...*Pending) error {
	if len(ps) == 0 {
		return nil
	}
	err := s.sync.run(ctx)
	s.written.Wait()
	if err == nil {
		err = checkWritten(ps)
	}
	if err != nil {
		return fmt.Errorf("commit trees: %w", durable.NoSpace(err))
	}
	failpoint.Hit(failpoint.TreesSynced)
	for _, p := range ps {
		if err := s.publish(p); err != nil {
			return fmt.Errorf("commit tree of %s: %w", p.meta.DiffID, err)
		}
		failpoint.Hit(failpoint.TreeRenamed)
	}
	if err := durable.SyncDir(s.trees); err != nil {
		return fmt.Errorf("commit trees: %w", err)
	}
	failpoint.Hit(failpoint.TreesCommitted)
	return nil
}

// checkWritten reports what could not be written since the trees were begun. The kernel
// tells of a failed write once: whoever else syncs the file system, our writeback among
// them, may have been told in our place. Each open file is told of what came after it
// was opened, and the oldest lock was before all of the files were made.
func checkWritten(ps []*Pending) error {
	var oldest *Pending
	for _, p := range ps {
		if p.lock != nil && (oldest == nil || p.began < oldest.began) {
			oldest = p
		}
	}
	if oldest == nil {
		return nil
	}
	return durable.FileSystemOf(oldest.lock).Sync()
}

func (s *Store) publish(p *Pending) error {
	if p.lock == nil {
		return nil
	}
	target := s.own(p.name)
	err := unix.Renameat2(unix.AT_FDCWD, p.path, unix.AT_FDCWD, target, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) {
		// A file system without the flag: a tree is never an empty directory, so
		// a plain rename does not replace one either.
		err = unix.Rename(p.path, target)
	}
	if errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ENOTEMPTY) {
		_, ok, err := s.has(p.name, p.meta.DiffID)
		if err != nil {
			return err
		}
		if !ok {
			return fmt.Errorf("%s has no %s: %w", target, metaFile, errdefs.ErrState)
		}
		return p.Discard()
	}
	if err != nil {
		return fmt.Errorf("rename to %s: %w", target, durable.NoSpace(err))
	}
	err = p.lock.Close()
	p.lock = nil
	return err
}

// newEntry makes a fresh entry in tmp/ with an empty rootfs/, and locks it. What it
// returns has no name and no record yet.
func (s *Store) newEntry(ctx context.Context) (*Pending, error) {
	for {
		path, err := os.MkdirTemp(s.tmp, tmpPrefix)
		if err != nil {
			return nil, fmt.Errorf("make tree: %w", durable.NoSpace(err))
		}
		failpoint.Hit(failpoint.TreeEntryMade)
		lock, err := durable.Lock(ctx, path, durable.Exclusive)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a sweep came between
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("make tree: %w", err), os.Remove(path))
		}
		if err := os.Mkdir(filepath.Join(path, rootfsName), 0o755); err != nil {
			return nil, errors.Join(fmt.Errorf("make tree: %w", durable.NoSpace(err)), os.RemoveAll(path), lock.Close())
		}
		failpoint.Hit(failpoint.TreeEntryLocked)
		return &Pending{path: path, lock: lock, began: s.begun.Add(1)}, nil
	}
}

// syncer lets commits that come together share one syncfs: who comes while
// one runs cannot use it, since it may have passed their files, and waits for
// the next.
type syncer struct {
	path string

	mu      sync.Mutex
	running *syncRun // begun
	next    *syncRun // waits for running to end
}

type syncRun struct {
	done chan struct{}
	err  error
}

func (s *syncer) run(ctx context.Context) error {
	s.mu.Lock()
	mine := s.next
	if mine == nil {
		mine = &syncRun{done: make(chan struct{})}
		prev := s.running
		if prev == nil {
			s.running = mine
		} else {
			s.next = mine
		}
		go s.do(mine, prev)
	}
	s.mu.Unlock()
	select {
	case <-mine.done:
		return mine.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s *syncer) do(r, prev *syncRun) {
	if prev != nil {
		<-prev.done
		s.mu.Lock()
		s.running, s.next = r, nil // from here on nobody joins this run
		s.mu.Unlock()
	}
	r.err = durable.SyncFS(s.path)
	s.mu.Lock()
	if s.running == r {
		s.running = nil
	}
	s.mu.Unlock()
	close(r.done)
}
