package tree

import (
	"context"
	"fmt"
	"io"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// Extract extracts one layer.
func (s *Store) Extract(ctx context.Context, l Layer, blob io.Reader) (*Pending, error) {
	return nil, fmt.Errorf("extract layer %s: %w", l.Digest, errdefs.ErrUnsupported)
}
