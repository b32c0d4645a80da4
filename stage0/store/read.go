package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/opencontainers/go-digest"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/format"
	"github.com/gantry-cri/gantry/stage0/usage"
)

// Broken is an object on disk that cannot be understood: it is left out of
// every answer, and pulling the image again replaces it.
type Broken struct {
	Path string
	Err  error
}

// List returns all images, sorted by id. An image whose record is broken is not
// in it (Broken has it); anything else that hinders a complete answer is an error.
func (s *Store) List() ([]Entry, error) {
	entries, _, err := s.scan()
	return entries, err
}

// Broken returns the records and references that List leaves out.
func (s *Store) Broken() ([]Broken, error) {
	_, broken, err := s.scan()
	return broken, err
}

// scan reads the references before the records: a pull writes its record first,
// so an image that is seen has the names it had at that moment or later ones.
func (s *Store) scan() ([]Entry, []Broken, error) {
	refs, broken, err := s.readRefs()
	if err != nil {
		return nil, nil, fmt.Errorf("list images: %w", err)
	}
	dirs, err := os.ReadDir(filepath.Join(s.dir, imagesDir))
	if err != nil {
		return nil, nil, fmt.Errorf("list images: %w", err)
	}
	var entries []Entry
	for _, d := range dirs {
		id, ok := fromDirectory(d.Name())
		if !ok {
			continue
		}
		r, err := s.record(id)
		switch {
		case err == nil:
			e, err := s.newEntry(r.image, refs)
			if err != nil {
				return nil, nil, fmt.Errorf("list images: %w", err)
			}
			entries = append(entries, e)
		case errors.Is(err, errdefs.ErrNotFound) && !s.there(d.Name()):
			// Removed since the directory was read.
		case isTransient(err):
			return nil, nil, fmt.Errorf("list images: %w", err)
		default:
			broken = append(broken, Broken{Path: filepath.Join(s.dir, imagesDir, d.Name()), Err: err})
		}
	}
	return entries, broken, nil
}

func (s *Store) there(name string) bool {
	_, err := os.Lstat(filepath.Join(s.dir, imagesDir, name))
	return err == nil
}

// newEntry picks the image's names out of refs, and looks for a pin.
func (s *Store) newEntry(img Image, refs []Ref) (e Entry, err error) {
	e = Entry{Image: img, NamedAt: img.PulledAt}
	if e.Pinned, err = s.pinned(img.ID); err != nil {
		return Entry{}, err
	}
	for _, r := range refs {
		if r.Image == img.ID && r.UpdatedAt.After(e.NamedAt) {
			e.NamedAt = r.UpdatedAt
		}
		switch {
		case r.Image != img.ID:
		case isTag(r.Name):
			e.Tags = append(e.Tags, r.Name)
		default:
			e.Digests = append(e.Digests, r.Name)
		}
	}
	slices.Sort(e.Tags)
	slices.Sort(e.Digests)
	return e, nil
}

// readRecord reads and checks the files of one image.
func readRecord(dir string, id digest.Digest) (record, error) {
	var r record
	data, err := os.ReadFile(filepath.Join(dir, imageFile))
	if err != nil {
		return record{}, err
	}
	if err := format.Image.Decode(data, &r.image); err != nil {
		return record{}, unread(imageFile, err)
	}
	if err := r.image.check(id); err != nil {
		return record{}, fmt.Errorf("%s is damaged: %w", imageFile, err)
	}
	config, err := os.ReadFile(filepath.Join(dir, configFile))
	if err != nil {
		return record{}, err
	}
	if digest.FromBytes(config) != id {
		return record{}, fmt.Errorf("%s is damaged: %w", configFile, errdefs.ErrUnverified)
	}
	if err := json.Unmarshal(config, &r.config); err != nil {
		return record{}, fmt.Errorf("%s is not an image configuration: %w", configFile, err)
	}
	return r, nil
}

// unread says why a file cannot be understood: one of a later version is no damage.
func unread(what string, err error) error {
	if errors.Is(err, errdefs.ErrUnsupported) {
		return fmt.Errorf("%s: %w", what, err)
	}
	return fmt.Errorf("%s is damaged: %w", what, err)
}

