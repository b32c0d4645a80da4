package pod

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/gantry-cri/gantry/stage0/durable"
	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/manifest"
)

// Dir is a pod that is locked: only its holder may change it. The lock goes with
// Close, or with the process.
type Dir struct {
	pods   *Pods
	uuid   manifest.UUID
	place  Place
	record Record
	f      *os.File // the pod's directory, which carries the flock
}

// Lock waits until nobody else holds the pod and takes it. ErrNotFound says that
// the pod is gone; a context that ends first is returned as its own error.
func (p *Pods) Lock(ctx context.Context, u manifest.UUID) (*Dir, error) {
	d, err := p.lockDir(ctx, u)
	if err != nil {
		return nil, err
	}
	return d.read()
}

// read learns place and record of a pod that was just locked. One that is not
// committed yet, or was torn by a power cut, may have no record: its holder may
// still delete it.
func (d *Dir) read() (*Dir, error) {
	var err error
	if d.place, err = d.pods.place(d.uuid); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	if d.record, err = d.pods.record(d.uuid); err != nil && !errors.Is(err, errdefs.ErrNotFound) && !errors.Is(err, errBroken) {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

func (p *Pods) lockDir(ctx context.Context, u manifest.UUID) (*Dir, error) {
	return p.locked(u, func(path string) (*os.File, error) { return durable.Lock(ctx, path, durable.Exclusive) })
}

func (p *Pods) locked(u manifest.UUID, lock func(path string) (*os.File, error)) (*Dir, error) {
	f, err := lock(p.Path(u))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("pod %s: %w", u, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("pod %s: %w", u, err)
	}
	return &Dir{pods: p, uuid: u, f: f}, nil
}

// TryLock is for sweeps, which change only what nobody holds: ErrBusy if somebody
// does. It is not for learning a state: while it holds the lock, others wait.
func (p *Pods) TryLock(u manifest.UUID) (*Dir, error) {
	d, err := p.locked(u, func(path string) (*os.File, error) { return durable.TryLock(path, durable.Exclusive) })
	if err != nil {
		return nil, err
	}
	return d.read()
}

// Close gives the lock back.
func (d *Dir) Close() error {
	if err := d.f.Close(); err != nil {
		return fmt.Errorf("unlock pod %s: %w", d.uuid, err)
	}
	return nil
}

// UUID names the pod.
func (d *Dir) UUID() manifest.UUID { return d.uuid }

// Place says where the pod's link lies; it is true as long as the lock is held.
func (d *Dir) Place() Place { return d.place }

// Record is the pod's record; its UUID is empty when there is none.
func (d *Dir) Record() Record { return d.record }

// Path joins elem to the pod's directory.
func (d *Dir) Path(elem ...string) string { return d.pods.Path(d.uuid, elem...) }

// RunPath joins elem to the pod's run directory.
func (d *Dir) RunPath(elem ...string) string { return d.pods.RunPath(d.uuid, elem...) }
