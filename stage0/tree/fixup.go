package tree

import (
	"context"
	"fmt"

	"github.com/opencontainers/go-digest"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// Fixup makes the fix-up tree of a stack.
func (s *Store) Fixup(ctx context.Context, diffIDs []digest.Digest) (string, error) {
	return "", fmt.Errorf("fix-up tree: %w", errdefs.ErrUnsupported)
}
