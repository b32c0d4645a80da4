package pod

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/manifest"
	"github.com/gantry-cri/gantry/stage0/usage"
)

// SweepAborted deletes what a prepare that was killed left: directories without a
// link, links in prepare and pods without a readable record, as far as nobody
// holds their lock. Pods in run are never touched. It returns what it deleted.
func (p *Pods) SweepAborted() ([]manifest.UUID, error) {
	all, err := p.List()
	if err != nil {
		return nil, err
	}
	var swept []manifest.UUID
	var errs []error
	for _, u := range all {
		did, err := p.sweepOne(u)
		if err != nil {
			errs = append(errs, err)
		}
		if did {
			swept = append(swept, u)
		}
	}
	_, err = p.DropDangling()
	return swept, errors.Join(append(errs, err)...)
}

func (p *Pods) sweepOne(u manifest.UUID) (bool, error) {
	aborted, err := p.aborted(u)
	if err != nil || !aborted {
		return false, err
	}
	d, err := p.TryLock(u)
	if errors.Is(err, errdefs.ErrBusy) || errors.Is(err, errdefs.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	// Looked at again under the lock: the prepare may have ended meanwhile.
	if aborted, err = p.aborted(u); err != nil || !aborted {
		return false, errors.Join(err, d.Close())
	}
	return true, d.Discard()
}

func (p *Pods) aborted(u manifest.UUID) (bool, error) {
	pl, err := p.place(u)
	if err != nil {
		return false, err
	}
	switch pl {
	case Nowhere, InPrepare:
		return true, nil
	case InPrepared:
		_, err := p.record(u)
		return errors.Is(err, errBroken) || errors.Is(err, errdefs.ErrNotFound), nil
	}
	return false, nil
}

// Aborted returns the pods that SweepAborted would delete now.
func (p *Pods) Aborted() ([]manifest.UUID, error) {
	all, err := p.List()
	if err != nil {
		return nil, err
	}
	var found []manifest.UUID
	for _, u := range all {
		aborted, err := p.aborted(u)
		if err != nil {
			return nil, err
		}
		if !aborted {
			continue
		}
		d, err := p.TryLock(u)
		if errors.Is(err, errdefs.ErrBusy) || errors.Is(err, errdefs.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		aborted, err = p.aborted(u)
		if err = errors.Join(err, d.Close()); err != nil {
			return nil, err
		}
		if aborted {
			found = append(found, u)
		}
	}
	return found, nil
}

// Expired returns the pods of an owner that were prepared before a moment and
// never started.
func (p *Pods) Expired(owner Owner, before time.Time) ([]manifest.UUID, error) {
	uuids, err := p.InPlace(InPrepared)
	if err != nil {
		return nil, err
	}
	var expired []manifest.UUID
	for _, u := range uuids {
		r, err := p.record(u)
		if errors.Is(err, errBroken) || errors.Is(err, errdefs.ErrNotFound) {
			continue // a sweep's
		}
		if err != nil {
			return nil, err
		}
		if r.Owner == owner && r.CreatedAt.Before(before) {
			expired = append(expired, u)
		}
	}
	return expired, nil
}

// ExpirePrepared moves to garbage what Expired returns.
func (p *Pods) ExpirePrepared(owner Owner, before time.Time) ([]manifest.UUID, error) {
	uuids, err := p.Expired(owner, before)
	if err != nil {
		return nil, err
	}
	var moved []manifest.UUID
	for _, u := range uuids {
		did, err := p.expireOne(u)
		if err != nil {
			return moved, fmt.Errorf("expire prepared pod %s: %w", u, err)
		}
		if did {
			moved = append(moved, u)
		}
	}
	return moved, nil
}

func (p *Pods) expireOne(u manifest.UUID) (did bool, err error) {
	d, err := p.TryLock(u)
	if errors.Is(err, errdefs.ErrBusy) || errors.Is(err, errdefs.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	if d.place != InPrepared {
		return false, nil
	}
	return true, d.MoveTo(InGarbage)
}

// Usage returns what the pod's directory takes on disk: writable layers, volumes,
// logs and records.
func (p *Pods) Usage(ctx context.Context, u manifest.UUID) (usage.Usage, error) {
	return usage.Of(ctx, p.Path(u))
}
