package tree

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"path"
	"path/filepath"
	"slices"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/durable"
	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/failpoint"
	"github.com/gantry-cri/gantry/stage0/format"
)

// Fixup makes and commits the fix-up tree of a stack of layers, bottom first,
// and returns its name; "" when the stack needs none. It lies on top of the
// stack. All layers must be in the store, else ErrNotFound, and stay there
// meanwhile.
//
// A directory that a layer only implies was made with attributes that nobody
// asked for, and in the merged view they would cover those of a lower layer
// that really has the directory. The fix-up tree has exactly these
// directories, with the attributes of the topmost layer that really has them
// and that no whiteout hides, and their parents with the attributes that the
// merged view has.
//
// It also has the directories whose whiteouts would be listed as files: the
// kernel leaves whiteouts out of a listing only where two layers are merged.
func (s *Store) Fixup(ctx context.Context, diffIDs []digest.Digest) (string, error) {
	name, err := s.fixup(ctx, diffIDs)
	if err != nil {
		return "", fmt.Errorf("make fix-up tree: %w", err)
	}
	return name, nil
}

func (s *Store) fixup(ctx context.Context, diffIDs []digest.Digest) (string, error) {
	if len(diffIDs) == 0 {
		return "", nil
	}
	chainID := identity.ChainID(diffIDs)
	name := fixupName(chainID)
	if _, ok, err := s.has(name, chainID); ok || err != nil {
		return name, err
	}
	p, err := s.renderFixup(ctx, chainID, diffIDs, s.Limits.withDefaults().Memory)
	if err != nil || p == nil {
		return "", err
	}
	failpoint.Hit(failpoint.FixupWritten)
	if err := s.Commit(ctx, p); err != nil {
		return "", errors.Join(err, p.Discard())
	}
	failpoint.Hit(failpoint.FixupCommitted)
	return name, nil
}

// renderFixup returns nil when the stack needs no fix-up tree. What it has in memory is
// bounded by the limit of a layer's memory.
func (s *Store) renderFixup(ctx context.Context, chainID digest.Digest, diffIDs []digest.Digest, limit int64) (*Pending, error) {
	st, err := s.stack(diffIDs, limit)
	if err != nil {
		return nil, err
	}
	sources, err := st.sources(ctx, limit)
	if err != nil || len(sources) == 0 {
		return nil, err
	}
	return s.writeFixup(ctx, chainID, sources)
}

// RebuildFixup makes the fix-up tree of a stack once more, to hold the stored one to.
// It is nil if the stack needs none. Errors are as with Fixup.
func (s *Store) RebuildFixup(ctx context.Context, diffIDs []digest.Digest) (*Rebuilt, error) {
	// What was made was within the limits of that time.
	p, err := s.renderFixup(ctx, identity.ChainID(diffIDs), diffIDs, math.MaxInt64/sharedPaths)
	if err != nil {
		return nil, fmt.Errorf("make fix-up tree: %w", err)
	}
	if p == nil {
		return nil, nil
	}
	return &Rebuilt{Root: filepath.Join(p.path, rootfsName), Meta: p.meta, pending: p}, nil
}

// Pending returns what was made as a tree that can be committed. It is whole for a
// fix-up tree alone: files have no content.
func (r *Rebuilt) Pending() *Pending { return r.pending }

// stack is the layers of an image, topmost first.
type stack []stackLayer

type stackLayer struct {
	root      string // path of rootfs/
	implied   map[string]bool
	whiteouts map[string]bool // directories that hold some
}

// sharedPaths is how often, on average, an image at the limit of memory may name a
// directory in one layer and again in others.
const sharedPaths = 4

func (s *Store) stack(diffIDs []digest.Digest, limit int64) (stack, error) {
	var st stack
	left := limit * sharedPaths
	for _, id := range slices.Backward(diffIDs) {
		m, ok, err := s.Has(id)
		if err != nil {
			return nil, err
		}
		if !ok {
			return nil, fmt.Errorf("tree of layer %s: %w", id, errdefs.ErrNotFound)
		}
		for _, paths := range []Paths{m.Implied, m.Whiteouts} {
			for _, p := range paths {
				left -= int64(len(p) + impliedCost)
			}
		}
		if left < 0 {
			return nil, fmt.Errorf("implied directories of all layers take more than %d bytes of memory: %w", limit*sharedPaths, passed("memory"))
		}
		root := filepath.Join(s.Path(Name(id)), rootfsName)
		st = append(st, stackLayer{root: root, implied: set(m.Implied), whiteouts: set(m.Whiteouts)})
	}
	return st, nil
}

func set(paths []string) map[string]bool {
	m := make(map[string]bool, len(paths))
	for _, p := range paths {
		m[p] = true
	}
	return m
}

// addWithParents adds a directory to a fix-up tree: what lies on top covers the
// attributes of the parents as well.
func (st stack) addWithParents(fix map[string]string, merged map[string]mergedDir, p string) {
	for q := p; ; q = path.Dir(q) {
		fix[q] = st.source(q, merged[q])
		if q == "." {
			return
		}
	}
}

