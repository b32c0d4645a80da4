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
//
// Only a new process can be in a new user namespace, a thread of ours cannot. It is
// stopped at its exec, as a debugger would have it, and killed: it never runs.
func (m Map) Namespace() (*os.File, error) {
	ns, err := m.namespace()
	if err != nil {
		return nil, fmt.Errorf("make user namespace: %w", err)
	}
	return ns, nil
}

func (m Map) namespace() (*os.File, error) {
	// The debugger is a thread. When it ends, its processes die, or would run.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	p, err := os.StartProcess("/proc/self/exe", []string{"gantry"}, &os.ProcAttr{Sys: &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER,
		UidMappings: lines(m.UIDs),
		GidMappings: lines(m.GIDs),
		Ptrace:      true,
		Pdeathsig:   unix.SIGKILL,
	}})
	if err != nil {
		return nil, err
	}
	defer func() {
		_ = p.Kill() // nobody else waits for it, so it is there
		_, _ = p.Wait()
	}()
	return os.Open(fmt.Sprintf("/proc/%d/ns/user", p.Pid))
}

func lines(ranges []specs.LinuxIDMapping) []syscall.SysProcIDMap {
	all := make([]syscall.SysProcIDMap, len(ranges))
	for i, r := range ranges {
		all[i] = syscall.SysProcIDMap{ContainerID: int(r.ContainerID), HostID: int(r.HostID), Size: int(r.Size)}
	}
	return all
}
