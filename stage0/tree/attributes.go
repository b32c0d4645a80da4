package tree

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/durable"
)

// CopyAttributes gives the directory to the owner, mode, extended attributes
// and times of the directory from. Overlay's own attributes are left out, since
// they say something of their layer alone, and so are labels, which are the
// mount's business.
func CopyAttributes(from, to string) error {
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
	names, err := xattrNames(from)
	if err != nil {
		return err
	}
	for _, name := range names {
		if OfLayer(name) {
			continue
		}
		value := make([]byte, 64<<10) // the kernel's XATTR_SIZE_MAX
		n, err := unix.Lgetxattr(from, name, value)
		if err == nil {
			err = unix.Lsetxattr(to, name, value[:n], 0)
		}
		if err != nil {
			return fmt.Errorf("copy attribute %s of %s: %w", name, from, durable.NoSpace(err))
		}
	}
	return nil
}

// OfLayer says whether an extended attribute is of a file's place in its layer, of the
// mount or of the file system, and not the file's own: overlay's, labels, and the second
// spelling that XFS has of access lists, whose ids nothing maps.
func OfLayer(name string) bool {
	return strings.HasPrefix(name, overlayXattrs) || name == selinuxXattr || strings.HasPrefix(name, "trusted.SGI_ACL_")
}

func xattrNames(path string) ([]string, error) {
	n, err := unix.Llistxattr(path, nil)
	if errors.Is(err, unix.EOPNOTSUPP) || n == 0 && err == nil {
		return nil, nil
	}
	list := make([]byte, n)
	if err == nil {
		n, err = unix.Llistxattr(path, list)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "llistxattr", Path: path, Err: err}
	}
	return strings.Split(strings.TrimRight(string(list[:n]), "\x00"), "\x00"), nil
}

// Opaque says whether the directory hides what lower layers have at its place.
func Opaque(dir string) (bool, error) {
	var value [8]byte
	n, err := unix.Lgetxattr(dir, opaqueXattr, value[:])
	switch {
	case err == nil:
		return string(value[:n]) == "y", nil
	case errors.Is(err, unix.ENODATA), errors.Is(err, unix.EOPNOTSUPP):
		return false, nil
	}
	return false, &fs.PathError{Op: "lgetxattr", Path: dir, Err: err}
}
