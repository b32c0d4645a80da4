package namespace

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/thread"
)

// Do calls fn on a thread that is in the network namespace at the path, and
// waits for it. Sockets that fn opens belong to that namespace for their whole life; goroutines
// that it starts run elsewhere. An empty path is the caller's own namespace: fn is
// called directly. ErrNotFound says that no namespace is at the path.
func Do(netns string, fn func() error) error {
	if netns == "" {
		return fn()
	}
	f, err := os.Open(netns)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("network namespace %s: %w", netns, errdefs.ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("network namespace %s: %w", netns, err)
	}
	defer f.Close() //nolint:errcheck // opened for reading
	return thread.ThrownAway(func() error {
		err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
		if errors.Is(err, unix.EINVAL) {
			// A pin's file without its mount, as after an Unpin that was cut short.
			return fmt.Errorf("network namespace %s: no namespace is mounted there: %w", netns, errdefs.ErrNotFound)
		}
		if err != nil {
			return fmt.Errorf("enter network namespace %s: %w", netns, err)
		}
		return fn()
	})
}
