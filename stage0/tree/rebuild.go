package tree

import (
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/tree/tarsplit"
)

// ErrNoRecord says that a layer was extracted before there were records.
var ErrNoRecord = fmt.Errorf("extracted by an earlier version, fetch it again: %w", errdefs.ErrUnsupported)

// ErrRecord says that the record of a layer is damaged or missing.
var ErrRecord = tarsplit.ErrDamaged

// ErrMeta says that meta.json cannot be understood.
var ErrMeta = fmt.Errorf("%w meta.json", errdefs.ErrUnverified)

// The names of a tree's records, for people.
const (
	MetaName   = metaFile
	RecordName = splitFile
)

// Rebuilt is what a tree should be. It lies in tmp/ until Discard.
type Rebuilt struct {
	// Root is a tree with all that the stored one should have but the contents of
	// files, which are holes of the right size.
	Root string
	// Meta is the record that the tree should have. Its DiffID is the digest of the
	// tar that was put together; without what only counts what is allocated.
	Meta Meta
	// Damaged are the files with other content than the archive had, at most
	// maxDamaged. Files that are not there are not among them.
	Damaged []Damage

	pending *Pending
}

// Damage is a file with other content than it should have.
type Damage struct{ Path, Want, Got string }

const maxDamaged = 1000

// Discard deletes what Rebuild has made.
func (r *Rebuilt) Discard() error { return r.pending.Discard() }

// Rebuild puts the exact tar of a layer together again from its record and the files
// of its tree, and extracts it once more without the contents: the one applier of
// archives says what has to lie on disk. All is read once. Files are opened below the
// tree's root and never through a symbolic link.
//
// It is ErrNotFound if there is no such tree, ErrNoRecord if an earlier version
// extracted it, ErrRecord if the record is damaged.
func (s *Store) Rebuild(ctx context.Context, name string) (*Rebuilt, error) {
	r, err := s.rebuild(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("rebuild the tar of tree %s: %w", name, err)
	}
	return r, nil
}

func (s *Store) rebuild(ctx context.Context, name string) (*Rebuilt, error) {
	m, err := readMeta(s.Path(name))
	if err != nil {
		return nil, err
	}
	if !m.TarSplit {
		return nil, ErrNoRecord
	}
	b, err := openRebuilder(s.Path(name), m.TarSize)
	if err != nil {
		return nil, err
	}
	defer b.close()
	p, err := s.newEntry(ctx)
	if err != nil {
		return nil, err
	}
	p.name = name
	r := &Rebuilt{Root: filepath.Join(p.path, rootfsName), pending: p}
	// What was extracted was within the limits of that time.
	w, err := s.newWriter(p.path, Limits{Entries: math.MaxInt64, Bytes: math.MaxInt64, Memory: math.MaxInt64, PathLength: math.MaxInt, NameLength: math.MaxInt, Depth: math.MaxInt})
	if err == nil {
		err = errors.Join(r.assemble(ctx, b, w, m), w.close())
	}
	if err != nil {
		return nil, errors.Join(err, r.Discard())
	}
	return r, nil
}

// assemble runs the pipeline of one layer: this goroutine parses and writes, two
// others put the tar together and hash it.
func (r *Rebuilt) assemble(parent context.Context, b *rebuilder, w *writer, m Meta) error {
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)
	b.out = newRing(ctx, 2)
	var put, hash result
	sum := m.DiffID.Algorithm().Digester()
	if m.ACI != "" {
		sum = m.ACI.Algorithm().Digester()
		a := &aciWriter{writer: w, check: func([]byte) error { return nil }}
		w.take, w.literal = a.entry, true
	}
	put.start(func() error {
		defer b.out.close()
		return b.run()
	})
	hash.start(func() error { return b.out.reader(1).copyTo(sum.Hash()) })
	parsed := w.layer(ctx, b.out.reader(0))
	if parsed != nil {
		cancel(parsed)
	}
	<-put.done
	<-hash.done
	if err := context.Cause(parent); err != nil {
		return err
	}
	switch {
	case put.err != nil && !errors.Is(put.err, parsed):
		return put.err
	case errors.Is(parsed, errArchive), errors.Is(parsed, errdefs.ErrInvalid), errors.Is(parsed, errdefs.ErrUnsupported):
		// What it was made from was a layer that could be extracted.
		return fmt.Errorf("%w: %w", ErrRecord, parsed)
	case parsed != nil:
		return parsed
	case hash.err != nil:
		return hash.err
	case string(b.contents.Sum(nil)) != string(w.contents.Sum(nil)):
		return fmt.Errorf("it has the contents of other files than the archive: %w", ErrRecord)
	}
	r.Meta, r.Damaged = w.meta(), b.damaged
	r.Meta.DiffID, r.Meta.TarSplit = sum.Digest(), true
	if m.ACI != "" {
		r.Meta.ACI, r.Meta.DiffID = sum.Digest(), ACIKey(sum.Digest())
	}
	return nil
}
