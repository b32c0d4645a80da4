package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/gantry-cri/gantry/stage0/durable"
	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/failpoint"
	"github.com/gantry-cri/gantry/stage0/format"
	"github.com/gantry-cri/gantry/stage0/readonly"
)

// Put makes the image's record. It is idempotent: nil means that a record of
// img.ID is on disk, not that this call wrote it; one that is broken is replaced.
// The digests of manifest and config are checked against img.
func (s *Store) Put(ctx context.Context, img Image, manifest, config []byte) error {
	return s.Commit(ctx, img, manifest, config)
}

// SetRef makes ref.Name the name of ref.Image, whatever it named before. It
// returns ErrNotFound when there is no such image. A zero UpdatedAt means now.
func (s *Store) SetRef(ctx context.Context, ref Ref) error {
	return s.change(ctx, func() error {
		if _, err := s.Get(ref.Image); err != nil {
			return fmt.Errorf("name %q: %w", ref.Name, err)
		}
		return s.writeRefs(ref)
	})
}

// RemoveRef takes a name away. The image stays, and a name that is not there is
// no error; one that a read-only store has as well is ErrReadOnly.
func (s *Store) RemoveRef(ctx context.Context, name string) error {
	return s.change(ctx, func() error {
		if err := s.removeRef(refFile(name)); err != nil {
			return fmt.Errorf("remove name %q: %w", name, err)
		}
		if err := durable.SyncDir(filepath.Join(s.dir, refsDir)); err != nil {
			return err
		}
		for _, d := range s.readOnly {
			if _, err := s.readRefIn(string(d), refFile(name)); !errors.Is(err, errdefs.ErrNotFound) {
				return fmt.Errorf("remove name %q: %w", name, stays(d))
			}
		}
		return nil
	})
}

// stays is the error of who removes what a read-only store has.
func stays(in readonly.Dir) error {
	return fmt.Errorf("it lies in the read-only store %s: %w", in, readonly.ErrReadOnly)
}

// Commit is Put and then SetRef of each of refs, with nobody between: a removal
// of the image comes before all of it or after all of it.
func (s *Store) Commit(ctx context.Context, img Image, manifest, config []byte, refs ...Ref) error {
	img.Schema = format.Image.Current
	name, err := checkNew(img, manifest, config)
	if err != nil {
		return err
	}
	return s.change(ctx, func() error {
		if err := s.writeRecord(name, img, manifest, config); err != nil {
			return fmt.Errorf("commit image %s: %w", img.ID, err)
		}
		refs := slices.Clone(refs)
		for i := range refs {
			refs[i].Image = img.ID
		}
		if err := s.writeRefs(refs...); err != nil {
			return fmt.Errorf("commit image %s: %w", img.ID, err)
		}
		return nil
	})
}

