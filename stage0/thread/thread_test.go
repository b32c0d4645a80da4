package thread_test

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/thread"
)

func TestThrownAwayKeepsFirstThread(t *testing.T) {
	for range 200 {
		if err := thread.ThrownAway(func() error {
			if unix.Gettid() == unix.Getpid() {
				return errors.New("on the first thread")
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
}
