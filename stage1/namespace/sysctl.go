package namespace

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// ipcSysctls are those of the IPC namespace besides fs.mqueue (Linux, ipc/ipc_sysctl.c).
var ipcSysctls = []string{
	"kernel/auto_msgmni", "kernel/msg_next_id", "kernel/msgmax", "kernel/msgmnb", "kernel/msgmni",
	"kernel/sem", "kernel/sem_next_id", "kernel/shm_next_id", "kernel/shm_rmid_forced",
	"kernel/shmall", "kernel/shmmax", "kernel/shmmni",
}

type sysctl struct{ name, path, value string }

// planSysctls finds the file of each and refuses what is not of a namespace
// that is made. Sorted, so that the same request fails with the same message.
func planSysctls(s Spec) ([]sysctl, error) {
	var plan []sysctl
	for name, value := range s.Sysctls {
		rel, err := sysctlFile(name)
		if err != nil {
			return nil, err
		}
		k, ok := sysctlKind(rel)
		if !ok {
			return nil, fmt.Errorf("sysctl %q belongs to the node, not to a namespace: %w", name, errdefs.ErrInvalid)
		}
		if !s.wants(k) {
			return nil, fmt.Errorf("sysctl %q needs a %s namespace of the pod's own: %w", name, k, errdefs.ErrInvalid)
		}
		plan = append(plan, sysctl{name, filepath.Join("/proc/sys", rel), value})
	}
	slices.SortFunc(plan, func(a, b sysctl) int { return strings.Compare(a.name, b.name) })
	return plan, nil
}

// sysctlFile turns a name into a path below /proc/sys as sysctl(8) does: whichever of
// '.' and '/' comes first separates, the other is part of a component
// ("net.ipv4.conf.eth0/1.forwarding" is interface eth0.1).
func sysctlFile(name string) (string, error) {
	rel := name
	if i := strings.IndexAny(name, "./"); i >= 0 && name[i] == '.' {
		rel = strings.NewReplacer(".", "/", "/", ".").Replace(name)
	}
	for _, c := range strings.Split(rel, "/") {
		if c == "" || c == "." || c == ".." || strings.ContainsRune(c, 0) {
			return "", fmt.Errorf("sysctl name %q: %w", name, errdefs.ErrInvalid)
		}
	}
	return rel, nil
}

func sysctlKind(rel string) (Kind, bool) {
	switch {
	case strings.HasPrefix(rel, "net/"):
		return Net, true
	case strings.HasPrefix(rel, "fs/mqueue/"), slices.Contains(ipcSysctls, rel):
		return IPC, true
	case rel == "kernel/domainname":
		return UTS, true
	}
	return "", false
}

// write must run on the thread whose namespaces are meant: /proc/sys answers
// for the thread that opens the file.
func (c sysctl) write() error {
	f, err := os.OpenFile(c.path, os.O_WRONLY, 0)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("sysctl %q: this kernel has none in a namespace: %w", c.name, errdefs.ErrInvalid)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("sysctl %q cannot be set in a namespace: %w", c.name, errdefs.ErrInvalid)
	case err != nil:
		return fmt.Errorf("sysctl %q: %w", c.name, err)
	}
	_, err = f.WriteString(c.value)
	err = errors.Join(err, f.Close())
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ERANGE) {
		return fmt.Errorf("sysctl %q: the kernel refuses the value %q: %w", c.name, c.value, errdefs.ErrInvalid)
	}
	if err != nil {
		return fmt.Errorf("sysctl %q: write %q: %w", c.name, c.value, err)
	}
	return nil
}
