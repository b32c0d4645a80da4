package idmap

import (
	"fmt"
	"os"
	"runtime"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Namespace makes a user namespace with the map and returns it, for the caller to close;
// it ends with its last descriptor. Nobody is left in it.
func (m Map) Namespace() (ns *os.File, err error) {
	err = m.Inside(0, func(pid int) error {
		ns, err = os.Open(fmt.Sprintf("/proc/%d/ns/user", pid))
		return err
	})
	return ns, err
}

// Inside makes a user namespace with the map, and namespaces that belong to it of the
// kinds that flags name (CLONE_NEWNET and so on). use is called while they are those of
// the process with the pid, which ends then. It must not leave its thread.
//
// Only a new process can be in a new user namespace, a thread of ours cannot. It is
// stopped at its exec, as a debugger would have it, and killed: it never runs.
func (m Map) Inside(flags uintptr, use func(pid int) error) error {
	// The debugger is a thread. When it ends, its processes die, or would run.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	p, err := os.StartProcess("/proc/self/exe", []string{"gantry"}, &os.ProcAttr{Sys: &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | flags,
		UidMappings: lines(m.UIDs),
		GidMappings: lines(m.GIDs),
		Ptrace:      true,
		Pdeathsig:   unix.SIGKILL,
	}})
	if err != nil {
		return fmt.Errorf("make user namespace: %w", err)
	}
	defer func() {
		_ = p.Kill() // nobody else waits for it, so it is there
		_, _ = p.Wait()
	}()
	return use(p.Pid)
}

func lines(ranges []specs.LinuxIDMapping) []syscall.SysProcIDMap {
	all := make([]syscall.SysProcIDMap, len(ranges))
	for i, r := range ranges {
		all[i] = syscall.SysProcIDMap{ContainerID: int(r.ContainerID), HostID: int(r.HostID), Size: int(r.Size)}
	}
	return all
}