// Remove removes all names of the image at once and then its record; its trees
// are left to the collection. An image that is not there is no error; one that a
// pin holds is ErrState. Of one that a read-only store has, all goes that the data
// directory has of it; the image stays, with ErrReadOnly.
func (s *Store) Remove(ctx context.Context, id digest.Digest) error {
	name, err := directory(id)
	if err != nil {
		return err
	}
	err = s.change(ctx, func() error {
		if err := s.refusePinned(id); err != nil {
			return err
		}
		if err := s.removeAll(name, id); err != nil {
			return err
		}
		for _, d := range s.readOnly {
			if thereIn(string(d), name) {
				return stays(d)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("remove image %s: %w", id, err)
	}
	return nil
}

// removeAll moves the record away first: a name whose image is not there names
// nothing, so this one rename takes all names at the same moment, and a crash
// after it leaves only references for the sweep.
func (s *Store) removeAll(name string, id digest.Digest) error {
	gone, err := os.MkdirTemp(filepath.Join(s.dir, tmpDir), gonePrefix)
	if err != nil {
		return durable.NoSpace(err)
	}
	record := filepath.Join(s.dir, imagesDir, name)
	err = os.Rename(record, filepath.Join(gone, name))
	s.forget(record)
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	failpoint.Hit(failpoint.ImageRetired)
	if err == nil {
		err = durable.SyncDir(filepath.Join(s.dir, imagesDir))
	}
	if err == nil {
		err = s.removeRefsTo(id)
	}
	if err = errors.Join(err, os.RemoveAll(gone)); err != nil {
		return err
	}
	failpoint.Hit(failpoint.ImageRemoved)
	return nil
}

func (s *Store) removeRefsTo(id digest.Digest) error {
	refs, err := s.ownRefs()
	if err != nil {
		return err
	}
	removed := false
	for _, r := range refs {
		if r.Image != id {
			continue
		}
		removed = true
		if err := s.removeRef(refFile(r.Name)); err != nil {
			return err
		}
		failpoint.Hit(failpoint.RefRemoved)
	}
	if !removed {
		return nil
	}
	return durable.SyncDir(filepath.Join(s.dir, refsDir))
}

// Sweep removes what calls that were cut short left in tmp, references to images
// that are no longer there, and pins that are over. It disturbs no call that runs.
func (s *Store) Sweep(ctx context.Context) error {
	return s.change(ctx, func() error {
		entries, err := os.ReadDir(filepath.Join(s.dir, tmpDir))
		if err != nil {
			return fmt.Errorf("sweep image store: %w", err)
		}
		for _, e := range entries {
			err = errors.Join(err, s.sweepEntry(e.Name()))
		}
		if err = errors.Join(err, s.sweepRefs(), s.sweepPins(), s.sweepKnown()); err != nil {
			return fmt.Errorf("sweep image store: %w", err)
		}
		return nil
	})
}

// sweepEntry runs under the lock of refs/, without which nobody has an entry of
// the first three kinds.
func (s *Store) sweepEntry(name string) error {
	for _, prefix := range []string{imagePrefix, refPrefix, gonePrefix} {
		if strings.HasPrefix(name, prefix) {
			return os.RemoveAll(filepath.Join(s.dir, tmpDir, name))
		}
	}
	layer, ok := strings.CutPrefix(name, lockPrefix)
	if !ok {
		return nil
	}
	unlock, err := s.TryLockLayer(layer)
	if errors.Is(err, errdefs.ErrBusy) {
		return nil
	}
	if err == nil {
		unlock()
	}
	return err
}

// ownRefs are the references of the data directory, the only ones that are changed.
func (s *Store) ownRefs() ([]Ref, error) {
	refs, _, err := s.refsIn(s.dir, map[string]bool{})
	return refs, err
}

func (s *Store) sweepRefs() error {
	refs, err := s.ownRefs()
	if err != nil {
		return err
	}
	for _, r := range refs {
		if s.there(r.Image.Encoded()) {
			continue
		}
		err = errors.Join(err, s.removeRef(refFile(r.Name)))
	}
	return err
}

// change runs f as the only one who changes records or references. f does
// nothing that takes long.
func (s *Store) change(ctx context.Context, f func() error) error {
	unlock, err := s.lockDir(ctx, refsDir, durable.Exclusive)
	if err != nil {
		return err
	}
	defer unlock()
	return f()
}

// checkNew holds a record that is about to be written to the rules for reading
// one, and to the bytes that come with it.
func checkNew(img Image, manifest, config []byte) (string, error) {
	name, err := directory(img.ID)
	if err == nil {
		err = img.check(img.ID)
	}
	if err != nil {
		return "", fmt.Errorf("commit image %q: %w", img.ID, err)
	}
	if digest.FromBytes(config) != img.ID {
		return "", fmt.Errorf("commit image %s: its config has another digest: %w", img.ID, errdefs.ErrUnverified)
	}
	if img.ManifestDigest.Algorithm().FromBytes(manifest) != img.ManifestDigest {
		return "", fmt.Errorf("commit image %s: its manifest is not %s: %w", img.ID, img.ManifestDigest, errdefs.ErrUnverified)
	}
	return name, nil
}

// encode is the text of a record or reference.
func encode(v any) ([]byte, error) {
	data, err := json.MarshalIndent(v, "", "\t")
	return append(data, '\n'), err
}

// refContent is a reference on disk. In version 0 it carried none.
type refContent struct {
	Schema int `json:"schema"`
	Ref
}

// fileMode is that of records and references.
const fileMode = 0o644

// writeRecord makes the image's directory unless a good one is there, or in a
// read-only store.
func (s *Store) writeRecord(name string, img Image, manifest, config []byte) error {
	if _, err := s.record(img.ID); err == nil {
		return nil
	} else if isTransient(err) {
		return err
	}
	if thereIn(s.dir, name) { // broken
		if err := s.removeBroken(name); err != nil {
			return err
		}
	}
	data, err := encode(img)
	if err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(filepath.Join(s.dir, tmpDir), imagePrefix)
	if err != nil {
		return durable.NoSpace(err)
	}
	err = writeImageFiles(tmp, data, manifest, config)
	if err == nil {
		failpoint.Hit(failpoint.ImageWritten)
		err = durable.Rename(tmp, filepath.Join(s.dir, imagesDir, name), failpoint.ImageRenamed)
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(tmp))
	}
	failpoint.Hit(failpoint.ImageCommitted)
	return nil
}

// writeImageFiles makes dir that of an image, and durable but for its own name.
func writeImageFiles(dir string, record, manifest, config []byte) (err error) {
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	var files durable.Batch
	defer func() { err = errors.Join(err, files.Close()) }()
	err = errors.Join(
		files.Write(filepath.Join(dir, imageFile), record, fileMode),
		files.Write(filepath.Join(dir, manifestFile), manifest, fileMode),
		files.Write(filepath.Join(dir, configFile), config, fileMode),
	)
	if err != nil {
		return err
	}
	return files.Sync(dir)
}

// removeBroken makes place for a good record; names stay.
func (s *Store) removeBroken(name string) error {
	gone, err := os.MkdirTemp(filepath.Join(s.dir, tmpDir), gonePrefix)
	if err != nil {
		return durable.NoSpace(err)
	}
	err = os.Rename(filepath.Join(s.dir, imagesDir, name), filepath.Join(gone, name))
	return errors.Join(err, os.RemoveAll(gone))
}

// writeRefs writes names, each whole or not at all, and waits for the disk once for all
// their files and once for their places.
func (s *Store) writeRefs(refs ...Ref) error {
	if len(refs) == 0 {
		return nil
	}
	tmp, err := os.MkdirTemp(filepath.Join(s.dir, tmpDir), refPrefix)
	if err == nil {
		err = writeRefFiles(tmp, refs)
		if err == nil {
			failpoint.Hit(failpoint.RefWritten)
			err = placeRefs(tmp, filepath.Join(s.dir, refsDir), refs)
		}
		err = errors.Join(err, os.RemoveAll(tmp))
	}
	if err != nil {
		return fmt.Errorf("name %s: %w", quoted(refs), durable.NoSpace(err))
	}
	failpoint.Hit(failpoint.RefCommitted)
	return nil
}

func quoted(refs []Ref) string {
	names := make([]string, len(refs))
	for i, ref := range refs {
		names[i] = strconv.Quote(ref.Name)
	}
	return strings.Join(names, ", ")
}

// writeRefFiles makes the names' files in dir, and what is in them durable.
func writeRefFiles(dir string, refs []Ref) (err error) {
	var files durable.Batch
	defer func() { err = errors.Join(err, files.Close()) }()
	for _, ref := range refs {
		if ref.UpdatedAt.IsZero() {
			ref.UpdatedAt = time.Now().UTC()
		}
		data, err := encode(refContent{format.Ref.Current, ref})
		if err == nil {
			err = files.Write(filepath.Join(dir, refFile(ref.Name)), data, fileMode)
		}
		if err != nil {
			return err
		}
	}
	return files.Sync()
}

// placeRefs moves the names' files to where they count, and makes the move durable.
func placeRefs(from, to string, refs []Ref) error {
	for _, ref := range refs {
		file := refFile(ref.Name)
		if err := os.Rename(filepath.Join(from, file), filepath.Join(to, file)); err != nil {
			return err
		}
		failpoint.Hit(failpoint.RefRenamed)
	}
	return durable.SyncDir(to)
}

func (s *Store) removeRef(file string) error {
	path := filepath.Join(s.dir, refsDir, file)
	err := os.Remove(path)
	s.mu.Lock()
	delete(s.refs, path)
	s.mu.Unlock()
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
