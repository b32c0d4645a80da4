package store

import (
	"errors"

	"golang.org/x/sys/unix"
)

// isTransient tells whether reading failed for want of something that the
// process or the node lacks now, so that it says nothing about the file.
func isTransient(err error) bool {
	for _, e := range []error{unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.EINTR, unix.EAGAIN} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
