package overlay

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/durable"
)

// Support says whether a data directory can carry overlay mounts.
type Support struct {
	OK bool
	// Reason says why not, in words that fit behind "disabling overlay support:".
	Reason string
}

// Site is where overlay mounts are to be made.
type Site struct {
	// Dir is the data directory, which holds trees and upper directories. Its tmp/
	// is where a mount is tried.
	Dir string
	// Known is the path of a file that remembers the last trial mount that worked.
	Known string
}

const (
	magicAUFS = 0x61756673
	magicZFS  = 0x2fc12fc1
)

// node is what Detect asks of the machine; tests put other answers in.
type node struct {
	statfs      func(path string, st *unix.Statfs_t) error
	getdents    func(fd int, buf []byte) (int, error)
	filesystems string // path of /proc/filesystems
	trial       func(ctx context.Context, tmp string) (refused, err error)
}

// Detect says whether overlay mounts work on the site: file systems known not
// to carry them, entries without a type (XFS with ftype=0), a kernel without
// overlay, and last a trial mount. The trial is made once a boot and device, as
// long as it succeeds: what fails may have been put right meanwhile. A failure
// to find out is an error; every finding is a Support with its reason. The
// conditions are those of rkt prepare.
func (s Site) Detect(ctx context.Context) (Support, error) {
	return s.detect(ctx, node{
		statfs:      unix.Statfs,
		getdents:    unix.Getdents,
		filesystems: "/proc/filesystems",
		trial:       trialMount,
	})
}

func (s Site) detect(ctx context.Context, n node) (Support, error) {
	reason, err := s.unsupported(ctx, n)
	if err != nil {
		return Support{}, fmt.Errorf("determine overlay support of %s: %w", s.Dir, err)
	}
	return Support{OK: reason == "", Reason: reason}, nil
}

func (s Site) unsupported(ctx context.Context, n node) (string, error) {
	var st unix.Statfs_t
	if err := n.statfs(s.Dir, &st); err != nil {
		return "", fmt.Errorf("statfs: %w", err)
	}
	switch uint32(st.Type) { //nolint:gosec // the kernel's magic numbers have 32 bits
	case magicAUFS:
		return "unsupported filesystem: aufs", nil
	case magicZFS:
		return "unsupported filesystem: zfs", nil
	}
	typed, err := hasTypes(s.Dir, n)
	if err != nil {
		return "", err
	}
	if !typed {
		return "unsupported filesystem: missing d_type support", nil
	}
	device, err := s.device(st)
	if err != nil {
		return "", err
	}
	if known, err := os.ReadFile(s.Known); err == nil && string(known) == device {
		return "", nil
	}
	refused, err := n.trial(ctx, filepath.Join(s.Dir, "tmp"))
	if err != nil {
		return "", fmt.Errorf("trial mount: %w", err)
	}
	if refused == nil {
		return "", durable.WriteFile(s.Known, []byte(device), 0o600, durable.Kill)
	}
	return refusal(refused, n.filesystems), nil
}

// device names the file system of the site and the boot that it is looked at
// in. The number alone is not enough: another file system gets that of one that
// was unmounted.
func (s Site) device(fs unix.Statfs_t) (string, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Stat(s.Dir, &st); err != nil {
		return "", &os.PathError{Op: "stat", Path: s.Dir, Err: err}
	}
	return fmt.Sprintf("boot %s device %d:%d type %x id %x\n",
		bytes.TrimSpace(boot), unix.Major(st.Dev), unix.Minor(st.Dev), fs.Type, fs.Fsid.Val), nil
}

// refusal puts into words that the kernel refused the trial mount. The mount
// loads a missing module by itself, so the list is read after it.
func refusal(refused error, filesystems string) string {
	list, err := os.ReadFile(filesystems)
	if err != nil {
		return fmt.Sprintf("cannot open %s: %v", filesystems, err)
	}
	if !bytes.Contains(append([]byte("\n"), list...), []byte("\nnodev\toverlay\n")) {
		return "overlay entry not present in " + filesystems
	}
	return fmt.Sprintf("trial mount: %v", refused)
}

// hasTypes says whether the directory's entries carry their type: one
// getdents call, as rkt does, on what dir holds ("." and ".." at least).
func hasTypes(dir string, n node) (bool, error) {
	f, err := os.Open(dir)
	if err != nil {
		return false, err
	}
	defer f.Close() //nolint:errcheck // only read, or only a lock
	buf := make([]byte, 4096)
	size, err := n.getdents(int(f.Fd()), buf)
	if err != nil {
		return false, fmt.Errorf("getdents: %w", err)
	}
	// struct linux_dirent64: inode (8), offset (8), record length (2), type (1), name.
	for b := buf[:size]; len(b) >= 19; {
		length := int(binary.NativeEndian.Uint16(b[16:18]))
		if length < 19 || length > len(b) {
			return false, fmt.Errorf("getdents: record of %d bytes", length)
		}
		if binary.NativeEndian.Uint64(b[:8]) != 0 && b[18] == unix.DT_UNKNOWN {
			return false, nil
		}
		b = b[length:]
	}
	return true, nil
}

// trialName is the entry in tmp/ that a trial works in. It has one name, so
// that the next trial finds what one that was killed left.
const trialName = "overlay-trial"

// trialMount makes an overlay mount within tmp. refused is the kernel's answer;
// err says that it could not be asked. The mount lives in a mount namespace that
// ends with the trial, however that ends.
func trialMount(ctx context.Context, tmp string) (refused, err error) {
	if err := os.MkdirAll(tmp, 0o700); err != nil {
		return nil, durable.NoSpace(err)
	}
	dir := filepath.Join(tmp, trialName)
	lock, err := durable.LockFile(ctx, dir+".lock")
	if err != nil {
		return nil, err
	}
	defer func() {
		err = errors.Join(err, os.RemoveAll(dir), os.Remove(lock.Name()))
		durable.Unlock(lock)
	}()
	if err := os.RemoveAll(dir); err != nil {
		return nil, err
	}
	p := Plan{
		Lower:  []string{"tree"},
		Upper:  filepath.Join(dir, "upper"),
		Work:   filepath.Join(dir, "work"),
		Target: filepath.Join(dir, "merged"),
	}
	for _, d := range []string{filepath.Join(dir, "tree", "rootfs"), p.Upper, p.Work, p.Target} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, durable.NoSpace(err)
		}
	}
	return onThread(unix.CLONE_NEWNS, func() error {
		// Nothing is to propagate to where the namespace was copied from.
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return os.NewSyscallError("mount", err)
		}
		if err := mountStack(dir, p.Lower, p); err != nil {
			return err
		}
		return Unmount(p.Target)
	}), nil
}
