package tree

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/gantry-cri/gantry/stage0/durable"
	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/format"
)

// Meta says what a tree holds. It is written once, before the tree becomes
// visible, and never changes.
type Meta struct {
	Schema int `json:"schema"` // format.Tree's
	// DiffID is the digest of the layer's tar; the chain ID of the stack in a fix-up
	// tree; ACIKey in the tree of an appc image.
	DiffID digest.Digest `json:"diffID"`
	// ACI is the id of the appc image whose tree this is.
	ACI digest.Digest `json:"aci,omitempty"`
	// Fixup says that this is a fix-up tree.
	Fixup bool `json:"fixup,omitempty"`
	// Size is the space on disk in bytes as du counts it: allocated blocks,
	// a file with several hard links once.
	Size int64 `json:"size"`
	// Inodes is the number of inodes that the tree takes.
	Inodes int64 `json:"inodes"`
	// TarSize is the length of the uncompressed layer in bytes.
	TarSize int64 `json:"tarSize,omitempty"`
	// TarSplit says that a record lies beside, from which the layer's tar can be put
	// together again. Trees of before there were records, and fix-up trees, have none.
	TarSplit bool `json:"tarSplit,omitempty"`
	// Implied lists the directories that the layer names only as parents of
	// other entries, sorted, relative to the root, which is ".".
	Implied Paths `json:"implied,omitempty"`
	// Whiteouts lists the directories that hold whiteouts, as Implied does.
	Whiteouts Paths `json:"whiteouts,omitempty"`
	// Skipped lists what was left out of the tree, at most maxSkipped items.
	Skipped []Skipped `json:"skipped,omitempty"`
}

// Skipped is one thing in the archive that was left out on purpose.
type Skipped struct {
	Path   string `json:"path"`
	Reason string `json:"reason"`
}

const (
	treesDir   = "trees"
	metaFile   = "meta.json"
	rootfsName = "rootfs"
	maxSkipped = 100
	// maxCount is more than any disk has, of bytes or of inodes: sums of a store stay
	// far below what an int64 holds.
	maxCount = 1 << 52
)

func writeMeta(dir string, m Meta) error {
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode %s: %w", metaFile, err)
	}
	// Not synced here: the one syncfs of Commit comes before the rename.
	if err := os.WriteFile(filepath.Join(dir, metaFile), append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("write %s: %w", metaFile, durable.NoSpace(err))
	}
	return nil
}

func readMeta(dir string) (Meta, error) {
	path := filepath.Join(dir, metaFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Meta{}, fmt.Errorf("tree %s: %w", filepath.Base(dir), errdefs.ErrNotFound)
	}
	if err != nil {
		return Meta{}, fmt.Errorf("read tree: %w", err)
	}
	var m Meta
	if err := format.Tree.Decode(b, &m); errors.Is(err, errdefs.ErrUnsupported) {
		return Meta{}, fmt.Errorf("read %s: %w", path, err)
	} else if err != nil {
		return Meta{}, fmt.Errorf("read %s: %w: %w", path, ErrMeta, err)
	}
	if err := m.check(); err != nil {
		return Meta{}, fmt.Errorf("read %s: %w: %w", path, ErrMeta, err)
	}
	return m, nil
}

// check refuses a record that would lead its readers astray: a read-only store, say,
// is made by others.
func (m Meta) check() error {
	if err := m.DiffID.Validate(); err != nil {
		return fmt.Errorf("diff ID %q: %w", m.DiffID, err)
	}
	if m.ACI != "" {
		if err := m.ACI.Validate(); err != nil {
			return fmt.Errorf("ACI %q: %w", m.ACI, err)
		}
	}
	for _, n := range []int64{m.Size, m.Inodes, m.TarSize} {
		if n < 0 || n > maxCount {
			return fmt.Errorf("%d bytes, %d inodes and %d bytes of tar: out of range", m.Size, m.Inodes, m.TarSize)
		}
	}
	for _, p := range slices.Concat(m.Implied, m.Whiteouts) {
		if !filepath.IsLocal(p) || path.Clean(p) != p || strings.ContainsRune(p, 0) {
			return fmt.Errorf("directory %q: not a path below the root", p)
		}
	}
	return nil
}
