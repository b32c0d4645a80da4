// Package namespace makes the user, network, IPC and UTS namespaces of a pod and keeps
// them by bind mounts ("pins") alone: no process of ours lives in them, so they
// outlive the daemon that made them and end with the boot or with [Unpin].
//
// A thread that enters or makes a namespace is never used again: the goroutine
// that was locked to it ends, and the Go runtime ends the thread with it. Nothing
// here changes the namespaces of another goroutine.
package namespace

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/failpoint"
	"github.com/gantry-cri/gantry/stage0/idmap"
	"github.com/gantry-cri/gantry/stage0/thread"
)

// Kind is a kind of namespace, spelt as in /proc/PID/ns. It is the name of the pin too.
type Kind string

// The kinds that a pod can have of its own. A PID namespace needs an init process
// and so is not pinned; a mount namespace belongs to a container.
const (
	User Kind = "user"
	Net  Kind = "net"
	IPC  Kind = "ipc"
	UTS  Kind = "uts"
)

var kinds = [...]struct {
	kind Kind
	flag int
}{
	{User, unix.CLONE_NEWUSER},
	{Net, unix.CLONE_NEWNET},
	{IPC, unix.CLONE_NEWIPC},
	{UTS, unix.CLONE_NEWUTS},
}

// Spec says which namespaces to make and what is set in them before anybody joins.
type Spec struct {
	// Dir receives the pins user, net, ipc and uts; it is made (0700) when it is not there.
	Dir string
	// Net, IPC and UTS say which namespaces are the pod's own; the others stay the node's.
	Net, IPC, UTS bool
	// Users are the ids of a user namespace of the pod's own, to which its other namespaces
	// belong; nil keeps the node's.
	Users *idmap.Map
	// Hostname is set in the UTS namespace; empty keeps the node's.
	Hostname string
	// Sysctls by name, dotted or with slashes. Each must belong to a namespace
	// that is made here: nothing of the node is ever written.
	Sysctls map[string]string
}

func (s Spec) wants(k Kind) bool {
	switch k {
	case User:
		return s.Users != nil
	case Net:
		return s.Net
	case IPC:
		return s.IPC
	case UTS:
		return s.UTS
	}
	return false
}

// Pin is the path of the pin of one kind in the directory of pins.
func Pin(dir string, k Kind) string { return filepath.Join(dir, string(k)) }

// Make makes the namespaces of a pod and pins them. In a new network namespace
// lo is up. nil means that every wanted namespace is pinned, with hostname and
// sysctls set; on an error nothing is left pinned. ErrExists says that a pin
// of the directory is in use already, ErrInvalid that a hostname or sysctl cannot be set.
func Make(s Spec) error {
	plan, err := planSysctls(s)
	if err != nil {
		return err
	}
	if err := checkHostname(s); err != nil {
		return err
	}
	if !s.Net && !s.IPC && !s.UTS && s.Users == nil {
		return nil
	}
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return fmt.Errorf("make namespaces: %w", err)
	}
	build := func() error { return build(s, plan) }
	if s.Users != nil {
		build = func() error { return buildInside(s, plan) }
	}
	if err := thread.ThrownAway(build); err != nil {
		return fmt.Errorf("make namespaces: %w", err)
	}
	return nil
}

// build runs on the thread whose namespaces become the pod's.
func build(s Spec, sysctls []sysctl) error {
	flags := 0
	for _, k := range kinds {
		if s.wants(k.kind) {
			flags |= k.flag
		}
	}
	if err := unix.Unshare(flags); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := set(s, sysctls); err != nil {
		return err
	}
	return pinAll(s, "/proc/thread-self/ns")
}

// buildInside is build for a pod with a user namespace: the thread joins the others of
// its namespaces, since no thread of ours can be in that one.
func buildInside(s Spec, sysctls []sysctl) error {
	flags := 0
	for _, k := range kinds {
		if s.wants(k.kind) && k.kind != User {
			flags |= k.flag
		}
	}
	return s.Users.Inside(uintptr(flags), func(pid int) error {
		process, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			return os.NewSyscallError("pidfd_open", err)
		}
		defer unix.Close(process) //nolint:errcheck // nothing is written to it
		if flags != 0 {
			if err := unix.Setns(process, flags); err != nil {
				return os.NewSyscallError("setns", err)
			}
		}
		if err := set(s, sysctls); err != nil {
			return err
		}
		return pinAll(s, fmt.Sprintf("/proc/%d/ns", pid))
	})
}

