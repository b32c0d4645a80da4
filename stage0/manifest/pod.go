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
	if err := json.Unmarshal(b, &pm); err != nil {
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

// valuesPresent refuses isolators without a value: appc's decoder follows the nil
// pointer that they become.
func valuesPresent(b []byte) error {
	type isolators []struct {
		Name  string          `json:"name"`
		Value json.RawMessage `json:"value"`
	}
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
	for _, i := range all {
		if len(i.Value) == 0 || string(i.Value) == "null" {
			return fmt.Errorf("decode pod manifest: isolator %q has no value: %w", i.Name, errdefs.ErrInvalid)
		}
	}
	return nil
}

func known(where string, isolators types.Isolators) error {
	for _, i := range isolators.Unrecognized() {
		return fmt.Errorf("%s: isolator %q is not known to this version: %w", where, i.Name, errdefs.ErrUnsupported)
	}
	return nil
}

// CRIOf returns the gantry/cri isolator of a list; ok is false where there is none.
func CRIOf(isolators types.Isolators) (c CRI, ok bool) {
	i := isolators.GetByName(CRIName)
	if i == nil {
		return CRI{}, false
	}
	v, ok := i.Value().(*CRI)
	if !ok {
		return CRI{}, false
	}
	return *v, true
}
