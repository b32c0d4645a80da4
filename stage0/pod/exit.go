package pod

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/gantry-cri/gantry/stage0/durable"
	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/failpoint"
	"github.com/gantry-cri/gantry/stage0/format"
	"github.com/gantry-cri/gantry/stage0/manifest"
)

// exits reads the exit records of a pod's apps, and says whether some of them lie
// only in the run directory.
func (p *Pods) exits(u manifest.UUID) (exits map[string]Exit, unsaved bool, err error) {
	if exits, err = readExits(p.Path(u, exitFile)); err != nil {
		return nil, false, err
	}
	more, err := readExits(p.RunPath(u, exitFile))
	if err != nil {
		return nil, false, err
	}
	for app, e := range more {
		if _, there := exits[app]; !there {
			exits[app], unsaved = e, true
		}
	}
	return exits, unsaved, nil
}

// exitsContent is exit.json. In version 0 it was the map alone.
type exitsContent struct {
	Schema int             `json:"schema"`
	Apps   map[string]Exit `json:"apps"`
}

func readExits(path string) (map[string]Exit, error) {
	f := exitsContent{Apps: map[string]Exit{}}
	err := readFile(format.Exit, path, func(version int, text []byte) error {
		if version == 0 {
			return json.Unmarshal(text, &f.Apps)
		}
		return json.Unmarshal(text, &f)
	})
	if errors.Is(err, errdefs.ErrNotFound) || errors.Is(err, errBroken) || err == nil && f.Apps == nil { // "apps": null
		return map[string]Exit{}, nil
	}
	return f.Apps, err
}

func writeExits(path string, exits map[string]Exit, s durable.Survival) error {
	return writeJSON(path, exitsContent{format.Exit.Current, exits}, s)
}

// WriteExit records how an app ended. The first record of an app stays: it is
// written once, whoever comes later. While the disk is full the run directory
// keeps it, so that a pod can end, and be removed, which makes room: SaveExits
// brings it home.
func (d *Dir) WriteExit(app string, e Exit) error {
	exits, _, err := d.pods.exits(d.uuid)
	if err != nil {
		return err
	}
	if _, there := exits[app]; there {
		return nil
	}
	exits[app] = e
	err = writeExits(d.Path(exitFile), exits, d.survival())
	if errors.Is(err, errdefs.ErrNoSpace) {
		if runErr := writeExits(d.RunPath(exitFile), exits, durable.Kill); runErr != nil {
			return errors.Join(err, runErr)
		}
	} else if err != nil {
		return err
	}
	failpoint.Hit(failpoint.ExitWritten)
	return nil
}

// SaveExits moves exit records from the run directory to the pod's. It is nothing
// new to do so again.
func (d *Dir) SaveExits() error {
	exits, unsaved, err := d.pods.exits(d.uuid)
	if err != nil {
		return err
	}
	if unsaved {
		if err := writeExits(d.Path(exitFile), exits, d.survival()); err != nil {
			return err
		}
		failpoint.Hit(failpoint.ExitsSaved)
	}
	return removeFile(d.RunPath(exitFile))
}

// startedContent is started.json.
type startedContent struct {
	Schema int `json:"schema"`
	Started
}

// WriteStarted says that an app's process runs.
func (d *Dir) WriteStarted(app string, s Started) error {
	content := startedContent{format.Started.Current, s}
	if err := writeJSON(d.pods.AppRunPath(d.uuid, app, startedFile), content, durable.Kill); err != nil {
		return err
	}
	failpoint.Hit(failpoint.StartedWritten)
	return nil
}

// SetReady says that the sandbox is up: written last, removed first.
func (d *Dir) SetReady() error {
	return durable.WriteFile(d.RunPath(readyFile), nil, fileMode, durable.Kill)
}

// ClearReady says that the sandbox is not up any more, and that it was: one whose
// maker was killed before it was ready can be told from one that was stopped. It
// needs no lock: this is all that may happen to the file.
func (p *Pods) ClearReady(u manifest.UUID) error {
	err := os.Rename(p.RunPath(u, readyFile), p.RunPath(u, wasReadyFile))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("clear ready: %w", err)
	}
	return nil
}

// resourcesContent is resources.json. In version 0 it was the resources alone.
type resourcesContent struct {
	Schema    int `json:"schema"`
	Resources any `json:"resources"`
}

// WriteResources keeps the resources that were set after the start, in the words
// of whoever sets and reads them.
func (d *Dir) WriteResources(v any) error {
	return writeJSON(d.Path(resourcesFile), resourcesContent{format.Resources.Current, v}, durable.Kill)
}

