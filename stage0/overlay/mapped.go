package overlay

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/durable"
	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// mountMapped mounts trees, topmost first, with the plan's ids. Lower directories can be
// id-mapped as mounts only. They are made in a mount namespace of the calling thread's
// own, where overlay takes copies of them, and end with it; a mount of ours is never
// seen by anybody, however this ends. The overlay alone is moved to where the thread was.
//
// That the lower mounts lie in the caller's namespace is what kernels from 5.19 on want.
// Those of 6.15 and later would take mounts that lie nowhere.
func mountMapped(treesDir string, lower []string, p Plan) error {
	if len(lower) > MaxStack { // before so many are made
		return fmt.Errorf("%d layers, overlay stacks %d: %w", len(lower), MaxStack, errdefs.ErrUnsupported)
	}
	users, err := p.IDs.Namespace()
	if err != nil {
		return err
	}
	defer users.Close() //nolint:errcheck // nothing is written to it
	home, err := os.Open("/proc/thread-self/ns/mnt")
	if err != nil {
		return err
	}
	defer home.Close() //nolint:errcheck // the same
	fd, err := mountAside(treesDir, lower, p, users)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // the same
	if err := unix.Setns(int(home.Fd()), unix.CLONE_NEWNS); err != nil {
		return os.NewSyscallError("setns", err)
	}
	return os.NewSyscallError("move_mount", unix.MoveMount(fd, "", unix.AT_FDCWD, p.Target, unix.MOVE_MOUNT_F_EMPTY_PATH))
}

// mountAside leaves the thread's mount namespace for a new one, makes the overlay there
// and returns a descriptor of it.
func mountAside(treesDir string, lower []string, p Plan, users *os.File) (int, error) {
	if err := leaveMounts(); err != nil {
		return -1, err
	}
	// The mount point is a place that nothing else here is asked for at.
	if err := unix.Mount("tmpfs", p.Target, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return -1, os.NewSyscallError("mount tmpfs", err)
	}
	names := make([]string, len(lower))
	for i, name := range lower {
		names[i] = strconv.FormatInt(int64(i), 36)
		if err := attachMapped(rootOf(treesDir, name), filepath.Join(p.Target, names[i], "rootfs"), users); err != nil {
			return -1, fmt.Errorf("tree %s: %w", name, err)
		}
	}
	aside := p
	aside.Target = filepath.Join(p.Target, "merged")
	if err := os.Mkdir(aside.Target, 0o700); err != nil {
		return -1, durable.NoSpace(err)
	}
	if err := mountStack(p.Target, names, aside); err != nil {
		return -1, err
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, aside.Target, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	return fd, os.NewSyscallError("open_tree", err)
}

// leaveMounts gives the calling thread a copy of its mount namespace, of which nothing
// propagates to where it was copied from.
func leaveMounts() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	return os.NewSyscallError("mount", unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
}

// attachMapped mounts a directory id-mapped on another, which it makes.
func attachMapped(dir, at string, users *os.File) error {
	fd, err := cloneMapped(dir, users)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // nothing is written to it
	if err := os.MkdirAll(at, 0o700); err != nil {
		return durable.NoSpace(err)
	}
	return os.NewSyscallError("move_mount", unix.MoveMount(fd, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH))
}

// cloneMapped returns a descriptor of a mount that lies nowhere, of a directory with
// the owners of a user namespace.
func cloneMapped(dir string, users *os.File) (int, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return -1, &os.PathError{Op: "open_tree", Path: dir, Err: err}
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(users.Fd())}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		_ = unix.Close(fd)
		return -1, &os.PathError{Op: "mount_setattr id map", Path: dir, Err: err}
	}
	return fd, nil
}
