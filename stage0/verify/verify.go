// Package verify finds out whether a tree of the store is what it should be, bit by
// bit. A layer's exact tar is put together from the tree and its record, which proves
// every byte of its files against the layer's diff ID; and extracted once more without
// contents, which says what else has to lie on disk. So the extractor alone knows what
// a header becomes. A fix-up tree is rendered once more.
package verify

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/tree"
)

// What is the kind of a finding.
type What string

// The kinds of findings.
const (
	Content    What = "content"    // other bytes in a file, or in a hole of it
	Missing    What = "missing"    // what should be there is not
	Extra      What = "extra"      // what should not be there is
	Kind       What = "kind"       // a directory instead of a file, for example
	Mode       What = "mode"       // permissions, set-id bits
	Owner      What = "owner"      // user and group
	MTime      What = "mtime"      // the time of modification
	Size       What = "size"       // the length of a file
	Device     What = "device"     // the numbers of a device
	Target     What = "target"     // that of a symbolic link
	Links      What = "links"      // which names are one file
	Xattr      What = "xattr"      // an extended attribute; capabilities, overlay's marks
	Unreadable What = "unreadable" // the disk does not give it
	Record     What = "record"     // meta.json or layer.tarsplit
	Layer      What = "layer"      // the whole has another digest, and nothing says why
)

// Finding is one thing that is not as it should be.
type Finding struct {
	// Path is relative to the layer's root, or the name of a record.
	Path string `json:"path"`
	What What   `json:"what"`
	Want string `json:"want,omitempty"`
	Got  string `json:"got,omitempty"`
}

// MarshalJSON is part of json.Marshaler. A path has any bytes: tree.Paths says how
// those that are no text are written.
func (f Finding) MarshalJSON() ([]byte, error) {
	type plain Finding // without this method
	f.Path = tree.Text(f.Path)
	return json.Marshal(plain(f))
}

// Report is what was found of one tree.
type Report struct {
	Tree  string `json:"tree"` // its name
	Fixup bool   `json:"fixup,omitempty"`
	// DiffID is that of the layer, or the chain ID that a fix-up tree is of.
	DiffID digest.Digest `json:"diffID"`
	// Unverifiable says why the tree can be neither proven nor refuted, if it cannot.
	Unverifiable string `json:"unverifiable,omitempty"`
	// Findings are empty for a tree that is proven, and at most maxFindings.
	Findings []Finding `json:"findings"`
	// Omitted is the number of further findings.
	Omitted int `json:"omitted,omitempty"`
}

const maxFindings = 1000

// Proven says that every bit of the tree is as it should be.
func (r Report) Proven() bool { return r.Unverifiable == "" && len(r.Findings) == 0 }

func (r *Report) add(f Finding) {
	if len(r.Findings) == maxFindings {
		r.Omitted++
		return
	}
	r.Findings = append(r.Findings, f)
}

// Tree verifies the tree of the layer with this diff ID. A tree that is not there, or
// that goes away meanwhile, is ErrNotFound.
func Tree(ctx context.Context, s *tree.Store, diffID digest.Digest) (Report, error) {
	r := Report{Tree: tree.Name(diffID), DiffID: diffID, Findings: []Finding{}}
	err := r.while(s, func() error {
		rebuilt, err := s.Rebuild(ctx, r.Tree)
		if err != nil {
			return r.record(err)
		}
		return errors.Join(r.compare(ctx, s, rebuilt), rebuilt.Discard())
	})
	return r, err
}

// Fixup verifies the fix-up tree of that name, which is that of a stack of layers,
// bottom first. The layers are taken for good; those that are not there are ErrNotFound.
func Fixup(ctx context.Context, s *tree.Store, name string, diffIDs []digest.Digest) (Report, error) {
	r := Report{Tree: name, Fixup: true, Findings: []Finding{}}
	err := r.while(s, func() error {
		rebuilt, err := s.RebuildFixup(ctx, diffIDs)
		if err != nil {
			return err
		}
		if rebuilt == nil {
			r.add(Finding{Path: ".", What: Extra, Want: "no fix-up tree", Got: "one"})
			return nil
		}
		r.DiffID = rebuilt.Meta.DiffID
		return errors.Join(r.compare(ctx, s, rebuilt), rebuilt.Discard())
	})
	return r, err
}

