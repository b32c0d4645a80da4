package tree

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/opencontainers/go-digest"

	"github.com/gantry-cri/gantry/stage0/durable"
	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/failpoint"
	"github.com/gantry-cri/gantry/stage0/inode"
	"github.com/gantry-cri/gantry/stage0/readonly"
	"github.com/gantry-cri/gantry/stage0/usage"
)

// Layer is what manifest and configuration promise of one layer.
type Layer struct {
	// Digest and Size are those of the blob as it comes from the registry.
	Digest digest.Digest
	Size   int64
	// DiffID is the digest of the blob's uncompressed tar.
	DiffID digest.Digest
	// MediaType says how the blob is compressed.
	MediaType string
}

// Store is the tree store of one data directory, and of read-only stores that are
// looked in first. It may be used from several goroutines, and several processes may
// have the same directory open.
type Store struct {
	// Limits hold for the extractions that begin after they are set.
	Limits Limits

	trees    string             // absolute path of trees/
	tmp      string             // absolute path of tmp/
	makers   *inode.Maker       // of the files of trees
	sync     syncer             // shares one syncfs between commits
	written  *durable.WriteBack // of extractions
	archives atomic.Int32       // that are being extracted
	begun    atomic.Int64       // entries of tmp
	readOnly []readonly.Dir     // looked in first, never written
}

// writebackEvery is after how many bytes of archives what was made of them begins to
// go to disk. A commit's sync finds at most so much left and what a slower disk has not
// taken yet; less would have the disk write the same directories again and again.
const writebackEvery = 64 << 20

// Open returns the store of the data directory dir and makes its folders when
// they are missing. They are for root alone: trees hold set-id files and devices.
func Open(dir string, readOnly ...readonly.Dir) (*Store, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open tree store: %w", err)
	}
	s := &Store{trees: filepath.Join(abs, treesDir), tmp: filepath.Join(abs, "tmp"), readOnly: readOnly}
	for _, d := range []string{s.trees, s.tmp} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("open tree store: %w", durable.NoSpace(err))
		}
	}
	if s.makers, err = inode.NewMaker(s.tmp); err != nil {
		return nil, fmt.Errorf("open tree store: %w", err)
	}
	s.sync.path, s.written = s.trees, durable.NewWriteBack(s.trees, writebackEvery)
	return s, nil
}

// nameEncoding makes names that are short, legal everywhere and free of the
// characters that overlay's mount options treat specially.
var nameEncoding = base32.StdEncoding.WithPadding(base32.NoPadding)

// Name returns the name under trees/ of the layer with this diff ID: 12
// characters, so that 127 of them fit into overlay's mount options. Equal
// names of different layers are detected by meta.json.
func Name(diffID digest.Digest) string { return hashName(string(diffID)) }

// fixupName returns the name of the fix-up tree of the stack with this chain ID.
func fixupName(chainID digest.Digest) string { return hashName("fixup " + string(chainID)) }

func hashName(s string) string {
	sum := sha256.Sum256([]byte(s))
	return strings.ToLower(nameEncoding.EncodeToString(sum[:])[:12])
}

// Path returns the absolute path of the tree with this name: in the first read-only
// store that has it, else in the data directory, present or not. Its files are under
// Path(name)/rootfs.
func (s *Store) Path(name string) string {
	if d, ok := s.ReadOnly(name); ok {
		return filepath.Join(string(d), treesDir, name)
	}
	return s.own(name)
}

// ReadOnly returns the read-only store that Path finds the tree with this name in,
// and false for all other trees.
func (s *Store) ReadOnly(name string) (readonly.Dir, bool) {
	for _, d := range s.readOnly {
		// A tree that is there is whole. One that cannot be looked at is another's
		// to complain of: who opens it has the better error.
		if _, err := os.Lstat(filepath.Join(string(d), treesDir, name)); err == nil {
			return d, true
		}
	}
	return "", false
}

// own returns the path of a tree in the data directory, the only one that is written.
func (s *Store) own(name string) string { return filepath.Join(s.trees, name) }

// Root returns the absolute path of the files of the tree with this name, as Path.
func (s *Store) Root(name string) string { return filepath.Join(s.Path(name), rootfsName) }

// Dir returns the absolute path of the folder that holds the data directory's trees:
// what overlay.Mount takes.
func (s *Store) Dir() string { return s.trees }

// Lower returns trees as overlay.Plan takes them: by name where they lie in Dir, else
// by path.
func (s *Store) Lower(names []string) []string {
	lower := make([]string, len(names))
	for i, name := range names {
		if lower[i] = name; len(s.readOnly) == 0 {
			continue
		}
		if _, ok := s.ReadOnly(name); ok {
			lower[i] = s.Path(name)
		}
	}
	return lower
}

// Has says whether the layer with this diff ID is in the store. It is cheap:
// one small file is read. Another layer under the same name is ErrExists.
func (s *Store) Has(diffID digest.Digest) (Meta, bool, error) {
	return s.has(Name(diffID), diffID)
}

func (s *Store) has(name string, id digest.Digest) (Meta, bool, error) {
	m, err := readMeta(s.Path(name))
	if errors.Is(err, errdefs.ErrNotFound) {
		return Meta{}, false, nil
	}
	if err != nil {
		return Meta{}, false, err
	}
	if m.DiffID != id {
		return Meta{}, false, fmt.Errorf("tree %s is that of %s, not of %s: %w", name, m.DiffID, id, errdefs.ErrExists)
	}
	return m, true, nil
}

// Meta returns what is recorded of the tree with this name, a layer's or a
// fix-up tree's; ErrNotFound when it is not there.
func (s *Store) Meta(name string) (Meta, error) { return readMeta(s.Path(name)) }

