package tree

import (
	"context"
	"os"
)

// removeAll deletes path and all below it, unless ctx has ended before.
func removeAll(ctx context.Context, path string) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return os.RemoveAll(path)
}
