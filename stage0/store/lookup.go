package store

import (
	"errors"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/imageref"
)

const (
	appcPrefix = "sha512-"
	ociPrefix  = "sha256:"

	// A shortened id has at least minShort digits, as in rkt: one or two are a
	// slip of the finger more often than they are meant.
	minShort = 3
)

// Lookup finds the image that name stands for: an image id ("sha256:…" or the
// hex digits alone), an appc image id ("sha512-…"), an unambiguous beginning of
// either, or a reference. A name wins over a shortened id that is spelt alike,
// as with docker. It returns ErrNotFound, or ErrInvalid for what is ambiguous or
// no name at all.
func (s *Store) Lookup(name string) (Entry, error) {
	if appc, ok := strings.CutPrefix(name, appcPrefix); ok {
		return s.byID(name, appc, func(i Image) string { return strings.TrimPrefix(i.AppcID, appcPrefix) })
	}
	if id, ok := strings.CutPrefix(name, ociPrefix); ok {
		return s.byID(name, id, func(i Image) string { return i.ID.Encoded() })
	}
	var parseErr error
	if !isImageID(name) {
		var ref imageref.Ref
		if ref, parseErr = imageref.Parse(name); parseErr == nil {
			e, err := s.byRef(ref)
			if err == nil || !errors.Is(err, errdefs.ErrNotFound) {
				return e, err
			}
		}
	}
	if len(name) >= minShort && isHex(name) {
		return s.byID(name, name, func(i Image) string { return i.ID.Encoded() })
	}
	if parseErr != nil {
		return Entry{}, parseErr
	}
	return Entry{}, fmt.Errorf("image %q: %w", name, errdefs.ErrNotFound)
}

// Find returns the record of the image that a reference names, or ErrNotFound. Unlike
// Lookup it does not ask for the image's other names, which takes longer the more images
// there are.
func (s *Store) Find(ref imageref.Ref) (Image, error) {
	r, err := s.readRef(refFile(ref.Name()))
	if errors.Is(err, errdefs.ErrNotFound) {
		return Image{}, fmt.Errorf("image %q: %w", ref, err)
	}
	if err != nil {
		return Image{}, err
	}
	return s.Get(r.Image)
}

// byRef finds the image that a reference names.
func (s *Store) byRef(ref imageref.Ref) (Entry, error) {
	r, err := s.readRef(refFile(ref.Name()))
	if err != nil {
		return Entry{}, err
	}
	return s.entry(r.Image)
}

// byID finds the one image whose id, as idOf spells it, begins with digits.
func (s *Store) byID(name, digits string, idOf func(Image) string) (Entry, error) {
	if len(digits) < minShort {
		return Entry{}, fmt.Errorf("image id %q is too short: want %d digits at least: %w", name, minShort, errdefs.ErrInvalid)
	}
	if !isHex(digits) {
		return Entry{}, fmt.Errorf("image id %q: want lower-case hex digits: %w", name, errdefs.ErrInvalid)
	}
	if id, ok := fromDirectory(digits); ok {
		// A full id needs no list.
		if e, err := s.entry(id); err == nil || !errors.Is(err, errdefs.ErrNotFound) {
			return e, err
		}
	}
	entries, err := s.List()
	if err != nil {
		return Entry{}, err
	}
	var found []Entry
	for _, e := range entries {
		if strings.HasPrefix(idOf(e.Image), digits) {
			found = append(found, e)
		}
	}
	if len(found) == 0 {
		return Entry{}, fmt.Errorf("image %q: %w", name, errdefs.ErrNotFound)
	}
	// One appc image on other dependencies is another image of the same appc id: the
	// latest is meant.
	newest, same := found[0], true
	for _, e := range found[1:] {
		same = same && idOf(e.Image) == idOf(newest.Image)
		if e.Image.PulledAt.After(newest.Image.PulledAt) {
			newest = e
		}
	}
	if same {
		return newest, nil
	}
	return Entry{}, fmt.Errorf("image id %q is ambiguous: %s, %s: %w", name, found[0].Image.ID, found[1].Image.ID, errdefs.ErrInvalid)
}

// entry returns the image with its names.
func (s *Store) entry(id digest.Digest) (Entry, error) {
	refs, _, err := s.readRefs()
	if err != nil {
		return Entry{}, err
	}
	r, err := s.record(id)
	if err != nil {
		return Entry{}, err
	}
	return s.newEntry(r, refs)
}

// isImageID tells whether s is a full image id, which no reference looks like.
func isImageID(s string) bool {
	_, ok := fromDirectory(s)
	return ok
}

func isHex(s string) bool {
	return strings.Trim(s, "0123456789abcdef") == ""
}
