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
	"strings"
	"syscall"

	"github.com/opencontainers/go-digest"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/format"
	"github.com/gantry-cri/gantry/stage0/readonly"
	"github.com/gantry-cri/gantry/stage0/usage"
)

// Broken is an object on disk that cannot be understood: it is left out of
// every answer, and pulling the image again replaces it.
type Broken struct {
	Path string
	Err  error
	// ReadOnly is the read-only store that has it; empty for the data directory.
	ReadOnly readonly.Dir
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
	var entries []Entry
	seen := map[string]bool{}
	for _, dir := range s.stores() {
		found, unread, err := s.recordsIn(dir, seen)
		if err != nil {
			return nil, nil, fmt.Errorf("list images: %w", err)
		}
		broken = append(broken, unread...)
		for _, r := range found {
			e, err := s.newEntry(r, refs)
			if err != nil {
				return nil, nil, fmt.Errorf("list images: %w", err)
			}
			entries = append(entries, e)
		}
	}
	slices.SortFunc(entries, func(a, b Entry) int { return strings.Compare(string(a.Image.ID), string(b.Image.ID)) })
	return entries, broken, nil
}

// recordsIn returns the records of one store that have not been seen in another, and
// those that cannot be understood.
func (s *Store) recordsIn(store string, seen map[string]bool) (found []record, broken []Broken, err error) {
	dirs, err := os.ReadDir(filepath.Join(store, imagesDir))
	if err != nil {
		return nil, nil, err
	}
	for _, d := range dirs {
		if _, ok := fromDirectory(d.Name()); !ok || seen[d.Name()] {
			continue
		}
		r, err := s.recordIn(store, d.Name())
		switch {
		case err == nil:
			seen[d.Name()] = true
			found = append(found, r)
		case errors.Is(err, errdefs.ErrNotFound) && !thereIn(store, d.Name()):
			// Removed since the directory was read.
		case isTransient(err):
			return nil, nil, err
		default:
			broken = append(broken, Broken{Path: filepath.Join(store, imagesDir, d.Name()), Err: err, ReadOnly: s.readOnlyStore(store)})
		}
	}
	return found, broken, nil
}

// there says whether any store has the image.
func (s *Store) there(name string) bool {
	return slices.ContainsFunc(s.stores(), func(dir string) bool { return thereIn(dir, name) })
}

func thereIn(store, name string) bool {
	_, err := os.Lstat(filepath.Join(store, imagesDir, name))
	return err == nil
}

// newEntry picks the image's names out of refs, and looks for a pin.
func (s *Store) newEntry(rec record, refs []Ref) (e Entry, err error) {
	img := rec.image
	e = Entry{Image: img, NamedAt: img.PulledAt, ReadOnly: s.readOnlyStore(rec.store)}
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
		// Not the class of a name that somebody got wrong.
		return record{}, fmt.Errorf("%s is damaged: %w: %s", imageFile, errdefs.ErrUnverified, err.Error())
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

// readRefs returns the references of all stores; a name in the data directory is the
// latest.
func (s *Store) readRefs() (refs []Ref, broken []Broken, err error) {
	seen := map[string]bool{}
	for _, dir := range s.refStores() {
		found, unread, err := s.refsIn(dir, seen)
		if err != nil {
			return nil, nil, err
		}
		refs, broken = append(refs, found...), append(broken, unread...)
	}
	return refs, broken, nil
}

// refStores are where names are looked for, in that order.
func (s *Store) refStores() []string {
	dirs := s.stores()
	return append([]string{s.dir}, dirs[:len(dirs)-1]...)
}

// refsIn returns the references of one store, but for names that were seen before.
// Those that have not changed since they were read last cost a stat.
func (s *Store) refsIn(store string, seen map[string]bool) (refs []Ref, broken []Broken, err error) {
	files, err := os.ReadDir(filepath.Join(store, refsDir))
	if err != nil {
		return nil, nil, err
	}
	for _, f := range files {
		if seen[f.Name()] {
			continue
		}
		seen[f.Name()] = true
		ref, err := s.readRefIn(store, f.Name())
		switch {
		case err == nil:
			refs = append(refs, ref)
		case errors.Is(err, errdefs.ErrNotFound):
			// Removed since the directory was read.
		case isTransient(err):
			return nil, nil, err
		default:
			broken = append(broken, Broken{Path: filepath.Join(store, refsDir, f.Name()), Err: err, ReadOnly: s.readOnlyStore(store)})
		}
	}
	return refs, broken, nil
}

// readRef returns the reference in the file of that name, of the first store that has
// one.
func (s *Store) readRef(file string) (ref Ref, err error) {
	for _, dir := range s.refStores() {
		if ref, err = s.readRefIn(dir, file); !errors.Is(err, errdefs.ErrNotFound) {
			return ref, err
		}
	}
	return ref, err
}

func (s *Store) readRefIn(store, file string) (Ref, error) {
	path := filepath.Join(store, refsDir, file)
	info, err := os.Lstat(path)
	if err != nil {
		return Ref{}, asNotFound(err)
	}
	id := identify(info)
	s.mu.Lock()
	known, ok := s.refs[path]
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
		return Ref{}, fmt.Errorf("reference %s is damaged: %w: %s", file, errdefs.ErrUnverified, err.Error())
	}
	s.mu.Lock()
	s.refs[path] = identityRef{identity: id, ref: ref}
	s.mu.Unlock()
	return ref, nil
}

// Usage returns what records, names and pins take of the data directory, with the
// folders that hold them.
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

// UsageOf returns what the image's record and its names take of the data directory;
// its trees are not among it.
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
