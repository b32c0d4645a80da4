package images

import (
	"fmt"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Stack is [Pause] in two layers, the second of which only implies a directory that
// the first one has: the smallest image that needs a fix-up tree.
func Stack(o Options) (v1.Image, error) {
	data, err := os.ReadFile("/usr/bin/catatonit")
	if err != nil {
		return nil, fmt.Errorf("read for stack image: %w", err)
	}
	lower := newLayerTar()
	lower.file("pause", 0o755, string(data))
	lower.dir("data", 0o1777)
	upper := newLayerTar()
	upper.file("data/file", 0o644, "above\n")
	var layers []v1.Layer
	for _, l := range []*layerTar{lower, upper} {
		layer, err := l.gzipped(o.Format.mediaTypes().layer)
		if err != nil {
			return nil, err
		}
		layers = append(layers, layer)
	}
	return assemble(o, v1.Config{Entrypoint: []string{"/pause", "-P"}}, layers...)
}
