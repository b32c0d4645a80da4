package images

import (
	"fmt"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Pause is Debian's catatonit, which waits and reaps, and nothing else: the
// sandbox image of runtimes that want one.
func Pause(o Options) (v1.Image, error) {
	data, err := os.ReadFile("/usr/bin/catatonit")
	if err != nil {
		return nil, fmt.Errorf("read for pause image: %w", err)
	}
	l := newLayerTar()
	l.file("pause", 0o755, string(data))
	layer, err := l.gzipped(o.Format.mediaTypes().layer)
	if err != nil {
		return nil, err
	}
	return assemble(o, v1.Config{Entrypoint: []string{"/pause", "-P"}}, layer)
}
