package namespace

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
)

// InUse says whether a process lives in a pinned namespace; false when none is pinned
// there. It reads all of /proc: not for hot paths.
func InUse(pin string, k Kind) (bool, error) {
	pinned, err := IsPinned(pin)
	if err != nil || !pinned {
		return false, err
	}
	ns, err := os.Stat(pin)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("processes in %s: %w", pin, err)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return false, fmt.Errorf("processes in %s: %w", pin, err)
	}
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		of, err := os.Stat(filepath.Join("/proc", e.Name(), "ns", string(k)))
		if err == nil && os.SameFile(ns, of) { // a zombie has no namespaces any more
			return true, nil
		}
	}
	return false, nil
}
