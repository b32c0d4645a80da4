package manifest

import (
	"encoding/json"
	"fmt"

	"github.com/appc/spec/schema"
	"github.com/appc/spec/schema/types"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// Decode reads a pod manifest and refuses isolators that this version does not
// know: running them half-understood would drop what was asked for.
func Decode(b []byte) (*schema.PodManifest, error) {
	if err := valuesPresent(b); err != nil {
		return nil, err
	}
	var pm schema.PodManifest
	if err := unmarshal(b, &pm); err != nil {
		return nil, fmt.Errorf("decode pod manifest: %w: %w", errdefs.ErrInvalid, err)
	}
	if err := known("pod", pm.Isolators); err != nil {
		return nil, err
	}
	for _, a := range pm.Apps {
		if a.App == nil {
			return nil, fmt.Errorf("app %s has no app section: %w", a.Name, errdefs.ErrInvalid)
		}
		if err := known("app "+string(a.Name), a.App.Isolators); err != nil {
			return nil, err
		}
	}
	return &pm, nil
}

// unmarshal is json.Unmarshal for appc's types, whose decoders follow nil pointers:
// isolators without a value are looked for before, but an object may have the same
// key twice, of which they see both.
func unmarshal(b []byte, v any) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("appc's decoder: %v", p)
		}
	}()
	return json.Unmarshal(b, v)
}

// isolators are what of a list of them can be looked at before appc's decoder has
// it.
type isolators []struct {
	Name  string          `json:"name"`
	Value json.RawMessage `json:"value"`
}

// present refuses isolators without a value: appc's decoder follows the nil pointer
// that they become.
func (l isolators) present() error {
	for _, i := range l {
		if len(i.Value) == 0 || string(i.Value) == "null" {
			return fmt.Errorf("isolator %q has no value: %w", i.Name, errdefs.ErrInvalid)
		}
	}
	return nil
}

// valuesPresent looks at all isolators of a pod.
func valuesPresent(b []byte) error {
	var pm struct {
		Isolators isolators `json:"isolators"`
		Apps      []struct {
			App struct {
				Isolators isolators `json:"isolators"`
			} `json:"app"`
		} `json:"apps"`
	}
	if err := json.Unmarshal(b, &pm); err != nil {
		return fmt.Errorf("decode pod manifest: %w: %w", errdefs.ErrInvalid, err)
	}
	all := pm.Isolators
	for _, a := range pm.Apps {
		all = append(all, a.App.Isolators...)
	}
	if err := all.present(); err != nil {
		return fmt.Errorf("decode pod manifest: %w", err)
	}
	return nil
}

func known(where string, list types.Isolators) error {
	for _, i := range list.Unrecognized() {
		return fmt.Errorf("%s: isolator %q is not known to this version: %w", where, i.Name, errdefs.ErrUnsupported)
	}
	return nil
}

// CRIOf returns the gantry/cri isolator of a list; ok is false where there is none.
func CRIOf(list types.Isolators) (c CRI, ok bool) {
	i := list.GetByName(CRIName)
	if i == nil {
		return CRI{}, false
	}
	v, ok := i.Value().(*CRI)
	if !ok {
		return CRI{}, false
	}
	return *v, true
}
