package pod

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"syscall"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// ReadProcess names the process that has a pid now (proc(5), /proc/pid/stat).
// ErrNotFound says that there is none, or that it is a zombie.
func ReadProcess(pid int) (Process, error) {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
		return Process{}, fmt.Errorf("process %d: %w", pid, errdefs.ErrNotFound)
	}
	if err != nil {
		return Process{}, fmt.Errorf("read process %d: %w", pid, err)
	}
	// The command may hold blanks and brackets: count from the last bracket.
	fields := bytes.Fields(raw[bytes.LastIndexByte(raw, ')')+1:])
	if len(fields) < 20 {
		return Process{}, fmt.Errorf("read process %d: %d fields in stat", pid, len(fields))
	}
	if state := fields[0][0]; state == 'Z' || state == 'X' {
		return Process{}, fmt.Errorf("process %d has ended: %w", pid, errdefs.ErrNotFound)
	}
	start, err := strconv.ParseUint(string(fields[19]), 10, 64)
	if err != nil {
		return Process{}, fmt.Errorf("read process %d: %w", pid, err)
	}
	return Process{PID: pid, StartTime: start}, nil
}

// Alive says whether the very process still runs. It is false for the zero value.
func (p Process) Alive() bool {
	if p.PID <= 0 {
		return false
	}
	now, err := ReadProcess(p.PID)
	return err == nil && now == p
}
