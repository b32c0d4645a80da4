package stage1

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/failpoint"
	"github.com/gantry-cri/gantry/stage0/overlay"
	"github.com/gantry-cri/gantry/stage0/pod"
	"github.com/gantry-cri/gantry/stage1/cgroup"
	"github.com/gantry-cri/gantry/stage1/namespace"
	"github.com/gantry-cri/gantry/stage1/network"
	"github.com/gantry-cri/gantry/stage1/ociruntime"
)

// The kinds of intents. What each says is enough to undo it without the pod's
// manifest and without today's configuration.
const (
	intentCgroup     = "cgroup"     // cgroupIntent: a cgroup for the pod's apps
	intentNamespaces = "namespaces" // namespacesIntent: pinned namespaces
	intentNetwork    = "network"    // network.Attachment: CNI ADD with its arguments
	intentMount      = "mount"      // mountIntent: a mount below the run directory
	intentContainer  = "container"  // containerIntent: an OCI container, its monitor and their cgroups
)

// undone says which point is passed when an intent of a kind is confirmed gone.
var undone = map[string]failpoint.Point{
	intentCgroup:     failpoint.CgroupUndone,
	intentNamespaces: failpoint.NamespacesUndone,
	intentNetwork:    failpoint.NetworkUndone,
	intentMount:      failpoint.MountUndone,
	intentContainer:  failpoint.ContainerUndone,
}

type cgroupIntent struct {
	Path   string        `json:"path"`
	Driver cgroup.Driver `json:"driver,omitempty"` // who made it; empty in records of before there were slices here
}

type namespacesIntent struct {
	Dir string `json:"dir"`
}

type mountIntent struct {
	Target string `json:"target"`
}

type containerIntent struct {
	ID      string             `json:"id"`
	Cgroup  string             `json:"cgroup"`
	Driver  cgroup.Driver      `json:"driver"`
	Runtime ociruntime.Runtime `json:"runtime"`
	Root    string             `json:"root"`
}

func (c containerIntent) client() *ociruntime.Client {
	return &ociruntime.Client{Runtime: c.Runtime, Root: c.Root, SystemdCgroup: c.Driver == cgroup.Systemd}
}

// undo replays intents backwards until each is confirmed gone. What cannot be
// undone now stays written, the rest goes on: a plugin that fails must not keep
// mounts and processes alive. keep says which intents are not meant.
func (r *Runner) undo(ctx context.Context, d *pod.Dir, keep func(pod.Intent) bool) error {
	intents, err := d.Intents()
	if err != nil {
		return err
	}
	if len(intents) == 0 {
		return nil
	}
	failpoint.Hit(failpoint.UndoBegun)
	var left []pod.Intent
	var errs []error
	for _, in := range slices.Backward(intents) {
		if keep != nil && keep(in) {
			left = append(left, in)
			continue
		}
		if err := r.undoOne(ctx, in); err != nil {
			left = append(left, in)
			errs = append(errs, fmt.Errorf("undo %s: %w", in.Kind, err))
			continue
		}
		failpoint.Hit(undone[in.Kind])
	}
	slices.Reverse(left)
	return errors.Join(append(errs, d.Undone(left))...)
}

func (r *Runner) undoOne(ctx context.Context, in pod.Intent) error {
	switch in.Kind {
	case intentCgroup:
		return undoWith(in, func(c cgroupIntent) error { return r.undoCgroup(ctx, c) })
	case intentNamespaces:
		return undoWith(in, func(n namespacesIntent) error { return namespace.Unpin(n.Dir) })
	case intentNetwork:
		return undoWith(in, func(a network.Attachment) error {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), networkTimeout)
			defer cancel()
			failpoint.Hit(failpoint.NetworkUndoing)
			return r.network.Del(ctx, a)
		})
	case intentMount:
		return undoWith(in, func(m mountIntent) error { return unmount(m.Target) })
	case intentContainer:
		return undoWith(in, func(c containerIntent) error { return r.undoContainer(ctx, c) })
	}
	return fmt.Errorf("intent %q is not known to this version", in.Kind)
}

func undoWith[T any](in pod.Intent, do func(T) error) error {
	var v T
	if err := json.Unmarshal(in.Data, &v); err != nil {
		return fmt.Errorf("decode intent: %w", err)
	}
	return do(v)
}

func (r *Runner) undoCgroup(ctx context.Context, c cgroupIntent) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
	defer cancel()
	if err := r.cgroups.Kill(ctx, c.Path); err != nil {
		return err
	}
	failpoint.Hit(failpoint.CgroupKilled)
	if c.Driver == cgroup.Systemd {
		return r.cgroups.StopSlice(ctx, c.Path)
	}
	if err := r.cgroups.Remove(ctx, c.Path); err != nil {
		return err
	}
	r.cgroups.RemoveEmpty(filepath.Dir(c.Path))
	return nil
}

// undoContainer needs nobody's co-operation: processes are killed by their
// cgroups first, so that the runtime has only its own state to delete.
func (r *Runner) undoContainer(ctx context.Context, c containerIntent) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
	defer cancel()
	// The monitor first: it may be about to create the container.
	m := r.cgroups.Monitor(c.Driver, c.ID)
	err := errors.Join(m.Kill(ctx), m.Remove(ctx))
	failpoint.Hit(failpoint.MonitorRemoved)
	err = errors.Join(err, r.cgroups.Kill(ctx, c.Cgroup))
	failpoint.Hit(failpoint.ContainerKilled)
	if _, serr := os.Stat(c.Root + "/" + c.ID); serr == nil {
		err = errors.Join(err, deleteState(ctx, c))
		failpoint.Hit(failpoint.RuntimeDeleted)
	}
	return errors.Join(err, r.cgroups.Remove(ctx, c.Cgroup))
}

// deleteState has the runtime delete what it keeps of a container whose processes
// are dead. A runtime that hangs is not waited for: we hold the pod's lock, and
// somebody waits to stop the pod.
func deleteState(ctx context.Context, c containerIntent) error {
	ctx, cancel := context.WithTimeout(ctx, deleteTimeout)
	defer cancel()
	return c.client().Delete(ctx, c.ID)
}

// unmount is idempotent and covers bind mounts of files as well.
func unmount(target string) error {
	if err := overlay.Unmount(target); err != nil {
		return err
	}
	err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", target, err)
	}
	return nil
}

// ofApp keeps all intents but those of one app.
func ofApp(app string) func(pod.Intent) bool {
	return func(in pod.Intent) bool { return in.App != app }
}
