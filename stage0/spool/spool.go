// Package spool keeps the bytes of large blobs while they are downloaded, so that a
// download that ended with its process, or with its node, goes on where it was.
//
//	<dir>/tmp/spool-sha256-<64 hex>  the first bytes of the blob of that digest; flock: who downloads it
//
// A spool is written on the way from the source to whoever reads the blob, once and in
// one pass. It is not synced, and nothing vouches for it: its reader hashes what comes
// out of it as it does what comes from the source, and drops it when that is not the
// blob. A spool that is of no more use is dropped by its owner; one whose owner died
// and that nobody takes up again, by a sweep.
package spool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/gantry-cri/gantry/stage0/durable"
	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/failpoint"
	"github.com/gantry-cri/gantry/stage0/usage"
)

// prefix begins the names of this package's files.
const prefix = "spool-"

// patience is how long a spool is waited for that somebody holds: a process that was
// killed gives up its locks one after another.
const patience = time.Second

// Spool is the file of one blob, locked. A nil Spool is none: it has no bytes, and its
// methods do nothing.
type Spool struct {
	path string
	file *os.File // nil: closed or dropped
	have int64    // bytes that were there when it was opened
	size int64    // of the blob
}

// Open takes the spool of a blob in the directory dir, and makes it if there is none.
// What is longer than the blob is emptied. It returns ErrBusy when somebody else
// downloads the same blob.
func Open(ctx context.Context, dir string, blob digest.Digest, size int64) (*Spool, error) {
	s := &Spool{path: pathOf(dir, blob), size: size}
	if err := s.open(ctx); err != nil {
		return nil, fmt.Errorf("open spool: %w", err)
	}
	failpoint.Hit(failpoint.SpoolOpened)
	return s, nil
}

func (s *Spool) open(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errdefs.ErrBusy)
	defer cancel()
	file, err := durable.LockFile(ctx, s.path)
	if err != nil {
		return err
	}
	info, err := file.Stat()
	if err == nil && info.Size() > s.size {
		err = file.Truncate(0)
	} else if err == nil {
		s.have = info.Size()
	}
	if err != nil {
		durable.Unlock(file)
		return err
	}
	s.file = file
	return nil
}

// Have is how many bytes the spool had when it was opened.
func (s *Spool) Have() int64 {
	if s == nil {
		return 0
	}
	return s.have
}

// Kept tells whether the spool is on disk.
func (s *Spool) Kept() bool { return s != nil && s.file != nil }

// Close gives the spool up and keeps it for the next download, unless it is empty.
func (s *Spool) Close() error {
	if !s.Kept() {
		return nil
	}
	info, err := s.file.Stat()
	if err == nil && info.Size() == 0 {
		return s.Drop()
	}
	durable.Unlock(s.file)
	s.file = nil
	return err
}

// Drop deletes the spool.
func (s *Spool) Drop() error {
	if !s.Kept() {
		return nil
	}
	err := os.Remove(s.path)
	durable.Unlock(s.file)
	s.file = nil
	failpoint.Hit(failpoint.SpoolDropped)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("drop spool: %w", err)
	}
	return nil
}

// Discard deletes the spool of a blob that is complete elsewhere. It leaves one that
// somebody holds.
func Discard(dir string, blob digest.Digest) error {
	_, err := locked(pathOf(dir, blob), func(path string, _ *os.File) (int64, error) { return 0, os.Remove(path) })
	if err != nil {
		return fmt.Errorf("discard spool: %w", err)
	}
	return nil
}

func pathOf(dir string, blob digest.Digest) string {
	return filepath.Join(dir, prefix+blob.Algorithm().String()+"-"+blob.Encoded())
}

// Reader reads a blob: what the spool has, then the rest, which the spool gets.
type Reader struct {
	spool *Spool
	rest  io.ReadCloser
	lost  func(error)

	mu     sync.Mutex // held by Read and by Close, so that the spool is not closed under a Read
	at     int64
	closed bool
}

// Reader returns a reader of the whole blob. rest begins after the bytes that the
// spool has; the reader closes it, and must itself be closed before the spool is. A
// spool that cannot be written is dropped, lost is told why, and reading goes on.
func (s *Spool) Reader(rest io.ReadCloser, lost func(error)) *Reader {
	return &Reader{spool: s, rest: rest, lost: lost}
}

// Read is part of io.Reader.
func (r *Reader) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return 0, fs.ErrClosed
	}
	if r.at < r.spool.have {
		n, err := r.spool.file.ReadAt(p[:min(int64(len(p)), r.spool.have-r.at)], r.at)
		r.at += int64(n)
		if n == 0 && err != nil {
			return 0, fmt.Errorf("read spool: %w", err)
		}
		return n, nil
	}
	if r.at == r.spool.size {
		return 0, io.EOF // rest would ask its source for nothing
	}
	n, err := r.rest.Read(p[:min(int64(len(p)), r.spool.size-r.at)])
	r.keep(p[:n])
	r.at += int64(n)
	return n, err
}

// keep writes what came from rest.
func (r *Reader) keep(p []byte) {
	if !r.spool.Kept() || len(p) == 0 {
		return
	}
	if _, err := r.spool.file.WriteAt(p, r.at); err != nil {
		r.lost(durable.NoSpace(errors.Join(fmt.Errorf("write spool: %w", err), r.spool.Drop())))
	}
}

// Close closes rest, which ends a Read that another goroutine is in.
func (r *Reader) Close() error {
	err := r.rest.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	return err
}

// Sweep deletes the spools of a directory that nobody has open and that got no byte
// since a moment, and returns the bytes on disk that this frees.
func Sweep(dir string, before time.Time) (freed int64, err error) {
	return each(dir, before, os.Remove)
}

// Left returns the bytes on disk that Sweep would free now.
func Left(dir string, before time.Time) (int64, error) {
	return each(dir, before, func(string) error { return nil })
}

// each calls do for the spools that Sweep deletes, with their locks held.
func each(dir string, before time.Time, do func(path string) error) (sum int64, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, fmt.Errorf("sweep spools: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), prefix) {
			continue
		}
		n, err := locked(filepath.Join(dir, e.Name()), func(path string, file *os.File) (int64, error) {
			info, err := file.Stat()
			if err != nil || !info.ModTime().Before(before) {
				return 0, err
			}
			u, err := usage.Single(path)
			if err != nil {
				return 0, err
			}
			return u.Bytes, do(path)
		})
		if err != nil {
			errs = append(errs, fmt.Errorf("sweep spools: %w", err))
		}
		sum += n
	}
	return sum, errors.Join(errs...)
}

// locked calls do with the lock of path held, and not at all if somebody holds it or
// nothing is there.
func locked(path string, do func(path string, file *os.File) (int64, error)) (int64, error) {
	file, err := durable.TryLock(path, durable.Exclusive)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errdefs.ErrBusy) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer durable.Unlock(file)
	return do(path, file)
}
