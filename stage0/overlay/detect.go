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
	// Known is the path of a file that remembers the trial mounts that worked.
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
	trialMapped func(ctx context.Context, tmp string, trees []string) (refused, err error)
}

var machine = node{
	statfs:      unix.Statfs,
	getdents:    unix.Getdents,
	filesystems: "/proc/filesystems",
	trial:       trialMount,
	trialMapped: trialMapped,
}

// Detect says whether overlay mounts work on the site: file systems known not
// to carry them, entries without a type (XFS with ftype=0), a kernel without
// overlay, and last a trial mount. The trial is made once a boot and device, as
// long as it succeeds: what fails may have been put right meanwhile. A failure
// to find out is an error; every finding is a Support with its reason. The
// conditions are those of rkt prepare.
func (s Site) Detect(ctx context.Context) (Support, error) {
	return s.detect(ctx, machine)
}

// DetectIDMapped says what Detect says of mounts with mapped owners (Plan.IDs), of the
// trees that lie at the paths and of the site's own. That takes a kernel that stacks
// id-mapped mounts (5.19), a file system below each tree that can be id-mapped, and user
// namespaces. All that is found out by a trial mount alone, once a boot and devices.
func (s Site) DetectIDMapped(ctx context.Context, trees []string) (Support, error) {
	return s.detectIDMapped(ctx, trees, machine)
}

func (s Site) detect(ctx context.Context, n node) (Support, error) {
	reason, err := s.unsupported(ctx, n)
	if err != nil {
		return Support{}, fmt.Errorf("determine overlay support of %s: %w", s.Dir, err)
	}
	return Support{OK: reason == "", Reason: reason}, nil
}

func (s Site) detectIDMapped(ctx context.Context, trees []string, n node) (Support, error) {
	support, err := s.detect(ctx, n)
	if err != nil || !support.OK {
		return support, err
	}
	reason, err := s.unmapped(ctx, trees, n)
	if err != nil {
		return Support{}, fmt.Errorf("determine support of id-mapped layers in %s: %w", s.Dir, err)
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
	seen, err := s.memory()
	if err != nil {
		return "", err
	}
	this, err := device(s.Dir, n)
	if err != nil || seen.has(this) {
		return "", err
	}
	refused, err := n.trial(ctx, filepath.Join(s.Dir, "tmp"))
	if err != nil {
		return "", fmt.Errorf("trial mount: %w", err)
	}
	if refused == nil {
		return "", seen.add(this)
	}
	return refusal(refused, n.filesystems), nil
}

// unmapped says why layers cannot be id-mapped; empty if they can.
func (s Site) unmapped(ctx context.Context, trees []string, n node) (string, error) {
	seen, err := s.memory()
	if err != nil {
		return "", err
	}
	lines, unknown, err := s.unknown(trees, seen, n)
	if err != nil || len(lines) == 0 {
		return "", err
	}
	refused, err := n.trialMapped(ctx, filepath.Join(s.Dir, "tmp"), unknown)
	if err != nil {
		return "", fmt.Errorf("trial mount: %w", err)
	}
	if refused == nil {
		return "", seen.add(lines...)
	}
	return fmt.Sprintf("trial mount of id-mapped layers: %v", refused), nil
}

// unknown returns the lines that remember the trials that are still to be made, one for
// each file system below the trees and the site, and a tree of each but the site's, on
// which a trial has one of its own.
func (s Site) unknown(trees []string, seen memory, n node) (lines, unknown []string, err error) {
	own, err := device(s.Dir, n)
	if err != nil {
		return nil, nil, err
	}
	looked := map[uint64]bool{}
	for i, dir := range append([]string{s.Dir}, trees...) {
		var st unix.Stat_t
		err := unix.Stat(dir, &st)
		if errors.Is(err, unix.ENOENT) || looked[st.Dev] {
			continue // a tree that is missing is for those to tell who need it
		}
		if err != nil {
			return nil, nil, &os.PathError{Op: "stat", Path: dir, Err: err}
		}
		looked[st.Dev] = true
		below, err := device(dir, n)
		if err != nil {
			return nil, nil, err
		}
		line := fmt.Sprintf("%s id-mapped below %s", below, own)
		if seen.has(line) {
			continue
		}
		lines = append(lines, line)
		if i > 0 {
			unknown = append(unknown, dir)
		}
	}
	return lines, unknown, nil
}

// device names the file system that a directory lies on. The number alone is not
// enough: another file system gets that of one that was unmounted.
func device(dir string, n node) (string, error) {
	var fs unix.Statfs_t
	if err := n.statfs(dir, &fs); err != nil {
		return "", fmt.Errorf("statfs: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return "", &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	return fmt.Sprintf("device %d:%d type %x id %x", unix.Major(st.Dev), unix.Minor(st.Dev), fs.Type, fs.Fsid.Val), nil
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
