package pod

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/gantry-cri/gantry/stage0/durable"
	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/failpoint"
	"github.com/gantry-cri/gantry/stage0/manifest"
)

// Place is the directory that a pod's link lies in: how far the pod got. The
// names are rkt's.
type Place string

// The places, in the order in which a pod passes them. A pod with a directory
// and no link is nowhere yet.
const (
	Nowhere         Place = ""
	InPrepare       Place = "prepare"
	InPrepared      Place = "prepared"
	InRun           Place = "run"
	InExitedGarbage Place = "exited-garbage"
	InGarbage       Place = "garbage"
)

// Places are all places that a link can lie in.
var Places = [...]Place{InPrepare, InPrepared, InRun, InExitedGarbage, InGarbage}

func placeNames() []string {
	var names []string
	for _, pl := range Places {
		names = append(names, string(pl))
	}
	return names
}

func (p *Pods) link(pl Place, u manifest.UUID) string {
	return filepath.Join(p.dir, string(pl), string(u))
}

// place finds the pod's link. Between two looks the link may be renamed past us,
// so a pod that seems to be nowhere is looked for again.
func (p *Pods) place(u manifest.UUID) (Place, error) {
	for range 3 {
		for _, pl := range Places {
			_, err := os.Lstat(p.link(pl, u))
			if err == nil {
				return pl, nil
			}
			if !errors.Is(err, fs.ErrNotExist) {
				return Nowhere, fmt.Errorf("find place of pod %s: %w", u, err)
			}
		}
	}
	return Nowhere, nil
}

// InPlace lists the pods whose link lies in a place.
func (p *Pods) InPlace(pl Place) ([]manifest.UUID, error) {
	entries, err := os.ReadDir(p.PlaceDir(pl))
	if err != nil {
		return nil, fmt.Errorf("list pods in %s: %w", pl, err)
	}
	var all []manifest.UUID
	for _, e := range entries {
		if u, err := manifest.ParseUUID(e.Name()); err == nil {
			all = append(all, u)
		}
	}
	return all, nil
}

// MoveTo renames the pod's link, which is the whole transition. The pods of the
// command line outlive a boot, so for them both ends of the rename are synced; what
// begins in prepare need not outlive anything. ErrState is a move that Transitions do not have.
func (d *Dir) MoveTo(to Place) error {
	if d.place == to {
		return nil
	}
	if !mayMove(d.place, to) {
		return fmt.Errorf("move pod %s from place %q to %s: %w", d.uuid, d.place, to, errdefs.ErrState)
	}
	if d.place == Nowhere {
		if err := os.Symlink(filepath.Join("..", byID, string(d.uuid)), d.pods.link(to, d.uuid)); err != nil {
			return fmt.Errorf("place pod %s in %s: %w", d.uuid, to, err)
		}
	} else if err := os.Rename(d.pods.link(d.place, d.uuid), d.pods.link(to, d.uuid)); err != nil {
		return fmt.Errorf("move pod %s from %s to %s: %w", d.uuid, d.place, to, err)
	}
	hit(to)
	from := d.place
	d.place = to
	switch {
	case d.record.Owner == OwnerCRI, to == InPrepare:
		return nil
	case from == Nowhere:
		return durable.SyncDir(d.pods.PlaceDir(to))
	}
	return durable.SyncDirs(d.pods.PlaceDir(to), d.pods.PlaceDir(from))
}

// hit tells that a link has been moved to a place.
func hit(to Place) {
	switch to {
	case InPrepare:
		failpoint.Hit(failpoint.PodInPrepare)
	case InPrepared:
		failpoint.Hit(failpoint.PodInPrepared)
	case InRun:
		failpoint.Hit(failpoint.PodInRun)
	case InExitedGarbage:
		failpoint.Hit(failpoint.PodInExitedGarbage)
	case InGarbage:
		failpoint.Hit(failpoint.PodInGarbage)
	}
}

// Delete removes a pod that lies in garbage or exited-garbage: its files first,
// its link last, so that a crash in between leaves a link that a sweep finds.
func (d *Dir) Delete() error {
	if d.place != InGarbage && d.place != InExitedGarbage {
		return fmt.Errorf("delete pod %s in place %q: %w", d.uuid, d.place, errdefs.ErrState)
	}
	if err := os.RemoveAll(d.RunPath()); err != nil {
		return fmt.Errorf("delete pod %s: %w", d.uuid, err)
	}
	failpoint.Hit(failpoint.RunDirDeleted)
	if err := os.RemoveAll(d.Path()); err != nil {
		return fmt.Errorf("delete pod %s: %w", d.uuid, err)
	}
	failpoint.Hit(failpoint.FilesDeleted)
	if err := os.Remove(d.pods.link(d.place, d.uuid)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete pod %s: %w", d.uuid, err)
	}
	failpoint.Hit(failpoint.LinkDeleted)
	return nil
}

// DropDangling removes links of a place that lead nowhere: what a delete that was
// cut short leaves. It returns how many there were.
func (p *Pods) DropDangling() (int, error) {
	dropped := 0
	for _, pl := range Places {
		uuids, err := p.InPlace(pl)
		if err != nil {
			return dropped, err
		}
		for _, u := range uuids {
			if _, err := os.Stat(p.Path(u)); !errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err := os.Remove(p.link(pl, u)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return dropped, fmt.Errorf("drop dangling link of pod %s: %w", u, err)
			}
			dropped++
		}
	}
	return dropped, nil
}
