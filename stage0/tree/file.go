package tree

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// noSpace adds the class ErrNoSpace to an error that says that disk or quota
// are full, and returns every other error as it is.
func noSpace(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w: %w", errdefs.ErrNoSpace, err)
	}
	return err
}

// flock takes the exclusive lock of f. The kernel offers no wait that a
// context can end, so a held lock is asked for again with growing pauses.
func flock(ctx context.Context, f *os.File) error {
	pause := time.Millisecond
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil || !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
		pause = min(2*pause, 100*time.Millisecond)
	}
}

// removeAll deletes path and all below it, unless ctx has ended before.
func removeAll(ctx context.Context, path string) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return os.RemoveAll(path)
}
