// Package proc names, watches and signals processes that are not our children.
// A pid alone is not a name, because the kernel uses it again; a pid with its
// start time is, for the life of a boot. Nothing here starts a program or
// blocks a thread: waiting goes through a pidfd in Go's network poller.
package proc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/pod"
)

// Read returns the name of the process that has this pid now, a zombie
// included. It returns ErrNotFound when there is none.
func Read(pid int) (pod.Process, error) {
	st, err := readStat(pid)
	if err != nil {
		return pod.Process{}, err
	}
	return pod.Process{PID: pid, StartTime: st.start}, nil
}

// ReadPIDFile returns the pid that a program wrote to a file, a number above 0 on a line
// of its own.
func ReadPIDFile(path string) (int, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("pid file: %w", err)
	}
	pid, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 32)
	if err != nil || pid <= 0 {
		return 0, fmt.Errorf("pid file %s holds %.80q, not a pid", path, b)
	}
	return int(pid), nil
}

// Alive says whether the process still runs. A zombie does not: its files are
// closed and its memory is gone, only its exit status waits for its parent.
func Alive(p pod.Process) bool {
	st, err := readStat(p.PID)
	return err == nil && st.start == p.StartTime && st.state != 'Z' && st.state != 'X'
}

// Exists says whether the process has not been reaped yet: Alive, or a zombie.
func Exists(p pod.Process) bool {
	st, err := readStat(p.PID)
	return err == nil && st.start == p.StartTime
}

// Wait returns nil once the process is dead, at once if it is already or if its
// pid belongs to another by now, and the context's error when that ends first.
// It does not reap, and does not need the process to be a child.
func Wait(ctx context.Context, p pod.Process) error {
	fd, err := open(p)
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "pidfd:"+strconv.Itoa(p.PID))
	defer f.Close() //nolint:errcheck // nothing was written
	return waitReadable(ctx, f)
}

// Signal sends sig to the process and to no other: ErrNotFound when it is gone.
// This is a system call, not the OCI runtime's kill.
func Signal(p pod.Process, sig unix.Signal) error {
	fd, err := open(p)
	if err != nil {
		return err
	}
	err = unix.PidfdSendSignal(fd, sig, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		err = errdefs.ErrNotFound
	}
	if err != nil {
		err = fmt.Errorf("signal %v to process %d: %w", sig, p.PID, err)
	}
	return errors.Join(err, unix.Close(fd))
}

// Children are the children of the process that run still, in no order. It reads
// all of /proc: not for hot paths.
func Children(parent int) ([]pod.Process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("children of %d: %w", parent, err)
	}
	var list []pod.Process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		st, err := readStat(pid) // one that has gone meanwhile is no child
		if err == nil && st.parent == parent && st.state != 'Z' && st.state != 'X' {
			list = append(list, pod.Process{PID: pid, StartTime: st.start})
		}
	}
	return list, nil
}

// open returns a pidfd that is surely the process meant: the start time is
// compared after the descriptor holds the pid.
func open(p pod.Process) (int, error) {
	if p.PID <= 0 {
		return -1, fmt.Errorf("process %d: %w", p.PID, errdefs.ErrNotFound)
	}
	fd, err := unix.PidfdOpen(p.PID, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return -1, fmt.Errorf("process %d: %w", p.PID, errdefs.ErrNotFound)
	}
	if err != nil {
		return -1, fmt.Errorf("pidfd of %d: %w", p.PID, err)
	}
	if !Exists(p) {
		return -1, errors.Join(fmt.Errorf("process %d: %w", p.PID, errdefs.ErrNotFound), unix.Close(fd))
	}
	return fd, nil
}

// waitReadable waits until poll says that the pidfd is readable.
func waitReadable(ctx context.Context, f *os.File) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("wait: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	err = conn.Read(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 0)
		return err == nil && n > 0
	})
	if ctx.Err() != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		return ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("wait: %w", err)
	}
	return nil
}

type stat struct {
	state  byte
	parent int
	start  uint64
}

// readStat reads the fields 3, 4 and 22 of /proc/PID/stat. The second field, the
// command, may hold spaces and parentheses: the fields are counted from its end.
func readStat(pid int) (stat, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	// A process that dies between open and read gives ESRCH.
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return stat{}, fmt.Errorf("process %d: %w", pid, errdefs.ErrNotFound)
	}
	if err != nil {
		return stat{}, fmt.Errorf("process %d: %w", pid, err)
	}
	return parseStat(string(b))
}

func parseStat(s string) (stat, error) {
	i := strings.LastIndexByte(s, ')')
	if i < 0 {
		return stat{}, fmt.Errorf("stat %q has no command", s)
	}
	fields := strings.Fields(s[i+1:])
	if len(fields) < 20 {
		return stat{}, fmt.Errorf("stat %q is short", s)
	}
	state := fields[0]
	if len(state) != 1 || !isLetter(state[0]) {
		return stat{}, fmt.Errorf("stat %q: state %q", s, state)
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return stat{}, fmt.Errorf("stat %q: %w", s, err)
	}
	parent, err := strconv.Atoi(fields[1])
	if err != nil {
		return stat{}, fmt.Errorf("stat %q: %w", s, err)
	}
	return stat{state: state[0], parent: parent, start: start}, nil
}

func isLetter(c byte) bool { return 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z' }
