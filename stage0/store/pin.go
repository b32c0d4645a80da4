package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/gantry-cri/gantry/stage0/durable"
	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/format"
)

const pinsDir = "pins"

// Pin keeps an image from being removed. One that ends is a lease.
type Pin struct {
	Schema int           `json:"schema"` // format.Pin's
	Image  digest.Digest `json:"image"`
	Since  time.Time     `json:"since"`
	Until  *time.Time    `json:"until,omitempty"` // nil: until it is taken away
}

// holds says whether the pin counts at a moment.
func (p Pin) holds(now time.Time) bool { return p.Until == nil || now.Before(*p.Until) }

// Pin holds the image until a moment, or, if that is zero, until Unpin. The latest
// pin of an image replaces the one before. It returns ErrNotFound when there is no
// such image.
func (s *Store) Pin(ctx context.Context, id digest.Digest, until time.Time) error {
	p := Pin{Schema: format.Pin.Current, Image: id, Since: time.Now().UTC()}
	if !until.IsZero() {
		utc := until.UTC()
		p.Until = &utc
	}
	return s.change(ctx, func() error {
		if _, err := s.Get(id); err != nil {
			return fmt.Errorf("pin: %w", err)
		}
		data, err := encode(p)
		if err != nil {
			return fmt.Errorf("pin image %s: %w", id, err)
		}
		return durable.WriteFile(s.pinFile(id), data, fileMode, durable.PowerCut)
	})
}

// Unpin takes the pin of an image away. One that is not there is no error.
func (s *Store) Unpin(ctx context.Context, id digest.Digest) error {
	return s.change(ctx, func() error { return s.removePin(id) })
}

func (s *Store) removePin(id digest.Digest) error {
	err := os.Remove(s.pinFile(id))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = durable.SyncDir(filepath.Join(s.dir, pinsDir))
	}
	if err != nil {
		return fmt.Errorf("unpin image %s: %w", id, err)
	}
	return nil
}

func (s *Store) pinFile(id digest.Digest) string {
	return filepath.Join(s.dir, pinsDir, id.Encoded())
}

// pinned says whether a pin holds the image now. One that cannot be understood, of
// a later version for example, holds it until somebody takes it away: it was meant to.
func (s *Store) pinned(id digest.Digest) (bool, error) {
	data, err := os.ReadFile(s.pinFile(id))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("pin of image %s: %w", id, err)
	}
	var p Pin
	return format.Pin.Decode(data, &p) != nil || p.holds(time.Now()), nil
}

// refusePinned is for what removes the image.
func (s *Store) refusePinned(id digest.Digest) error {
	held, err := s.pinned(id)
	if err == nil && held {
		err = fmt.Errorf("it is pinned: %w", errdefs.ErrState)
	}
	return err
}

// sweepPins removes pins that are over, and those of images that are not there.
func (s *Store) sweepPins() error {
	files, err := os.ReadDir(filepath.Join(s.dir, pinsDir))
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range files {
		id, ok := fromDirectory(f.Name())
		if !ok { // a write that was cut short: writers hold the lock that we have
			errs = append(errs, os.Remove(filepath.Join(s.dir, pinsDir, f.Name())))
			continue
		}
		held, err := s.pinned(id)
		if err == nil && (!held || !s.there(f.Name())) {
			err = s.removePin(id)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
