package manifest

import (
	"encoding/json"
	"fmt"
	"path"

	"github.com/appc/spec/schema"
	"github.com/appc/spec/schema/types"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// DecodeImage reads the manifest of an appc image. It refuses isolators that this
// version does not know, as Decode does, with ErrUnsupported.
func DecodeImage(b []byte) (*schema.ImageManifest, error) {
	var present struct {
		App struct {
			Isolators isolators `json:"isolators"`
		} `json:"app"`
	}
	// First, since its error is one line.
	if err := json.Unmarshal(b, &present); err != nil {
		return nil, fmt.Errorf("decode image manifest: %w: %w", errdefs.ErrInvalid, err)
	}
	if err := present.App.Isolators.present(); err != nil {
		return nil, fmt.Errorf("decode image manifest: %w", err)
	}
	// appc's decoder refuses those that it does not know without their names.
	for _, raw := range present.App.Isolators {
		i, err := Isolator(types.ACIdentifier(raw.Name), raw.Value)
		if err != nil {
			return nil, fmt.Errorf("decode image manifest: %w: %w", errdefs.ErrInvalid, err)
		}
		if err := known("image", types.Isolators{i}); err != nil {
			return nil, fmt.Errorf("decode image manifest: %w", err)
		}
	}
	var im schema.ImageManifest
	if err := unmarshal(b, &im); err != nil {
		return nil, fmt.Errorf("decode image manifest: %w: %w", errdefs.ErrInvalid, err)
	}
	for _, p := range im.PathWhitelist {
		if !path.IsAbs(p) {
			return nil, fmt.Errorf("decode image manifest: pathWhitelist: %q is not an absolute path: %w", p, errdefs.ErrInvalid)
		}
	}
	return &im, nil
}
