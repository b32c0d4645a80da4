package cgroup

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// ownerAttr carries the mark: groups are named after pods, and a name does not tell whose
// pod that was.
const ownerAttr = "trusted.gantry"

// maxOwner is longer than any path.
const maxOwner = 4096

// SetOwner marks a group, wherever it is, as its owner's. A kernel that keeps no such
// mark is no error: the group has none then.
func (h *Hierarchy) SetOwner(path, owner string) error {
	if err := check(path); err != nil {
		return err
	}
	for _, dir := range h.dirs(path) {
		err := unix.Setxattr(dir, ownerAttr, []byte(owner), 0)
		if err != nil && !absent(err) && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("mark cgroup %s: %w", path, err)
		}
	}
	return nil
}

// Owner is what SetOwner said of a group; empty for one that is not marked or gone.
func (h *Hierarchy) Owner(path string) (string, error) {
	if err := check(path); err != nil {
		return "", err
	}
	for _, dir := range h.dirs(path) {
		mark := make([]byte, maxOwner)
		n, err := unix.Getxattr(dir, ownerAttr, mark)
		if err == nil {
			return string(mark[:n]), nil
		}
		if !absent(err) && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.ENOTSUP) {
			return "", fmt.Errorf("mark of cgroup %s: %w", path, err)
		}
	}
	return "", nil
}