// List returns the names of all trees of the data directory, sorted.
func (s *Store) List() ([]string, error) {
	entries, err := os.ReadDir(s.trees)
	if err != nil {
		return nil, fmt.Errorf("list trees: %w", err)
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// Usage returns what the trees of the data directory take on disk, the folder that
// holds them included, from their records.
func (s *Store) Usage(ctx context.Context) (usage.Usage, error) {
	names, err := s.List()
	if err != nil {
		return usage.Usage{}, err
	}
	sum, err := usage.Single(s.trees)
	if err != nil {
		return usage.Usage{}, err
	}
	for _, name := range names {
		u, err := s.UsageOf(ctx, name)
		if err != nil {
			return usage.Usage{}, err
		}
		sum = sum.Plus(u)
	}
	return sum, nil
}

// UsageOf returns what the tree with this name takes of the data directory, with its
// own records: the files as they were counted when the tree was committed, which is
// cheap. A tree without a record that can be read is walked; one that is not there
// takes nothing.
func (s *Store) UsageOf(ctx context.Context, name string) (usage.Usage, error) {
	dir := s.own(name)
	m, err := readMeta(dir)
	if err != nil {
		return usage.Of(ctx, dir)
	}
	sum := usage.Usage{Bytes: m.Size, Inodes: m.Inodes}
	for _, path := range []string{dir, filepath.Join(dir, metaFile), filepath.Join(dir, splitFile)} {
		u, err := usage.Single(path)
		if err != nil {
			return usage.Usage{}, err
		}
		sum = sum.Plus(u)
	}
	replaced, err := usage.Of(ctx, filepath.Join(dir, replacedDir)) // hardly any tree has some
	return sum.Plus(replaced), err
}

// Remove takes the tree out of sight and then deletes it. A tree that is not
// there is no error, and one in a read-only store stays. Nothing may have it mounted: the caller holds the lock
// that says so. What a cancelled ctx leaves is found by Sweep.
func (s *Store) Remove(ctx context.Context, name string) error {
	gone, err := s.retire(ctx, name)
	if err != nil || gone == "" {
		return err
	}
	if err := removeAll(ctx, gone); err != nil {
		return fmt.Errorf("remove tree %s: %w", name, err)
	}
	return nil
}

// Retire takes a tree out of the store and leaves its files to the next Sweep, so
// that whoever holds a lock need not wait until they are unlinked. A tree that is
// not there is no error.
func (s *Store) Retire(ctx context.Context, name string) error {
	_, err := s.retire(ctx, name)
	return err
}

// retire renames a tree into tmp; gone is where it lies then, empty if there was none.
func (s *Store) retire(ctx context.Context, name string) (gone string, err error) {
	if name == "" || name != filepath.Base(name) || name == "." || name == ".." {
		return "", fmt.Errorf("remove tree %q: %w", name, errdefs.ErrInvalid)
	}
	lock, err := durable.Lock(ctx, s.own(name), durable.Exclusive)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("remove tree %s: %w", name, err)
	}
	defer durable.Unlock(lock)
	gone = filepath.Join(s.tmp, tmpPrefix+"removed-"+name)
	if err := os.RemoveAll(gone); err != nil { // of an earlier, interrupted removal; we hold the name's lock
		return "", fmt.Errorf("remove tree %s: %w", name, err)
	}
	if err := os.Rename(s.own(name), gone); err != nil {
		return "", fmt.Errorf("remove tree %s: %w", name, err)
	}
	failpoint.Hit(failpoint.TreeRetired)
	// Before anything of it is deleted: after a crash no half of it may be present.
	if err := durable.SyncDir(s.trees); err != nil {
		return "", fmt.Errorf("remove tree %s: %w", name, err)
	}
	failpoint.Hit(failpoint.TreeRetiredSynced)
	return gone, nil
}

// Sweep deletes what interrupted extractions and removals left in tmp/: each
// entry of this package that nobody holds the lock of. It returns the bytes on
// disk that this frees.
func (s *Store) Sweep(ctx context.Context) (freed int64, err error) {
	return s.eachLeft(func(path string) (int64, error) {
		u, err := usage.Of(ctx, path)
		if err == nil {
			err = removeAll(ctx, path)
		}
		if err != nil {
			return 0, err
		}
		failpoint.Hit(failpoint.TreeSwept)
		return u.Bytes, nil
	})
}

// Left returns the bytes on disk that Sweep would free now.
func (s *Store) Left(ctx context.Context) (int64, error) {
	return s.eachLeft(func(path string) (int64, error) {
		u, err := usage.Of(ctx, path)
		return u.Bytes, err
	})
}

// eachLeft calls do for what Sweep deletes, with its lock held, and returns the
// sum of what it returns.
func (s *Store) eachLeft(do func(path string) (int64, error)) (sum int64, err error) {
	entries, err := os.ReadDir(s.tmp)
	if err != nil {
		return 0, fmt.Errorf("sweep trees: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), tmpPrefix) {
			continue
		}
		n, err := locked(filepath.Join(s.tmp, e.Name()), do)
		if err != nil {
			errs = append(errs, fmt.Errorf("sweep trees: %w", err))
		}
		sum += n
	}
	return sum, errors.Join(errs...)
}

// locked calls do with the lock of path held, and not at all if somebody holds it.
func locked(path string, do func(path string) (int64, error)) (int64, error) {
	lock, err := durable.TryLock(path, durable.Exclusive)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errdefs.ErrBusy) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer durable.Unlock(lock)
	return do(path)
}
