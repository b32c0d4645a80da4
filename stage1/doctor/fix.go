package doctor

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage1/namespace"
	"github.com/gantry-cri/gantry/stage1/proc"
)

// removeTimeout bounds one removal: one that hangs must not take the others' time.
const removeTimeout = 10 * time.Second

// Fix removes what Examine finds, and again what that brings to light, such as cgroups
// whose last process was killed, until nothing more goes. Of each finding it says how
// that went: fixed is what another examination does not find any more.
func (d *Doctor) Fix(ctx context.Context) ([]Finding, error) {
	var all []Finding
	for {
		found, err := d.Examine()
		if err != nil {
			return all, err
		}
		all = merge(all, found)
		if d.removeAll(ctx, all) == 0 {
			return all, context.Cause(ctx)
		}
	}
}

// merge adds what was found to what was found before, which is fixed unless it is
// found again.
func merge(before, found []Finding) []Finding {
	same := func(a Finding) func(Finding) bool {
		return func(b Finding) bool { return a.Kind == b.Kind && a.Name == b.Name }
	}
	var all []Finding
	for _, f := range before {
		if !slices.ContainsFunc(found, same(f)) {
			f.Fixed, f.Error = true, ""
			all = append(all, f)
		}
	}
	for _, f := range found {
		if !slices.ContainsFunc(all, same(f)) { // mounts can lie on one another
			all = append(all, f)
		}
	}
	slices.SortFunc(all, byOrder)
	return all
}

// removeAll says how many of those that are not fixed it removed.
func (d *Doctor) removeAll(ctx context.Context, all []Finding) (removed int) {
	for i, f := range all {
		if f.Fixed || ctx.Err() != nil {
			continue
		}
		if err := d.remove(ctx, f); err != nil {
			all[i].Error = err.Error()
		} else {
			removed++
		}
	}
	return removed
}

func (d *Doctor) remove(ctx context.Context, f Finding) error {
	ctx, cancel := context.WithTimeout(ctx, removeTimeout)
	defer cancel()
	switch f.Kind {
	case Process:
		if err := proc.Signal(f.process, unix.SIGKILL); err != nil {
			return err
		}
		return proc.Wait(ctx, f.process)
	case Cgroup:
		if strings.HasSuffix(f.Name, ".slice") {
			return d.cgroups.StopSlice(ctx, f.Name)
		}
		err := d.cgroups.Remove(ctx, f.Name)
		if parent := filepath.Dir(f.Name); groupNames()[parent] != nil { // else it is the kubelet's
			d.cgroups.RemoveEmpty(parent)
		}
		return err
	case Namespace:
		return unpin(f.Name)
	case Mount:
		return unix.Unmount(f.Name, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	case State, RunDir:
		return removeUnmounted(f.Name)
	case Network:
		a, err := d.network.Remembered(filepath.Base(f.Name))
		if err != nil {
			return err
		}
		return d.network.Release(ctx, a)
	}
	return fmt.Errorf("%s: nothing is known about how to remove it", f.Kind)
}

// unpin leaves a namespace in which a process lives that a pod claims: without the pin
// nobody could tell that its address is used.
func unpin(pin string) error {
	used, err := namespace.InUse(pin, namespace.Kind(filepath.Base(pin)))
	if err != nil {
		return err
	}
	if used {
		return fmt.Errorf("a process lives in it: %w", errdefs.ErrBusy)
	}
	return unix.Unmount(pin, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
}

// removeUnmounted never goes through a mount: what lies behind it is not ours.
func removeUnmounted(dir string) error {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return err
	}
	if len(mounts) > 0 {
		return fmt.Errorf("%s is still mounted", mounts[0].Mountpoint)
	}
	return os.RemoveAll(dir)
}