// check refuses a record that could lead its readers astray.
func (i Image) check(id digest.Digest) error {
	if i.ID != id {
		return fmt.Errorf("it describes image %q: %w", i.ID, errdefs.ErrUnverified)
	}
	if err := i.ManifestDigest.Validate(); err != nil {
		return fmt.Errorf("manifest digest %q: %w: %w", i.ManifestDigest, err, errdefs.ErrInvalid)
	}
	for _, name := range i.Trees() {
		if name == "." || !filepath.IsLocal(name) || name != filepath.Base(name) {
			return fmt.Errorf("tree name %q: %w", name, errdefs.ErrInvalid)
		}
	}
	return nil
}

// identity says whether a file is still the one that was read: references are
// only ever replaced, so a change makes another inode.
type identity struct {
	inode    uint64
	size     int64
	ctime    syscall.Timespec
	modified int64
}

type identityRef struct {
	identity identity
	ref      Ref
}

func identify(info fs.FileInfo) identity {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return identity{}
	}
	return identity{inode: st.Ino, size: st.Size, ctime: st.Ctim, modified: st.Mtim.Nano()}
}

// readRefs returns all references. Those that have not changed since they were
// read last cost a stat.
func (s *Store) readRefs() ([]Ref, []Broken, error) {
	files, err := os.ReadDir(filepath.Join(s.dir, refsDir))
	if err != nil {
		return nil, nil, err
	}
	var refs []Ref
	var broken []Broken
	for _, f := range files {
		ref, err := s.readRef(f.Name())
		switch {
		case err == nil:
			refs = append(refs, ref)
		case errors.Is(err, errdefs.ErrNotFound):
			// Removed since the directory was read.
		case isTransient(err):
			return nil, nil, err
		default:
			broken = append(broken, Broken{Path: filepath.Join(s.dir, refsDir, f.Name()), Err: err})
		}
	}
	return refs, broken, nil
}

// readRef returns the reference in the file of that name.
func (s *Store) readRef(file string) (Ref, error) {
	path := filepath.Join(s.dir, refsDir, file)
	info, err := os.Lstat(path)
	if err != nil {
		return Ref{}, asNotFound(err)
	}
	id := identify(info)
	s.mu.Lock()
	known, ok := s.refs[file]
	s.mu.Unlock()
	if ok && known.identity == id {
		return known.ref, nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return Ref{}, asNotFound(err)
	}
	var ref Ref
	if err := format.Ref.Decode(data, &ref); err != nil {
		return Ref{}, unread("reference "+file, err)
	}
	if refFile(ref.Name) != file {
		return Ref{}, fmt.Errorf("reference %s is damaged: it names %q", file, ref.Name)
	}
	if _, err := directory(ref.Image); err != nil {
		return Ref{}, fmt.Errorf("reference %s is damaged: %w", file, err)
	}
	s.mu.Lock()
	s.refs[file] = identityRef{identity: id, ref: ref}
	s.mu.Unlock()
	return ref, nil
}

// Usage returns what records, names and pins take on disk, with the folders that
// hold them.
func (s *Store) Usage(ctx context.Context) (usage.Usage, error) {
	var sum usage.Usage
	for _, dir := range []string{imagesDir, refsDir, pinsDir, filesDir} {
		u, err := usage.Of(ctx, filepath.Join(s.dir, dir))
		if err != nil {
			return usage.Usage{}, err
		}
		sum = sum.Plus(u)
	}
	return sum, nil
}

// UsageOf returns what the image's record and its names take on disk; its trees
// are not among it.
func (s *Store) UsageOf(ctx context.Context, e Entry) (usage.Usage, error) {
	sum, err := usage.Of(ctx, filepath.Join(s.dir, imagesDir, e.Image.ID.Encoded()))
	if err != nil {
		return usage.Usage{}, err
	}
	for _, name := range slices.Concat(e.Tags, e.Digests) {
		u, err := usage.Single(filepath.Join(s.dir, refsDir, refFile(name)))
		if err != nil {
			return usage.Usage{}, err
		}
		sum = sum.Plus(u)
	}
	return sum, nil
}

// refFile returns the name of the file that holds the reference called name.
func refFile(name string) string {
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:])
}
