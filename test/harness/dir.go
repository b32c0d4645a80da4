package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// namePrefix begins the names of directories and cgroups made for a test.
const namePrefix = "gantry-t"

// slicePrefix begins the names of slices: a dash in one would be another level.
const slicePrefix = "gantryt"

// slowness is $GANTRY_SLOWNESS, by how much tests should be more patient than
// on ordinary machines: an emulated processor is ten times slower.
var slowness = sync.OnceValue(func() time.Duration {
	n, err := strconv.Atoi(os.Getenv("GANTRY_SLOWNESS"))
	if err != nil || n < 1 {
		return 1
	}
	return time.Duration(n)
})

// Slowly is how long something may take here that takes d on ordinary machines.
func Slowly(d time.Duration) time.Duration { return d * slowness() }

// Dir makes a directory with a short name (a Unix socket's path is at most 107
// bytes) that is removed at the end of the test, unless something is still
// mounted below it.
func Dir(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", namePrefix)
	if err != nil {
		tb.Fatalf("make directory: %v", err)
	}
	tb.Cleanup(func() {
		mounts, err := MountsBelow(dir)
		if err != nil || len(mounts) > 0 {
			tb.Errorf("not removing %s: mounts %v, err %v", dir, mounts, err)
			return
		}
		if err := os.RemoveAll(dir); err != nil {
			tb.Errorf("remove test directory: %v", err)
		}
	})
	return dir
}

// pollTime is the pause between two looks at something that is waited for.
const pollTime = 50 * time.Millisecond

// Eventually calls check every 50 ms until it returns "" and fails the test
// with its last word when that has not happened in time, which is longer on a
// slow machine. There the pauses grow as well: looking costs what is waited for its
// time.
func Eventually(tb testing.TB, timeout time.Duration, check func() string) {
	tb.Helper()
	timeout = Slowly(timeout)
	deadline := time.Now().Add(timeout)
	for pause := pollTime; ; pause = min(2*pause, Slowly(Slowly(pollTime))) {
		complaint := check()
		if complaint == "" {
			return
		}
		if time.Now().After(deadline) {
			tb.Fatalf("after %v: %s", timeout, complaint)
		}
		time.Sleep(pause)
	}
}

// Checkout is the root of the source tree: go test runs a package's tests in its
// directory. (The binary does not know where its source was: -trimpath.)
func Checkout() (string, error) {
	start, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir := start; ; dir = filepath.Dir(dir) {
		_, err := os.Stat(filepath.Join(dir, "cmd", "gantry"))
		if err == nil {
			return dir, nil
		}
		if dir == "/" {
			return "", fmt.Errorf("no source of gantry above %s: %w", start, err)
		}
	}
}

// MountsBelow lists the mount points at or below dir.
func MountsBelow(dir string) ([]string, error) {
	lines, err := readLines("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var points []string
	for _, line := range lines {
		if fields := strings.Fields(line); len(fields) > 4 && within(fields[4], dir) {
			points = append(points, fields[4])
		}
	}
	return points, nil
}

// within reports whether path is dir or lies below it.
func within(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }

func readLines(file string) ([]string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return strings.Split(strings.TrimSpace(string(data)), "\n"), nil
}
