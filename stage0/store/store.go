// Package store keeps image records and the names of images on disk.
//
//	<dir>/images/<64 hex digits>/{image.json,manifest.json,config.json}   immutable facts, named by the config's digest
//	<dir>/refs/<sha256 of the name>                                       one name of an image; the only place where names are kept
//	<dir>/pins/<64 hex digits>                                            what keeps an image from being removed
//	<dir>/files/<sha256 of the path>                                      which image a file was when it was read: see KnownFile
//	<dir>/tmp/                                                            work in progress
//
// A record is made in tmp, synced and moved to its place by one rename, so that
// it is there completely or not at all; a reference likewise. Records never
// change, so they are kept in memory once read; whether they are still there is
// asked of the disk every time, because other processes share it. A file that
// cannot be understood costs the one object that it describes.
//
// Images and names are looked for in read-only stores as well, which are directories
// of the same form: images there first, names in the data directory first, whose are
// the later ones. Nothing there is written or locked, and pins there do not count.
//
// Two locks, both flocks of directories that are never removed: the one of
// images/ (LockShared, TryLockExclusive) is between those who need trees and those
// who collect them, and may be held for as long as a pull takes; the one of refs/
// is held for the moment in which records or references change, so that a
// removal and a pull of the same image do not mix.
package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantry-cri/gantry/stage0/durable"
	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/readonly"
)

const (
	imagesDir = "images"
	refsDir   = "refs"
	tmpDir    = "tmp"

	imageFile    = "image.json"
	manifestFile = "manifest.json"
	configFile   = "config.json"

	// What this package has in tmp begins with one of these. All but the locks
	// of layers live under the lock of refs/ only.
	imagePrefix = "image-"
	refPrefix   = "ref-"
	gonePrefix  = "gone-"
	lockPrefix  = "layer-"
)

// Layer is one layer of an image: what the manifest and the config say about it,
// and the tree it became.
type Layer struct {
	Digest    digest.Digest `json:"digest"` // of the blob, as the registry has it
	DiffID    digest.Digest `json:"diffID"` // of the uncompressed archive
	MediaType string        `json:"mediaType"`
	Size      int64         `json:"size"` // of the blob, bytes
	Tree      string        `json:"tree"` // its name in the tree store
}

// Kind is what an image is in the words of those who made it.
type Kind string

// The kinds. Those of containers have none: their manifest and configuration are
// what a registry or an archive served.
const (
	// KindACI is an appc image. Its manifest is appc's, and its configuration was
	// made of that.
	KindACI Kind = "aci"
)

// Image is the record of an image: what never changes about it.
type Image struct {
	Schema         int              `json:"schema"` // format.Image's
	ID             digest.Digest    `json:"id"`     // of the config; always SHA-256
	Kind           Kind             `json:"kind,omitempty"`
	ManifestDigest digest.Digest    `json:"manifestDigest"` // of the platform's manifest, not of an index
	AppcID         string           `json:"appcID"`         // "sha512-" and the SHA-512 of the manifest, or of an uncompressed ACI
	Layers         []Layer          `json:"layers"`         // bottom first
	Fixup          string           `json:"fixup,omitempty"`
	Size           int64            `json:"size"` // bytes on disk of its distinct trees and its records
	PulledAt       time.Time        `json:"pulledAt"`
	Platform       ocispec.Platform `json:"platform"`
}

// Trees returns the names of the trees that an overlay stacks for the image,
// topmost first: the fix-up tree, when there is one, then the layers from the
// last to the first. A layer that occurs twice is named once, where it is
// topmost: overlayfs refuses a directory that is given twice, and nothing of the
// lower one could show through.
func (i Image) Trees() []string {
	var names []string
	if i.Fixup != "" {
		names = append(names, i.Fixup)
	}
	seen := map[string]bool{}
	for n := len(i.Layers) - 1; n >= 0; n-- {
		name := i.Layers[n].Tree
		if !seen[name] {
			names = append(names, name)
		}
		seen[name] = true
	}
	return names
}

// Ref is one name of an image: "repository:tag" or "repository@sha256:…".
type Ref struct {
	Name      string        `json:"name"`
	Digest    digest.Digest `json:"digest"` // what the registry resolved the name to: a manifest or an index
	Image     digest.Digest `json:"image"`
	UpdatedAt time.Time     `json:"updatedAt"`
}

// Entry is an image with its names, sorted.
type Entry struct {
	Image   Image
	Tags    []string // "repository:tag"
	Digests []string // "repository@sha256:…"
	// Pinned says that a pin or a lease holds it. Which pods do the store does not know.
	Pinned bool
	// NamedAt is when a pull last gave it a name, or else when it was pulled first.
	NamedAt time.Time
	// ReadOnly is the read-only store that its record lies in, and that it cannot be
	// removed from; empty for an image of the data directory.
	ReadOnly readonly.Dir
}