// while verifies a tree, and holds that it was there all the time.
func (r *Report) while(s *tree.Store, verify func() error) error {
	before, err := os.Lstat(s.Path(r.Tree))
	if err == nil {
		_, err = os.Lstat(s.Root(r.Tree))
		if errors.Is(err, fs.ErrNotExist) {
			r.add(Finding{Path: ".", What: Missing, Want: "directory"})
			err = nil
		} else if err == nil {
			err = verify()
		}
	}
	after, gone := os.Lstat(s.Path(r.Tree))
	if gone == nil && before != nil && os.SameFile(before, after) {
		if err != nil {
			return fmt.Errorf("verify tree %s: %w", r.Tree, err)
		}
		return nil
	}
	if gone != nil && !errors.Is(gone, fs.ErrNotExist) {
		return fmt.Errorf("verify tree %s: %w", r.Tree, gone)
	}
	return fmt.Errorf("verify tree %s: %w", r.Tree, errdefs.ErrNotFound)
}

// record makes findings of what is wrong with a tree's records. Other errors stay.
func (r *Report) record(err error) error {
	switch {
	case errors.Is(err, tree.ErrRecord):
		r.add(Finding{Path: tree.RecordName, What: Record, Want: "one that can be read", Got: err.Error()})
	case errors.Is(err, tree.ErrMeta), errors.Is(err, errdefs.ErrNotFound):
		r.add(Finding{Path: tree.MetaName, What: Record, Want: "one that can be read", Got: err.Error()})
	case errors.Is(err, tree.ErrNoRecord):
		r.Unverifiable = tree.ErrNoRecord.Error()
	case errors.Is(err, errdefs.ErrUnsupported):
		r.Unverifiable = err.Error()
	default:
		return err
	}
	return nil
}

// compare holds the tree to what it should be.
func (r *Report) compare(ctx context.Context, s *tree.Store, want *tree.Rebuilt) error {
	r.compareMeta(s, want.Meta)
	for _, d := range want.Damaged {
		r.add(Finding{Path: d.Path, What: Content, Want: d.Want, Got: d.Got})
	}
	if err := compareTrees(ctx, want.Root, s.Root(r.Tree), r.add); err != nil {
		return err
	}
	explains := func(f Finding) bool { return slices.Contains([]What{Content, Missing, Kind, Size, Unreadable}, f.What) }
	if want.Meta.DiffID != r.DiffID && !slices.ContainsFunc(r.Findings, explains) {
		r.add(Finding{Path: ".", What: Layer, Want: string(r.DiffID), Got: string(want.Meta.DiffID)})
	}
	return nil
}

// compareMeta looks at what other layers and overlay are told of this one.
func (r *Report) compareMeta(s *tree.Store, want tree.Meta) {
	got, err := s.Meta(r.Tree)
	if err != nil {
		r.add(Finding{Path: tree.MetaName, What: Record, Want: "one that can be read", Got: err.Error()})
		return
	}
	facts := func(m tree.Meta) []string {
		return []string{
			string(m.DiffID), fmt.Sprintf("implied directories: %q", m.Implied), fmt.Sprintf("directories with whiteouts: %q", m.Whiteouts),
			fmt.Sprintf("%d bytes of tar", m.TarSize),
		}
	}
	want.DiffID = r.DiffID // a layer's own is that of damaged files, too
	for i, w := range facts(want) {
		if g := facts(got)[i]; w != g {
			r.add(Finding{Path: tree.MetaName, What: Record, Want: shorten(w), Got: shorten(g)})
		}
	}
}

// shorten keeps a value fit for a message.
func shorten(s string) string {
	const most = 200
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}
