// Package failpoint names the moments at which a crash must do no harm: around those
// effects of our own process that outlive it, and at durable steps. The contract suite
// (test/contract) kills gantry at each of them.
//
// Nothing is armed unless the environment of a process says so, and then a point
// costs one atomic load.
//
//	GANTRY_FAILPOINT=NAME[:N]        SIGKILL for this process at the N-th hit (default the first)
//	GANTRY_FAILPOINT=NAME[:N]=stop   SIGSTOP instead
//	GANTRY_FAILPOINT_HITS=FILE       appends the name of every point that is hit
//
// Main arms them; a point is hit in whatever process runs our code, never in a
// program that it starts.
package failpoint

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// The variables of the environment that arm points.
const (
	EnvPoint = "GANTRY_FAILPOINT"
	EnvHits  = "GANTRY_FAILPOINT_HITS"
)

// armed is what the environment asks for.
type armed struct {
	point  Point
	signal unix.Signal  // 0: none
	left   atomic.Int64 // hits until the signal
	hits   *os.File     // nil: nobody counts
}

// current is nil in every process that nobody tests.
var current atomic.Pointer[armed]

// Hit is called where the point lies.
func Hit(p Point) {
	if a := current.Load(); a != nil {
		a.hit(p)
	}
}

func (a *armed) hit(p Point) {
	if a.hits != nil {
		// One write, so that lines of several processes do not mix. A test that
		// misses the line says so.
		_, _ = a.hits.WriteString(p.String() + "\n")
	}
	if a.signal == 0 || p != a.point || a.left.Add(-1) != 0 {
		return
	}
	_ = unix.Kill(unix.Getpid(), a.signal)
	if a.signal == unix.SIGKILL {
		select {} // the signal is on its way; nothing more may happen here
	}
}

// Arm reads the environment. It is called once, by main, before anything else.
func Arm() error {
	spec, file := os.Getenv(EnvPoint), os.Getenv(EnvHits)
	if spec == "" && file == "" {
		return nil
	}
	a, err := parse(spec)
	if err != nil {
		return fmt.Errorf("%s: %w", EnvPoint, err)
	}
	if file != "" {
		if a.hits, err = os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
			return fmt.Errorf("%s: %w", EnvHits, err)
		}
	}
	current.Store(a)
	return nil
}

func parse(spec string) (*armed, error) {
	a := &armed{}
	if spec == "" {
		return a, nil
	}
	a.signal = unix.SIGKILL
	where, how, given := strings.Cut(spec, "=")
	if given {
		if how != "stop" {
			return nil, fmt.Errorf("%q: want =stop or nothing", spec)
		}
		a.signal = unix.SIGSTOP
	}
	name, count, given := strings.Cut(where, ":")
	n := 1
	if given {
		var err error
		if n, err = strconv.Atoi(count); err != nil || n < 1 {
			return nil, fmt.Errorf("%q: want a number of hits from 1", spec)
		}
	}
	a.left.Store(int64(n))
	for p := range points {
		if Point(p).String() == name {
			a.point = Point(p)
			return a, nil
		}
	}
	return nil, fmt.Errorf("there is no failpoint %q", name)
}
