// Package overlay knows how the kernel's overlay file system is asked for:
// whether a data directory can carry it, and how a stack of trees with a
// writable layer on top is mounted. It makes mounts in the mount namespace of
// the calling process and keeps no state.
package overlay

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/durable"
	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/idmap"
	"github.com/gantry-cri/gantry/stage0/thread"
	"github.com/gantry-cri/gantry/stage0/tree"
)

// Plan is one overlay mount, as prepare lays it down and stage1 makes it.
// Nothing of it needs to exist but what Lower names until Make.
type Plan struct {
	// Lower names the trees of the stack, topmost first: those of the trees' directory
	// by their names there, others by absolute paths. It may name one twice.
	Lower []string
	// Upper and Work are the absolute paths of the writable layer and of
	// overlay's work directory, on one file system. Both empty: read-only.
	Upper, Work string
	// Target is the absolute path of the mount point, an existing directory.
	Target string
	// IDs maps the owners of what the trees hold; nil shows them as they are. What is
	// in Upper has the node's ids. See Site.DetectIDMapped.
	IDs *idmap.Map
}

// Escape makes a path fit for a value in overlay's mount options, where
// commas end the option and colons may separate directories.
func Escape(path string) string {
	return escaper.Replace(path)
}

var escaper = strings.NewReplacer(`\`, `\\`, `,`, `\,`, `:`, `\:`)

// Make makes the plan's Upper and Work directories when they are missing. A
// new Upper gets the attributes of the stack's root, since the root of the
// mount shows those of the upper layer, whatever lies below. One that exists
// is left as it is: the pod may have changed it.
func Make(treesDir string, p Plan) error {
	if err := makeDirs(treesDir, p); err != nil {
		return fmt.Errorf("make overlay directories: %w", durable.NoSpace(err))
	}
	return nil
}

func makeDirs(treesDir string, p Plan) error {
	if err := os.MkdirAll(p.Work, 0o700); err != nil {
		return err
	}
	if _, err := os.Lstat(p.Upper); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(p.Upper), 0o700); err != nil {
		return err
	}
	// Under another name first, so that an upper that exists is one with its attributes.
	fresh := p.Upper + ".new"
	if err := os.Mkdir(fresh, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if len(p.Lower) > 0 {
		if err := copyRoot(rootOf(treesDir, p.Lower[0]), fresh, p.IDs); err != nil {
			return err
		}
	}
	return os.Rename(fresh, p.Upper)
}

// copyRoot gives a directory the attributes of a tree's root, with mapped owners. One
// that is not mapped is ErrInvalid: the mount's root cannot be nobody's.
func copyRoot(root, to string, ids *idmap.Map) error {
	if ids == nil {
		return tree.CopyAttributes(root, to)
	}
	var st unix.Stat_t
	if err := unix.Lstat(root, &st); err != nil {
		return &fs.PathError{Op: "lstat", Path: root, Err: err}
	}
	if _, _, err := ids.Owner(st.Uid, st.Gid); err != nil {
		return fmt.Errorf("root of the image: %w", err)
	}
	users, err := ids.Namespace()
	if err != nil {
		return err
	}
	defer users.Close() //nolint:errcheck // nothing is written to it
	fd, err := cloneMapped(root, users)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // the same
	return tree.CopyAttributes(fmt.Sprintf("/proc/self/fd/%d/.", fd), to)
}

// rootOf returns the path of the files of a tree that Plan.Lower names.
func rootOf(treesDir, name string) string {
	if !filepath.IsAbs(name) {
		name = filepath.Join(treesDir, name)
	}
	return filepath.Join(name, "rootfs")
}

// Mount makes the mount. A stack without trees shows the upper directory
// alone, which then is a copy that has mapped owners already. More trees than MaxStack are ErrUnsupported, as is what does not fit
// into the kernel's mount options whatever is done.
func Mount(treesDir string, p Plan) error {
	if err := mount(treesDir, p); err != nil {
		return fmt.Errorf("mount overlay on %s: %w", p.Target, err)
	}
	return nil
}

func mount(treesDir string, p Plan) error {
	lower, err := visible(treesDir, p.Lower)
	if err != nil {
		return err
	}
	if (p.Upper == "") != (p.Work == "") || len(lower) == 0 && p.Upper == "" {
		return fmt.Errorf("an upper needs a work directory, and a mount something to show: %w", errdefs.ErrInvalid)
	}
	if len(lower) == 0 {
		return os.NewSyscallError("mount", unix.Mount(p.Upper, p.Target, "", unix.MS_BIND, ""))
	}
	if len(lower) == 1 && p.Upper == "" {
		return fmt.Errorf("overlay cannot show one tree alone: %w", errdefs.ErrInvalid)
	}
	return onThread(func() error { return mountLower(treesDir, lower, p) })
}

// mountLower mounts trees, topmost first, on a thread that onThread made.
func mountLower(treesDir string, lower []string, p Plan) error {
	if p.IDs != nil {
		return mountMapped(treesDir, lower, p)
	}
	return mountStack(treesDir, lower, p)
}

// MaxStack is how many lower directories the kernel stacks.
const MaxStack = 500

// mountStack mounts trees, topmost first. It changes the working directory of
// the calling thread, which onThread made for it: lower directories are given
// relative to it, so that many of them fit into the mount options.
func mountStack(treesDir string, lower []string, p Plan) (err error) {
	if len(lower) > MaxStack {
		return fmt.Errorf("%d layers, overlay stacks %d: %w", len(lower), MaxStack, errdefs.ErrUnsupported)
	}
	dir, dirs := treesDir, make([]string, len(lower))
	for i, name := range lower {
		dirs[i] = filepath.Join(name, "rootfs")
	}
	data := options(dirs, p)
	if len(data) >= os.Getpagesize() {
		// The directory of the mount point dies with the boot at the latest.
		if dir, err = os.MkdirTemp(filepath.Dir(p.Target), ".lower-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
		if dirs, err = shorten(treesDir, dirs, dir); err != nil {
			return err
		}
		data = options(dirs, p)
	}
	if len(data) >= os.Getpagesize() {
		return fmt.Errorf("%d layers need %d bytes of mount options, the kernel takes %d: %w",
			len(lower), len(data), os.Getpagesize()-1, errdefs.ErrUnsupported)
	}
	if err := unix.Chdir(dir); err != nil {
		return &fs.PathError{Op: "chdir", Path: dir, Err: err}
	}
	return os.NewSyscallError("mount", unix.Mount("overlay", p.Target, "overlay", 0, data))
}

// shorten makes symbolic links in dir to directories relative to root, and
// returns the links' names, which are as short as can be. The kernel follows
// them when it mounts and not later. Absolute directories stay what they are.
func shorten(root string, dirs []string, dir string) ([]string, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(dirs))
	for i, d := range dirs {
		names[i] = strconv.FormatInt(int64(i), 36)
		if !filepath.IsAbs(d) {
			d = filepath.Join(root, d)
		}
		if err := os.Symlink(d, filepath.Join(dir, names[i])); err != nil {
			return nil, durable.NoSpace(err)
		}
	}
	return names, nil
}

// visible returns the part of the stack that is to be mounted. A tree that
// is named again further down adds nothing there, and overlay refuses it. What
// lies below an opaque root is hidden, which overlay does not look for itself.
func visible(treesDir string, names []string) ([]string, error) {
	seen := make(map[string]bool, len(names))
	var lower []string
	for _, name := range names {
		if seen[name] {
			continue
		}
		seen[name] = true
		lower = append(lower, name)
		opaque, err := tree.Opaque(rootOf(treesDir, name))
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("tree %s: %w", name, errdefs.ErrNotFound)
		}
		if err != nil {
			return nil, err
		}
		if opaque {
			break
		}
	}
	return lower, nil
}

// options builds the mount options.
func options(lower []string, p Plan) string {
	dirs := make([]string, len(lower))
	for i, dir := range lower {
		dirs[i] = Escape(dir)
	}
	data := "lowerdir=" + strings.Join(dirs, ":")
	if p.Upper != "" {
		data += ",upperdir=" + Escape(p.Upper) + ",workdir=" + Escape(p.Work)
	}
	if _, err := os.Stat("/sys/module/overlay/parameters/index"); err == nil {
		// An index ties an upper to the very inodes of its stack; a tree that was
		// removed and extracted again must stay usable.
		data += ",index=off"
	}
	return data
}

// onThread calls f on a thread of its own that is thrown away, with a working directory
// of its own: that, like a mount namespace, belongs to all threads unless one leaves.
func onThread(f func() error) error {
	return thread.ThrownAway(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		defer unix.Chdir("/") //nolint:errcheck // the thread, which ends a moment later, is to keep nothing busy
		return f()
	})
}

// Unmount ends the mount on target. What is not mounted, or not there, is no
// error; what is busy is detached and ends with its last user.
func Unmount(target string) error {
	err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EBUSY) {
		err = unix.Unmount(target, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
	}
	if err == nil || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return &fs.PathError{Op: "unmount", Path: target, Err: err}
}
