// Package readonly opens further data directories, on disks that were made in advance:
// images and trees are looked for there first, and nothing is ever written there, not
// even a lock.
package readonly

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// Dir is the absolute path of a data directory that is only read.
type Dir string

// ErrReadOnly says that what was to be changed lies in a read-only store.
var ErrReadOnly = fmt.Errorf("a read-only store is never changed: %w", errdefs.ErrState)

// Open looks whether dirs are what gantry fetch --dir made, each another one than the
// data directory data. One that is not there, not mounted for example, is ErrNotFound:
// without it images would be missing, or be fetched once more.
func Open(data string, dirs []string) ([]Dir, error) {
	var open []Dir
	for _, dir := range dirs {
		if err := check(data, dir); err != nil {
			return nil, fmt.Errorf("open read-only store %s: %w", dir, err)
		}
		open = append(open, Dir(dir))
	}
	return open, nil
}

func check(data, dir string) error {
	if !filepath.IsAbs(dir) {
		return fmt.Errorf("not an absolute path: %w", errdefs.ErrInvalid)
	}
	for _, sub := range []string{"images", "refs", "trees"} {
		info, err := os.Stat(filepath.Join(dir, sub))
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("there is no %s/: %w", sub, errdefs.ErrNotFound)
		}
		if err != nil {
			return err
		}
		if !info.IsDir() {
			return fmt.Errorf("%s is not a directory: %w", sub, errdefs.ErrInvalid)
		}
	}
	store, err := os.Stat(dir)
	if err != nil {
		return err
	}
	own, err := os.Stat(data)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if os.SameFile(store, own) {
		return fmt.Errorf("it is the data directory: %w", errdefs.ErrInvalid)
	}
	return nil
}
