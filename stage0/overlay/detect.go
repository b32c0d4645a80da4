package overlay

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Support says whether a data directory can carry overlay mounts.
type Support struct {
	OK bool
	// Reason says why not, in words that fit behind "disabling overlay support:".
	Reason string
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
	trial       func(dir string) error
}

// Detect says whether overlay mounts work on the data directory dir: file
// systems known not to carry them, entries without a type (XFS with ftype=0),
// a kernel without overlay, and last one trial mount within dir. A failure to
// find out is an error; every finding is a Support with its reason. The
// conditions are those of rkt prepare.
func Detect(dir string) (Support, error) {
	return detect(dir, node{
		statfs:      unix.Statfs,
		getdents:    unix.Getdents,
		filesystems: "/proc/filesystems",
		trial:       trialMount,
	})
}

func detect(dir string, n node) (Support, error) {
	reason, err := unsupported(dir, n)
	if err != nil {
		return Support{}, fmt.Errorf("determine overlay support of %s: %w", dir, err)
	}
	return Support{OK: reason == "", Reason: reason}, nil
}

func unsupported(dir string, n node) (string, error) {
	var st unix.Statfs_t
	if err := n.statfs(dir, &st); err != nil {
		return "", fmt.Errorf("statfs: %w", err)
	}
	switch uint32(st.Type) { //nolint:gosec // the kernel's magic numbers have 32 bits
	case magicAUFS:
		return "unsupported filesystem: aufs", nil
	case magicZFS:
		return "unsupported filesystem: zfs", nil
	}
	typed, err := hasTypes(dir, n)
	if err != nil {
		return "", err
	}
	if !typed {
		return "unsupported filesystem: missing d_type support", nil
	}
	trial := n.trial(dir)
	if trial == nil {
		return "", nil
	}
	// The mount loads a missing module by itself, so the list is read after it.
	list, err := os.ReadFile(n.filesystems)
	if err != nil {
		return fmt.Sprintf("cannot open %s: %v", n.filesystems, err), nil
	}
	if !bytes.Contains(append([]byte("\n"), list...), []byte("\nnodev\toverlay\n")) {
		return "overlay entry not present in " + n.filesystems, nil
	}
	return fmt.Sprintf("trial mount: %v", trial), nil
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

// trialMount mounts an overlay within dir and takes it away again.
func trialMount(dir string) (err error) {
	tmp, err := os.MkdirTemp(dir, ".overlay-trial-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	for _, d := range []string{"tree/rootfs", "upper", "work", "merged"} {
		if err := os.MkdirAll(filepath.Join(tmp, d), 0o700); err != nil {
			return err
		}
	}
	p := Plan{
		Lower:  []string{"tree"},
		Upper:  filepath.Join(tmp, "upper"),
		Work:   filepath.Join(tmp, "work"),
		Target: filepath.Join(tmp, "merged"),
	}
	if err := mount(tmp, p); err != nil {
		return errors.New(strings.ReplaceAll(err.Error(), tmp, dir))
	}
	return Unmount(p.Target)
}
