package overlay

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// copyAttributes gives the directory to the owner, mode, extended attributes
// and times of the directory from.
func copyAttributes(from, to string) error {
	var st unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return &fs.PathError{Op: "lstat", Path: from, Err: err}
	}
	if err := unix.Lchown(to, int(st.Uid), int(st.Gid)); err != nil {
		return &fs.PathError{Op: "lchown", Path: to, Err: err}
	}
	if err := unix.Chmod(to, st.Mode&0o7777); err != nil {
		return &fs.PathError{Op: "chmod", Path: to, Err: err}
	}
	if err := copyXattrs(from, to); err != nil {
		return err
	}
	times := []unix.Timespec{st.Atim, st.Mtim}
	return os.NewSyscallError("utimensat", unix.UtimesNanoAt(unix.AT_FDCWD, to, times, unix.AT_SYMLINK_NOFOLLOW))
}

func copyXattrs(from, to string) error {
	n, err := unix.Llistxattr(from, nil)
	if errors.Is(err, unix.EOPNOTSUPP) || n == 0 && err == nil {
		return nil
	}
	if err != nil {
		return &fs.PathError{Op: "llistxattr", Path: from, Err: err}
	}
	names := make([]byte, n)
	if n, err = unix.Llistxattr(from, names); err != nil {
		return &fs.PathError{Op: "llistxattr", Path: from, Err: err}
	}
	for name := range strings.SplitSeq(strings.TrimRight(string(names[:n]), "\x00"), "\x00") {
		// Overlay's own marks say something of their layer alone; labels are the mount's business.
		if strings.HasPrefix(name, "trusted.overlay.") || name == "security.selinux" {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(from, name, value)
		if err == nil {
			err = unix.Lsetxattr(to, name, value[:n], 0)
		}
		if err != nil {
			return fmt.Errorf("copy attribute %s of %s: %w", name, from, err)
		}
	}
	return nil
}
