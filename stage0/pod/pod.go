// Package pod keeps pods on disk: their directories, places, locks, records and
// exit records. It is the only code that knows a path below pods/.
//
//	<dir>/pods/by-id/<uuid>/                      the pod's files, at a path that never changes
//	<dir>/pods/{prepare,prepared,run,…}/<uuid>    → ../by-id/<uuid>: how far the pod got
//	<run dir>/pods/<uuid>/                        what must die with the boot
//
// The link's place says how far the pod got; the exit record says that it ended;
// the kernel says that it lives; a lock (flock on the pod's directory) only
// serialises who may change it. Nobody tries a lock to learn a state.
package pod

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/gantry-cri/gantry/stage0/durable"
	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/manifest"
)

const (
	byID          = "by-id"
	recordFile    = "pod.json"
	manifestFile  = "manifest"
	exitFile      = "exit.json"
	intentsFile   = "intents.json"
	resourcesFile = "resources.json"
	readyFile     = "ready"
	wasReadyFile  = "was-ready"
	startedFile   = "started.json"
	bootFile      = "boot"
	podLink       = "pod" // in the pod's run directory: the pod's directory
)

// Pods is the set of all pods of a data directory. Its methods may be called by
// any number of goroutines and processes at once.
type Pods struct {
	dir    string // <data dir>/pods
	runDir string // <run dir>/pods
	bootID string
}

// Open returns the pods of a data directory, and makes what is missing of the
// directories. What lies below runDir is taken for gone at the next boot.
func Open(dir, runDir string) (*Pods, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("read boot id: %w", err)
	}
	p := &Pods{
		dir:    filepath.Join(dir, "pods"),
		runDir: filepath.Join(runDir, "pods"),
		bootID: strings.TrimSpace(string(boot)),
	}
	for _, d := range append([]string{byID}, placeNames()...) {
		if err := os.MkdirAll(filepath.Join(p.dir, d), 0o750); err != nil {
			return nil, fmt.Errorf("make pod directories: %w", err)
		}
	}
	return p, p.openRunDir()
}

// openRunDir empties the run directory if it is of another boot: /run is a tmpfs
// on real nodes, but --run-dir may lie on a disk.
func (p *Pods) openRunDir() error {
	if err := os.MkdirAll(p.runDir, 0o711); err != nil {
		return fmt.Errorf("make run directory: %w", err)
	}
	marker := filepath.Join(p.runDir, bootFile)
	was, err := os.ReadFile(marker)
	if err == nil && string(was) == p.bootID {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read boot of run directory: %w", err)
	}
	if err == nil {
		if err := removeContents(p.runDir); err != nil {
			return fmt.Errorf("empty run directory of another boot: %w", err)
		}
	}
	return durable.WriteFile(marker, []byte(p.bootID), fileMode, durable.Kill)
}

func removeContents(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// BootID names the boot that this process runs in.
func (p *Pods) BootID() string { return p.bootID }

// PlaceDir is the directory of a place's links, for those who watch it.
func (p *Pods) PlaceDir(pl Place) string { return filepath.Join(p.dir, string(pl)) }

// RunDir is the directory that holds the run directories of all pods.
func (p *Pods) RunDir() string { return p.runDir }

// Path joins elem to the pod's directory, which never moves.
func (p *Pods) Path(u manifest.UUID, elem ...string) string {
	return filepath.Join(append([]string{p.dir, byID, string(u)}, elem...)...)
}

// RunPath joins elem to the pod's run directory, which dies with the boot.
func (p *Pods) RunPath(u manifest.UUID, elem ...string) string {
	return filepath.Join(append([]string{p.runDir, string(u)}, elem...)...)
}

// AppRunPath joins elem to the run directory of one app of the pod.
func (p *Pods) AppRunPath(u manifest.UUID, app string, elem ...string) string {
	return p.RunPath(u, append([]string{"apps", app}, elem...)...)
}

// List returns every pod that has a directory, in no particular order.
func (p *Pods) List() ([]manifest.UUID, error) {
	entries, err := os.ReadDir(filepath.Join(p.dir, byID))
	if err != nil {
		return nil, fmt.Errorf("list pods: %w", err)
	}
	var all []manifest.UUID
	for _, e := range entries {
		if u, err := manifest.ParseUUID(e.Name()); err == nil {
			all = append(all, u)
		}
	}
	return all, nil
}

// Strays are the pods that have a run directory and no directory here: they are gone,
// or of another data directory.
func (p *Pods) Strays() ([]manifest.UUID, error) {
	entries, err := os.ReadDir(p.runDir)
	if err != nil {
		return nil, fmt.Errorf("list run directories: %w", err)
	}
	var strays []manifest.UUID
	for _, e := range entries {
		u, err := manifest.ParseUUID(e.Name())
		if err != nil {
			continue
		}
		if _, err := os.Lstat(p.Path(u)); errors.Is(err, fs.ErrNotExist) {
			strays = append(strays, u)
		}
	}
	return strays, nil
}

// Elsewhere says whether a stray is a pod of another data directory that uses the same
// run directory: what bears its name is its own. None of an earlier version has the link.
func (p *Pods) Elsewhere(u manifest.UUID) bool {
	_, err := os.Stat(p.RunPath(u, podLink))
	return err == nil
}

// Resolve finds the pod that a person means: its UUID, its CRI id or the
// beginning of either. ErrNotFound if there is none, ErrInvalid if there are several.
func (p *Pods) Resolve(spelling string) (manifest.UUID, error) {
	want := strings.ToLower(strings.ReplaceAll(spelling, "-", ""))
	if want == "" {
		return "", fmt.Errorf("a pod's UUID cannot be empty: %w", errdefs.ErrInvalid)
	}
	all, err := p.candidates(want)
	if err != nil {
		return "", err
	}
	var found []manifest.UUID
	for _, u := range all {
		if p.matches(u, want) {
			found = append(found, u)
		}
	}
	switch len(found) {
	case 0:
		return "", fmt.Errorf("no matches found for %q: %w", spelling, errdefs.ErrNotFound)
	case 1:
		return found[0], nil
	}
	return "", fmt.Errorf("ambiguous uuid %q, %d matches: %w", spelling, len(found), errdefs.ErrInvalid)
}

// candidates are the pods worth comparing: one when the whole UUID was given, so
// that nobody scans all pods for one.
func (p *Pods) candidates(want string) ([]manifest.UUID, error) {
	if len(want) < 32 {
		return p.List()
	}
	u, err := manifest.ID(want[:32] + strings.Repeat("0", 32)).UUID()
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(p.Path(u)); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("look for pod %s: %w", u, err)
	}
	return []manifest.UUID{u}, nil
}

func (p *Pods) matches(u manifest.UUID, want string) bool {
	if len(want) <= 32 {
		return strings.HasPrefix(u.Hex(), want)
	}
	r, err := p.record(u)
	return err == nil && strings.HasPrefix(string(r.ID), want)
}
