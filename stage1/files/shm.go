package files

import (
	"errors"
	"fmt"
	"os"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// DefaultShmSize is the size of /dev/shm in bytes when nothing else is asked for: 64 MiB.
const DefaultShmSize = 64 << 20

// MountShm mounts the tmpfs that becomes the pod's /dev/shm; size in bytes, 0
// means DefaultShmSize. The mount point is made when it is not there; a tmpfs
// that is mounted already stays as it is.
func MountShm(path string, size int64) error {
	if size == 0 {
		size = DefaultShmSize
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return fmt.Errorf("mount shm: %w", err)
	}
	mounted, err := mountinfo.Mounted(path)
	if err != nil {
		return fmt.Errorf("mount shm: %s: %w", path, err)
	}
	if mounted {
		return nil
	}
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
	if err := unix.Mount("shm", path, "tmpfs", flags, fmt.Sprintf("mode=1777,size=%d", size)); err != nil {
		return fmt.Errorf("mount shm on %s: %w", path, err)
	}
	return nil
}

// UnmountShm unmounts it, lazily when a container still holds it, and removes the
// mount point. It is idempotent: nil means that neither is there.
func UnmountShm(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err == nil {
			continue // EINVAL says that nothing is mounted any more
		}
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break
		}
		return fmt.Errorf("unmount shm %s: %w", path, err)
	}
	// rmdir, not a recursive removal: what lies there without a mount is not ours.
	if err := unix.Rmdir(path); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove shm mount point %s: %w", path, err)
	}
	return nil
}
