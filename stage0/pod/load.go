package pod

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"github.com/appc/spec/schema"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/format"
	"github.com/gantry-cri/gantry/stage0/manifest"
)

// errBroken marks a file that is there and cannot be understood: torn by a power
// cut. One of a later version is ErrUnsupported and not broken: after a downgrade no
// sweep may take it for garbage, and nobody may write it anew.
var errBroken = errors.New("unreadable")

// Pod is what lay on disk about a pod at one moment, read without a lock.
type Pod struct {
	Record Record
	Place  Place
	// Exits are the exit records, by app.
	Exits map[string]Exit
	// Started are the apps that run or ran in this boot, by app.
	Started map[string]Started
	// Unsaved says that exit records lie in the run directory alone: the disk was full.
	Unsaved bool
	// Ready says that a sandbox, or the sandbox part of a pod, is up in this boot.
	Ready bool
	// WasReady says that it is, or was in this boot.
	WasReady bool

	// inBoot says that the pod's start was in this boot: its run directory is there.
	inBoot bool
	pods   *Pods
}

// Load reads a pod. ErrNotFound says that there is none, or that it was never
// committed.
func (p *Pods) Load(u manifest.UUID) (*Pod, error) {
	r, err := p.record(u)
	if errors.Is(err, errBroken) {
		err = p.brokenRecord(u, err)
	}
	if err != nil {
		return nil, err
	}
	pod := &Pod{Record: r, pods: p}
	if pod.Place, err = p.place(u); err != nil {
		return nil, err
	}
	if err := pod.Refresh(); err != nil {
		return nil, err
	}
	return pod, nil
}

// brokenRecord is ErrNotFound for a pod that a power cut found in prepare, where nothing is
// synced, until a sweep finds it; of any other the error stays.
func (p *Pods) brokenRecord(u manifest.UUID, err error) error {
	pl, placeErr := p.place(u)
	if placeErr != nil {
		return placeErr
	}
	if pl != Nowhere && pl != InPrepare {
		return err
	}
	return fmt.Errorf("pod %s is not prepared: %w", u, errdefs.ErrNotFound)
}

// Refresh reads again what changes during a pod's life: place, exit records and
// what the run directory says.
func (p *Pod) Refresh() error {
	u := p.Record.UUID
	place, err := p.pods.place(u)
	if err != nil {
		return err
	}
	exits, unsaved, err := p.pods.exits(u)
	if err != nil {
		return err
	}
	started := map[string]Started{}
	ready := false
	if place == InRun {
		for _, a := range p.Record.Apps {
			s, err := p.pods.Started(u, a.Name)
			if err == nil {
				started[a.Name] = s
			} else if !errors.Is(err, errdefs.ErrNotFound) && !errors.Is(err, errBroken) {
				return err
			}
		}
		_, err := os.Stat(p.pods.RunPath(u, readyFile))
		ready = err == nil
	}
	_, err = os.Stat(p.pods.RunPath(u, wasReadyFile))
	p.WasReady = ready || err == nil
	_, err = os.Stat(p.pods.RunPath(u))
	p.Place, p.Exits, p.Unsaved, p.Started, p.Ready, p.inBoot = place, exits, unsaved, started, ready, err == nil
	return nil
}

// Manifest reads the pod's manifest, which never changes.
func (p *Pod) Manifest() (*schema.PodManifest, error) {
	return p.pods.Manifest(p.Record.UUID)
}

// Manifest reads a pod's manifest, which never changes.
func (p *Pods) Manifest(u manifest.UUID) (*schema.PodManifest, error) {
	raw, err := os.ReadFile(p.Path(u, manifestFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("manifest of pod %s: %w", u, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("read manifest of pod %s: %w", u, err)
	}
	pm, err := manifest.Decode(raw)
	if err != nil {
		return nil, fmt.Errorf("pod %s: %w", u, err)
	}
	return pm, nil
}

func (p *Pods) record(u manifest.UUID) (Record, error) {
	var r Record
	if err := readFile(format.Pod, p.Path(u, recordFile), into(&r)); err != nil {
		return Record{}, fmt.Errorf("pod %s: %w", u, err)
	}
	if r.UUID != u {
		return Record{}, fmt.Errorf("pod %s: record of %q: %w", u, r.UUID, errBroken)
	}
	return r, nil
}

// decoder reads the text of a file that is of a version.
type decoder func(version int, text []byte) error

// into decodes what has the same layout in all versions.
func into(v any) decoder {
	return func(_ int, text []byte) error { return json.Unmarshal(text, v) }
}

// readFile reads a file of any version that this program reads: ErrNotFound if there
// is none, ErrUnsupported for one of a later version, errBroken for what is torn.
func readFile(f format.File, path string, decode decoder) error {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return fmt.Errorf("%s: %w", path, errdefs.ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("read: %w", err)
	}
	version, err := f.Version(raw)
	if err == nil {
		err = decode(version, raw)
	}
	if errors.Is(err, errdefs.ErrUnsupported) {
		return fmt.Errorf("%s: %w", path, err)
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %w", path, errBroken, err)
	}
	return nil
}

// Started reads what was written when an app's process ran; ErrNotFound if it
// did not run in this boot. A sandbox's init goes by the name InitApp.
func (p *Pods) Started(u manifest.UUID, app string) (Started, error) {
	var s Started
	if err := readFile(format.Started, p.AppRunPath(u, app, startedFile), into(&s)); err != nil {
		return Started{}, fmt.Errorf("app %s of pod %s: %w", app, u, err)
	}
	return s, nil
}
