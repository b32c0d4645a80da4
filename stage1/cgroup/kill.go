package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// What Kill and Remove take when the context has no deadline of its own.
const (
	killTimeout   = 10 * time.Second
	removeTimeout = 2 * time.Second
)

// Kill ends every process in the group and below it and returns once none is
// left, or with the context's error (ten seconds where it has no deadline). It
// needs nobody's help: cgroup.kill where the kernel has it, and on v1 freezing,
// so that nothing forks away, SIGKILL to all and thawing, again until empty.
// The group itself stays. A group that does not exist is success.
func (h *Hierarchy) Kill(ctx context.Context, path string) error {
	if err := check(path); err != nil {
		return err
	}
	ctx, cancel := withDeadline(ctx, killTimeout)
	defer cancel()
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		alive, err := h.Populated(path)
		if err != nil || !alive {
			return err
		}
		if err := h.killOnce(path); err != nil {
			return fmt.Errorf("kill cgroup %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			return h.stillAlive(ctx, path)
		case <-time.After(wait):
		}
	}
}

func (h *Hierarchy) stillAlive(ctx context.Context, path string) error {
	pids, err := h.Procs(path)
	if err == nil && len(pids) == 0 {
		return nil
	}
	return errors.Join(fmt.Errorf("kill cgroup %s: processes %v are still there: %w", path, pids, ctx.Err()), err)
}

func (h *Hierarchy) killOnce(path string) error {
	if h.unified != "" {
		err := write(filepath.Join(h.unified, path, "cgroup.kill"), "1")
		if err == nil && len(h.v1) == 0 {
			return nil
		}
		// No such file before Linux 5.14, and in a hybrid no such group where
		// the runtime used v1 alone.
		if err != nil && !absent(err) {
			return err
		}
	}
	if dir, v2 := h.dir("freezer", path); dir != "" && !v2 {
		freeze(dir)
		defer thaw(dir)
	} else if v2 {
		_ = write(filepath.Join(dir, "cgroup.freeze"), "1")
		defer write(filepath.Join(dir, "cgroup.freeze"), "0") //nolint:errcheck // SIGKILL ends frozen processes of v2 anyway
	}
	pids, err := h.Procs(path)
	if err != nil {
		return err
	}
	if slices.Contains(pids, os.Getpid()) {
		return fmt.Errorf("process %d is this one: %w", os.Getpid(), errdefs.ErrInvalid)
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("process %d: %w", pid, err)
		}
	}
	return nil
}

// freeze stops the group and waits a moment for it: a task in an uninterruptible
// sleep cannot be stopped, and must not keep the others from being killed.
func freeze(dir string) {
	file := filepath.Join(dir, "freezer.state")
	for range 20 {
		if write(file, "FROZEN") != nil {
			return
		}
		b, err := os.ReadFile(file)
		if err != nil || strings.TrimSpace(string(b)) == "FROZEN" {
			return
		}
		time.Sleep(time.Millisecond) //nolint:forbidigo // bounded to 20 ms
	}
}

// thaw lets the group go on: what was sent SIGKILL dies in the kernel before it
// runs another instruction. Groups below that somebody froze for themselves
// (docker in docker) are thawed too, or the kill would never arrive.
func thaw(root string) {
	_ = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			_ = write(filepath.Join(p, "freezer.state"), "THAWED")
		}
		return nil
	})
}

// Remove removes the group and all groups below it from every hierarchy. It is
// idempotent. The kernel answers EBUSY for a while after the last process died;
// that is tried again until the context's deadline (two seconds where it has none).
func (h *Hierarchy) Remove(ctx context.Context, path string) error {
	if err := check(path); err != nil {
		return err
	}
	ctx, cancel := withDeadline(ctx, removeTimeout)
	defer cancel()
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		var errs []error
		for _, dir := range h.dirs(path) {
			errs = append(errs, removeTree(dir))
		}
		err := errors.Join(errs...)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("remove cgroup %s: %w", path, err)
		case <-time.After(wait):
		}
	}
}

// removeTree removes directories from below; a cgroup's files go with it.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if absent(err) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if e.IsDir() {
			errs = append(errs, removeTree(filepath.Join(dir, e.Name())))
		}
	}
	if err := unix.Rmdir(dir); err != nil && !absent(err) {
		errs = append(errs, &fs.PathError{Op: "rmdir", Path: dir, Err: err})
	}
	return errors.Join(errs...)
}

// RemoveEmpty removes the group, and it alone, where it has neither processes
// nor groups below it. It is for the parents that several pods share: whoever
// leaves last takes it away, and everybody else is right to fail.
func (h *Hierarchy) RemoveEmpty(path string) {
	if check(path) != nil {
		return
	}
	for _, dir := range h.dirs(path) {
		_ = unix.Rmdir(dir)
	}
}

// OOMKills is how many processes of the group and below it the kernel has
// killed for want of memory; a group without the memory controller counts none.
// Read it before the group is removed: ErrNotFound afterwards.
func (h *Hierarchy) OOMKills(path string) (uint64, error) {
	if err := check(path); err != nil {
		return 0, err
	}
	root, v2 := h.dir("memory", path)
	if root == "" {
		return 0, nil
	}
	if _, err := os.Stat(root); err != nil {
		return 0, fmt.Errorf("oom kills of cgroup %s: %w", path, errdefs.ErrNotFound)
	}
	if v2 {
		events, err := keyed(filepath.Join(root, "memory.events"))
		if err != nil && !absent(err) {
			return 0, fmt.Errorf("oom kills of cgroup %s: %w", path, err)
		}
		return events["oom_kill"], nil
	}
	// v1 counts a kill in the group of the victim alone.
	var sum uint64
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if absent(err) || err == nil && !d.IsDir() {
			return nil
		}
		if err != nil {
			return err
		}
		events, err := keyed(filepath.Join(p, "memory.oom_control"))
		if err == nil || absent(err) {
			sum += events["oom_kill"]
			return nil
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("oom kills of cgroup %s: %w", path, err)
	}
	return sum, nil
}

func withDeadline(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, d)
}