// sources returns the directories of the fix-up tree, each with the directory
// that its attributes come from, "" where no layer really has it.
func (st stack) sources(ctx context.Context, limit int64) (map[string]string, error) {
	merged := map[string]mergedDir{}
	fix := map[string]string{}
	candidates, err := st.candidates(limit)
	if err != nil {
		return nil, err
	}
	for _, p := range candidates {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		layers := allLayers(st)
		if p != "." {
			parent, ok := merged[path.Dir(p)]
			if !ok {
				continue // hidden, or no directory
			}
			layers = parent.layers
		}
		m, ok, err := st.merge(p, layers)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		merged[p] = m
		covered := m.source >= 0 && m.source != m.layers[0]
		// The root is always merged with the upper layer.
		listed := p != "." && len(m.layers) == 1 && st[m.layers[0]].whiteouts[p]
		if !covered && !listed {
			continue
		}
		st.addWithParents(fix, merged, p)
	}
	return fix, nil
}

func (st stack) source(p string, m mergedDir) string {
	if m.source < 0 {
		return ""
	}
	return filepath.Join(st[m.source].root, p)
}

func allLayers(st stack) []int {
	all := make([]int, len(st))
	for i := range all {
		all[i] = i
	}
	return all
}

// candidates returns the directories that may need the fix-up tree, and all
// their parents, parents first.
func (st stack) candidates(limit int64) ([]string, error) {
	paths := map[string]struct{}{".": {}}
	left := limit
	for _, l := range st {
		for _, from := range []map[string]bool{l.implied, l.whiteouts} {
			for p := range from {
				for ; p != "."; p = path.Dir(p) {
					if _, ok := paths[p]; ok {
						break // and its parents
					}
					paths[p] = struct{}{}
					if left -= int64(len(p) + impliedCost); left < 0 {
						return nil, fmt.Errorf("implied directories and those above them take more than %d bytes of memory: %w", limit, passed("memory"))
					}
				}
			}
		}
	}
	return slices.SortedFunc(maps.Keys(paths), parentsFirst), nil
}

// mergedDir is a directory of the merged view.
type mergedDir struct {
	layers []int // whose entries it shows, topmost first
	source int   // the topmost that really has it; -1: none
}

// merge looks the path up in the layers that its parent shows, as overlay does:
// from the top down to the first that has something else there or is opaque.
// Attributes are looked for beyond an opaque directory, which hides only what
// lies in the lower ones.
func (st stack) merge(p string, layers []int) (mergedDir, bool, error) {
	m := mergedDir{source: -1}
	opaque := false
	for _, i := range layers {
		dir := filepath.Join(st[i].root, p)
		info, err := os.Lstat(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return m, false, err
		}
		if !info.IsDir() {
			break
		}
		if !opaque {
			m.layers = append(m.layers, i)
		}
		if m.source < 0 && !st[i].implied[p] {
			m.source = i
		}
		if !opaque {
			if opaque, err = Opaque(dir); err != nil {
				return m, false, err
			}
		}
		if opaque && m.source >= 0 {
			break
		}
	}
	return m, len(m.layers) > 0, nil
}

// writeFixup makes the tree; sources holds the parent of each directory.
func (s *Store) writeFixup(ctx context.Context, chainID digest.Digest, sources map[string]string) (*Pending, error) {
	p, err := s.newEntry(ctx)
	if err != nil {
		return nil, err
	}
	p.name, p.meta = fixupName(chainID), Meta{Schema: format.Tree.Current, DiffID: chainID, Fixup: true}
	err = fixupDirs(&p.meta, filepath.Join(p.path, rootfsName), sources)
	if err == nil {
		err = writeMeta(p.path, p.meta)
	}
	if err != nil {
		return nil, errors.Join(err, p.Discard())
	}
	return p, nil
}

func fixupDirs(m *Meta, root string, sources map[string]string) error {
	sorted := slices.SortedFunc(maps.Keys(sources), parentsFirst)
	for _, p := range sorted[1:] { // the first is the root
		if err := os.Mkdir(filepath.Join(root, p), 0o700); err != nil {
			return durable.NoSpace(err)
		}
	}
	// Children first: making and changing them is over when a parent gets its times.
	for _, p := range slices.Backward(sorted) {
		dir := filepath.Join(root, p)
		if err := fixupAttributes(sources[p], dir); err != nil {
			return durable.NoSpace(err)
		}
		var st unix.Stat_t
		if err := unix.Lstat(dir, &st); err != nil {
			return &fs.PathError{Op: "lstat", Path: dir, Err: err}
		}
		m.Size += st.Blocks * 512
		m.Inodes++
	}
	return nil
}

// fixupAttributes gives dir the attributes of source; without one, those that
// Extract gives to implied directories.
func fixupAttributes(source, dir string) error {
	if source != "" {
		return CopyAttributes(source, dir)
	}
	if err := os.Lchown(dir, 0, 0); err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	times := make([]unix.Timespec, 2)
	return os.NewSyscallError("utimensat", unix.UtimesNanoAt(unix.AT_FDCWD, dir, times, unix.AT_SYMLINK_NOFOLLOW))
}

// parentsFirst sorts parents before their children: the root first, then by name,
// where a path is always behind its own beginning.
func parentsFirst(a, b string) int {
	switch {
	case a == b:
		return 0
	case a == ".":
		return -1
	case b == ".":
		return 1
	case a < b:
		return -1
	}
	return 1
}