// set sets what is to be set in namespaces that the thread is in.
func set(s Spec, sysctls []sysctl) error {
	if s.Hostname != "" {
		if err := unix.Sethostname([]byte(s.Hostname)); err != nil {
			return fmt.Errorf("set hostname %q: %w", s.Hostname, err)
		}
	}
	if s.Net {
		if err := loopbackUp(); err != nil {
			return err
		}
	}
	for _, c := range sysctls {
		if err := c.write(); err != nil {
			return err
		}
	}
	return nil
}

// pinAll pins the namespaces whose links are in a directory of /proc, all or none.
func pinAll(s Spec, links string) error {
	var undo []string
	for _, k := range kinds {
		if !s.wants(k.kind) {
			continue
		}
		path := Pin(s.Dir, k.kind)
		if err := pin(k.kind, links, path); err != nil {
			for _, p := range undo {
				err = errors.Join(err, unpin(p))
			}
			return err
		}
		undo = append(undo, path)
	}
	return nil
}

func checkHostname(s Spec) error {
	if s.Hostname == "" {
		return nil
	}
	if !s.UTS {
		return fmt.Errorf("hostname %q needs a UTS namespace of the pod's own: %w", s.Hostname, errdefs.ErrInvalid)
	}
	// The kernel's limit, __NEW_UTS_LEN.
	if len(s.Hostname) > 64 {
		return fmt.Errorf("hostname %q is longer than 64 bytes: %w", s.Hostname, errdefs.ErrInvalid)
	}
	return nil
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	return nil
}

// pin keeps a namespace by a bind mount on an empty file.
func pin(k Kind, links, path string) error {
	pinned, err := IsPinned(path)
	if err != nil {
		return err
	}
	if pinned {
		return fmt.Errorf("pin %s: %w", path, errdefs.ErrExists)
	}
	// O_NOFOLLOW: a link planted here would have us mount over another file.
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|unix.O_NOFOLLOW, 0o444)
	if err != nil {
		return fmt.Errorf("pin %s namespace: %w", k, err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("pin %s namespace: %w", k, err)
	}
	failpoint.Hit(failpoint.NamespacePinning)
	if err := unix.Mount(filepath.Join(links, string(k)), path, "", unix.MS_BIND, ""); err != nil {
		return errors.Join(fmt.Errorf("pin %s namespace on %s: %w", k, path, err), os.Remove(path))
	}
	failpoint.Hit(failpoint.NamespacePinned)
	return nil
}

// IsPinned says whether a namespace is mounted on the path; false when nothing is there.
// It costs one statfs.
func IsPinned(path string) (bool, error) {
	var st unix.Statfs_t
	err := ignoringEINTR(func() error { return unix.Statfs(path, &st) })
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at pin %s: %w", path, err)
	}
	return st.Type == unix.NSFS_MAGIC, nil
}

// Unpin lets go of the namespaces pinned in dir and removes the pins, and the
// directory when nothing else is in it. It is idempotent: nil means that no pin is there.
// A namespace lives on while a process is in it. ErrBusy says that a pin
// is hidden below another mount and cannot be removed.
func Unpin(dir string) error {
	var errs error
	for _, k := range kinds {
		errs = errors.Join(errs, unpin(Pin(dir, k.kind)))
	}
	if errs != nil {
		return fmt.Errorf("unpin namespaces: %w", errs)
	}
	// What else lies there is not ours, and then the directory is not either.
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTEMPTY) {
		return fmt.Errorf("unpin namespaces: remove %s: %w", dir, err)
	}
	return nil
}

// unpinTries bounds how often a busy pin is asked for again, unpinPause apart:
// a mount that another thread is just copying is busy for an instant.
const (
	unpinTries = 10
	unpinPause = 10 * time.Millisecond
)

func unpin(path string) error {
	for try := 1; ; try++ {
		// Lazily: who has the pin open keeps the namespace, not the mount.
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err == nil {
			continue // pins may be stacked: EINVAL says that nothing is mounted any more
		}
		if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
		err = unix.Unlink(path)
		switch {
		case err == nil || errors.Is(err, unix.ENOENT):
			return nil
		case !errors.Is(err, unix.EBUSY):
			return fmt.Errorf("remove %s: %w", path, err)
		case try >= unpinTries:
			return fmt.Errorf("remove %s: a mount hides it: %w: %w", path, errdefs.ErrBusy, err)
		}
		time.Sleep(unpinPause) //nolint:forbidigo // the kernel tells nobody when a mount ends elsewhere
	}
}

func ignoringEINTR(fn func() error) error {
	for {
		if err := fn(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