// Resources reads what WriteResources wrote into v; ErrNotFound if it never did.
func (p *Pods) Resources(u manifest.UUID, v any) error {
	return readFile(format.Resources, p.Path(u, resourcesFile), func(version int, text []byte) error {
		if version == 0 {
			return json.Unmarshal(text, v)
		}
		return json.Unmarshal(text, &resourcesContent{Resources: v})
	})
}

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove: %w", err)
	}
	return nil
}

// Intent says what will be made outside of the pod's directory, before it is
// made. Undo reads what was said, not what was meant.
type Intent struct {
	Kind string `json:"kind"`
	// App is the app that it is made for; empty for what the whole pod shares.
	App  string          `json:"app,omitempty"`
	Data json.RawMessage `json:"data"`
}

// NewIntent encodes what will be made for an app, or for the pod if app is empty.
func NewIntent(kind, app string, data any) (Intent, error) {
	raw, err := json.Marshal(data)
	if err != nil {
		return Intent{}, fmt.Errorf("intent %s: %w", kind, err)
	}
	return Intent{Kind: kind, App: app, Data: raw}, nil
}

// Intend adds intents, in the order in which they will be carried out.
func (d *Dir) Intend(more ...Intent) error {
	have, err := d.Intents()
	if err != nil {
		return err
	}
	if err := d.writeIntents(append(have, more...)); err != nil {
		return err
	}
	failpoint.Hit(failpoint.IntentsWritten)
	return nil
}

// Intents are those that were not confirmed undone, oldest first.
func (d *Dir) Intents() ([]Intent, error) { return d.pods.Intents(d.uuid) }

// Intents reads a pod's intents without its lock: what was said, of which some
// may be gone already.
func (p *Pods) Intents(u manifest.UUID) ([]Intent, error) {
	have, err := p.readIntents(u)
	if errors.Is(err, errBroken) {
		return nil, nil
	}
	return have, err
}

// Claims says whether a pod may have something outside of its directory. Intents
// that cannot be read, or are of a later version, may say anything.
func (p *Pods) Claims(u manifest.UUID) (bool, error) {
	have, err := p.readIntents(u)
	if errors.Is(err, errBroken) || errors.Is(err, errdefs.ErrUnsupported) {
		return true, nil
	}
	return len(have) > 0, err
}

// intentsContent is intents.json. In version 0 it was the list alone.
type intentsContent struct {
	Schema  int      `json:"schema"`
	Intents []Intent `json:"intents"`
}

// readIntents returns none where there is no file.
func (p *Pods) readIntents(u manifest.UUID) ([]Intent, error) {
	var c intentsContent
	err := readFile(format.Intents, p.Path(u, intentsFile), func(version int, text []byte) error {
		if version == 0 {
			return json.Unmarshal(text, &c.Intents)
		}
		return json.Unmarshal(text, &c)
	})
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return c.Intents, nil
}

func (d *Dir) writeIntents(all []Intent) error {
	return writeJSON(d.Path(intentsFile), intentsContent{format.Intents.Current, all}, d.survival())
}

// Undone keeps only those intents that are not yet confirmed gone.
func (d *Dir) Undone(left []Intent) error {
	err := d.rewriteIntents(left)
	if err == nil {
		failpoint.Hit(failpoint.IntentsRewritten)
	}
	return err
}

func (d *Dir) rewriteIntents(left []Intent) error {
	if len(left) == 0 {
		return removeFile(d.Path(intentsFile))
	}
	return d.writeIntents(left)
}

// InitApp is the run directory of a sandbox's init, which is no app: the name is
// none that appc allows.
const InitApp = "_init"

// MakeRunDir makes the pod's run directory and those of its apps. It comes before
// the move to run: a pod in run without a run directory is of another boot.
func (d *Dir) MakeRunDir() error {
	var names []string
	if d.record.Kind == KindSandbox {
		names = append(names, InitApp)
	}
	for _, a := range d.record.Apps {
		names = append(names, a.Name)
	}
	for _, name := range names {
		for _, sub := range []string{"bundle", "rootfs", "exit"} {
			if err := os.MkdirAll(d.pods.AppRunPath(d.uuid, name, sub), 0o711); err != nil {
				return fmt.Errorf("make run directory of pod %s: %w", d.uuid, durable.NoSpace(err))
			}
		}
	}
	err := os.MkdirAll(d.RunPath("ns"), 0o711)
	if err == nil {
		err = os.Symlink(d.Path(), d.RunPath(podLink))
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make run directory of pod %s: %w", d.uuid, durable.NoSpace(err))
	}
	return nil
}

// RemoveRunDir removes what the run directory holds, once nothing is mounted in it.
func (d *Dir) RemoveRunDir() error {
	if err := os.RemoveAll(d.RunPath()); err != nil {
		return fmt.Errorf("remove run directory of pod %s: %w", d.uuid, err)
	}
	failpoint.Hit(failpoint.RunDirRemoved)
	return nil
}
