package tree

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"

	"github.com/gantry-cri/gantry/stage0/durable"
	"github.com/gantry-cri/gantry/stage0/failpoint"
	"github.com/gantry-cri/gantry/stage0/format"
	"github.com/gantry-cri/gantry/stage0/usage"
)

// Make makes a tree that is no archive's, in an entry of tmp/ that nobody sees
// before Commit. fill puts the files at the path that it is given, where nothing is
// before. id is a digest of all that they are made of, such that no layer can have
// it as its diff ID. On an error nothing remains on disk.
func (s *Store) Make(ctx context.Context, id digest.Digest, fill func(rootfs string) error) (*Pending, error) {
	p, err := s.newEntry(ctx)
	if err != nil {
		return nil, err
	}
	p.name, p.meta = Name(id), Meta{Schema: format.Tree.Current, DiffID: id}
	if err := p.fill(ctx, fill); err != nil {
		return nil, errors.Join(fmt.Errorf("make tree: %w", durable.NoSpace(err)), p.Discard())
	}
	failpoint.Hit(failpoint.TreeDescribed)
	return p, nil
}

func (p *Pending) fill(ctx context.Context, fill func(string) error) error {
	rootfs := filepath.Join(p.path, rootfsName)
	if err := os.Remove(rootfs); err != nil {
		return err
	}
	if err := fill(rootfs); err != nil {
		return err
	}
	u, err := usage.Of(ctx, rootfs)
	if err != nil {
		return err
	}
	p.meta.Size, p.meta.Inodes = u.Bytes, u.Inodes
	return writeMeta(p.path, p.meta)
}
