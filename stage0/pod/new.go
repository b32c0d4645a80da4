package pod

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/appc/spec/schema"

	"github.com/gantry-cri/gantry/stage0/durable"
	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/failpoint"
	"github.com/gantry-cri/gantry/stage0/format"
	"github.com/gantry-cri/gantry/stage0/manifest"
)

// New allocates a UUID and makes the pod's directory, locked and placed in
// prepare. The record is completed (schema, UUID, boot, time) and kept for
// Commit. A caller that closes without Commit leaves an aborted prepare, which
// the sweep deletes.
func (p *Pods) New(ctx context.Context, r Record, request manifest.Request) (*Dir, error) {
	u, err := manifest.NewUUID()
	if err != nil {
		return nil, err
	}
	if err := os.Mkdir(p.Path(u), 0o750); err != nil {
		return nil, fmt.Errorf("make pod directory: %w", durable.NoSpace(err))
	}
	failpoint.Hit(failpoint.PodMade)
	// Between mkdir and flock a sweep may take the empty directory for an aborted
	// prepare; lockDir notices and says that it is gone.
	d, err := p.lockDir(ctx, u)
	if err != nil {
		return nil, err
	}
	failpoint.Hit(failpoint.PodLocked)
	r.Schema, r.UUID, r.ID = format.Pod.Current, u, u.ID(request)
	r.BootID, r.CreatedAt = p.bootID, time.Now()
	d.record = r
	if err := d.MoveTo(InPrepare); err != nil {
		return nil, errors.Join(err, d.Discard())
	}
	return d, nil
}

// Commit writes the manifest and the record and moves the pod to prepared. When
// it returns nil, the pod of a command line survives a power cut; a pod of CRI
// cannot outlive a boot and is not synced.
func (d *Dir) Commit(pm *schema.PodManifest) error {
	raw, err := json.Marshal(pm)
	if err != nil {
		return fmt.Errorf("write manifest of pod %s: %w: %w", d.uuid, errdefs.ErrInvalid, err)
	}
	if err := d.writeFiles(raw); err != nil {
		return err
	}
	failpoint.Hit(failpoint.PodSynced)
	if err := d.MoveTo(InPrepared); err != nil {
		return err
	}
	failpoint.Hit(failpoint.PodPrepared)
	return nil
}

// writeFiles writes manifest and record, and makes durable what the pod has by then.
func (d *Dir) writeFiles(rawManifest []byte) (err error) {
	rawRecord, err := encode(d.record)
	if err != nil {
		return fmt.Errorf("write record of pod %s: %w", d.uuid, err)
	}
	var files durable.Batch
	defer func() { err = errors.Join(err, files.Close()) }()
	if err := files.Write(d.Path(manifestFile), rawManifest, fileMode); err != nil {
		return err
	}
	failpoint.Hit(failpoint.ManifestWritten)
	if err := files.Write(d.Path(recordFile), rawRecord, fileMode); err != nil {
		return err
	}
	failpoint.Hit(failpoint.RecordWritten)
	if d.survival() == durable.Kill {
		return nil
	}
	return files.Sync(d.Path(), filepath.Join(d.pods.dir, byID))
}

// Discard deletes a pod that was not committed, and gives the lock back.
func (d *Dir) Discard() error {
	err := os.RemoveAll(d.Path())
	failpoint.Hit(failpoint.AbortedFilesDeleted)
	if d.place != Nowhere {
		if rerr := os.Remove(d.pods.link(d.place, d.uuid)); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	if err != nil {
		err = fmt.Errorf("discard pod %s: %w", d.uuid, err)
	}
	return errors.Join(err, d.Close())
}

// survival is that of the pod's files: pods of CRI cannot outlive a boot.
func (d *Dir) survival() durable.Survival {
	if d.record.Owner == OwnerCRI {
		return durable.Kill
	}
	return durable.PowerCut
}

// fileMode is that of all files of a pod: for root alone.
const fileMode = 0o600

// writeJSON commits v as a small file.
func writeJSON(path string, v any, s durable.Survival) error {
	raw, err := encode(v)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return durable.WriteFile(path, raw, fileMode, s)
}

// encode is the text of a file: a line of JSON.
func encode(v any) ([]byte, error) {
	raw, err := json.Marshal(v)
	return append(raw, '\n'), err
}
