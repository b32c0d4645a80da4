package main

import (
	"crypto/sha256"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// clockTick is the unit of /proc/PID/stat: USER_HZ is 100 on all that Go runs on.
const clockTick = 0.01

// cpuOf is the CPU, user and system, that this program spends while f runs.
func cpuOf(f func()) float64 {
	before := ownCPU()
	f()
	return ownCPU() - before
}

func ownCPU() float64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		panic(err) // the arguments are constants
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
}

// machineCPU is the CPU that all processes and the kernel spend, idle time and waiting
// aside, while f runs on a machine that does nothing else.
func machineCPU(f func() error) (float64, error) {
	before, err := busy()
	if err != nil {
		return 0, err
	}
	if err := f(); err != nil {
		return 0, err
	}
	after, err := busy()
	return after - before, err
}

func busy() (float64, error) {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	// proc_stat(5): user, nice, system, idle, iowait, irq and softirq stand behind "cpu".
	line, _, _ := strings.Cut(string(data), "\n")
	fields := strings.Fields(line)
	if len(fields) < 8 {
		return 0, fmt.Errorf("/proc/stat begins with %q", line)
	}
	return ticks(fields[1], fields[2], fields[3], fields[6], fields[7])
}

// ticks adds times in units of clockTick.
func ticks(fields ...string) (seconds float64, err error) {
	for _, f := range fields {
		n, err := strconv.Atoi(f)
		if err != nil {
			return 0, err
		}
		seconds += float64(n) * clockTick
	}
	return seconds, nil
}

// processCPU is the CPU that a process has spent.
func processCPU(pid int) (float64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// proc_pid_stat(5): the name may have spaces; utime and stime are the 12th and
	// 13th field behind it.
	_, rest, _ := strings.Cut(string(data), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	seconds, err := ticks(fields[11], fields[12])
	if err != nil {
		return 0, fmt.Errorf("/proc/%d/stat: %w", pid, err)
	}
	return seconds, nil
}

// hash computes the SHA-256 of data, taken in pieces as a stream's is.
func hash(data []byte) {
	h := sha256.New()
	for len(data) > 0 {
		n := min(len(data), bufferSize)
		h.Write(data[:n])
		data = data[n:]
	}
	h.Sum(nil)
}