// Store is the image store of one data directory, and of read-only stores that are
// looked in first. Any number of processes may have the same one open.
type Store struct {
	dir      string
	readOnly []readonly.Dir

	mu      sync.Mutex             // protects the two below; never held over I/O
	records map[string]record      // by directory
	refs    map[string]identityRef // by path
}

// record is what the files of one image say.
type record struct {
	store  string // the data directory or read-only store that has it
	image  Image
	config ocispec.Image
}

// Open opens the image store of the data directory dir, and makes images, refs,
// pins, files and tmp in it when they are not there.
func Open(dir string, readOnly ...readonly.Dir) (*Store, error) {
	for _, sub := range []string{imagesDir, refsDir, pinsDir, filesDir, tmpDir} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return nil, fmt.Errorf("open image store: %w", durable.NoSpace(err))
		}
	}
	return &Store{dir: dir, readOnly: readOnly, records: map[string]record{}, refs: map[string]identityRef{}}, nil
}

// stores are where images are looked for, in that order.
func (s *Store) stores() []string {
	dirs := make([]string, 0, len(s.readOnly)+1)
	for _, d := range s.readOnly {
		dirs = append(dirs, string(d))
	}
	return append(dirs, s.dir)
}

// readOnlyStore names a store that is not the data directory.
func (s *Store) readOnlyStore(dir string) readonly.Dir {
	if dir == s.dir {
		return ""
	}
	return readonly.Dir(dir)
}

// TempDir is where files without a name may be made, on the store's filesystem.
func (s *Store) TempDir() string { return filepath.Join(s.dir, tmpDir) }

// Get returns the record of the image with that id, from memory if it was read
// before, or ErrNotFound.
func (s *Store) Get(id digest.Digest) (Image, error) {
	r, err := s.record(id)
	return r.image, err
}

// Config returns the image's configuration. It is shared: do not change what it
// points to.
func (s *Store) Config(id digest.Digest) (ocispec.Image, error) {
	r, err := s.record(id)
	return r.config, err
}

// Manifest returns the bytes of the image's manifest as the registry served
// them, or ErrUnverified when they are no longer those.
func (s *Store) Manifest(id digest.Digest) ([]byte, error) {
	r, err := s.record(id)
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(filepath.Join(r.store, imagesDir, id.Encoded(), manifestFile))
	if err != nil {
		return nil, fmt.Errorf("manifest of image %s: %w", id, asNotFound(err))
	}
	if r.image.ManifestDigest.Algorithm().FromBytes(data) != r.image.ManifestDigest {
		return nil, fmt.Errorf("manifest of image %s is damaged: %w", id, errdefs.ErrUnverified)
	}
	return data, nil
}

// record returns what the files of an image say, in the first store where they can
// be understood.
func (s *Store) record(id digest.Digest) (record, error) {
	name, err := directory(id)
	if err != nil {
		return record{}, err
	}
	var failed error
	for _, dir := range s.stores() {
		r, err := s.recordIn(dir, name)
		if err == nil {
			return r, nil
		}
		if failed == nil || errors.Is(failed, errdefs.ErrNotFound) {
			failed = err
		}
	}
	return record{}, failed
}

// recordIn is record for one store, after a look whether the files are still there.
func (s *Store) recordIn(store, name string) (record, error) {
	id := digest.NewDigestFromEncoded(digest.SHA256, name)
	dir := filepath.Join(store, imagesDir, name)
	if _, err := os.Lstat(dir); err != nil {
		s.forget(dir)
		return record{}, fmt.Errorf("image %s: %w", id, asNotFound(err))
	}
	s.mu.Lock()
	r, ok := s.records[dir]
	s.mu.Unlock()
	if ok {
		return r, nil
	}
	r, err := readRecord(dir, id)
	if err != nil {
		return record{}, fmt.Errorf("image %s: %w", id, asNotFound(err))
	}
	r.store = store
	s.mu.Lock()
	s.records[dir] = r
	s.mu.Unlock()
	return r, nil
}

func (s *Store) forget(dir string) {
	s.mu.Lock()
	delete(s.records, dir)
	s.mu.Unlock()
}

// directory returns the name of the image's directory.
func directory(id digest.Digest) (string, error) {
	if err := id.Validate(); err != nil || id.Algorithm() != digest.SHA256 {
		return "", fmt.Errorf("%q is not an image id: %w", id, errdefs.ErrInvalid)
	}
	return id.Encoded(), nil
}

// fromDirectory is the inverse of directory.
func fromDirectory(name string) (digest.Digest, bool) {
	id := digest.NewDigestFromEncoded(digest.SHA256, name)
	return id, id.Validate() == nil
}

// asNotFound gives what is not there its class.
func asNotFound(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return errdefs.ErrNotFound
	}
	return err
}

// isTag tells the two kinds of names apart.
func isTag(name string) bool { return !strings.Contains(name, "@") }
