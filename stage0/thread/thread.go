// Package thread gives a function a thread of its own, for what belongs to a thread and
// cannot be taken back: namespaces that it leaves, a working directory.
package thread

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// ThrownAway calls fn on a thread of its own that ends with it: a goroutine that
// ends while it is locked takes its thread along. The process's first thread
// cannot end, and /proc/PID/ns speaks for it, so it is never the one. Goroutines that
// fn starts run elsewhere. The error is fn's.
func ThrownAway(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// Held by us, the first thread cannot be given to the next goroutine.
			defer runtime.UnlockOSThread()
			done <- ThrownAway(fn)
			return
		}
		done <- fn()
	}()
	return <-done
}
