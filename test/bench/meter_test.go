package bench

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/test/bench/result"
	"github.com/gantry-cri/gantry/test/harness"
)

// diskMB is how large the fresh file systems are.
const diskMB = 4000

// disk is a fresh file system and what it had when measuring began.
type disk struct {
	path          string
	written, used int64
}

// freshDisk makes one.
func freshDisk(b *testing.B) *disk {
	b.Helper()
	return &disk{path: harness.DirectDisk(b, diskMB)}
}

// counters are the bytes that were written to the device, and those in use.
func (d *disk) counters(b *testing.B) (written, used int64) {
	b.Helper()
	var st unix.Stat_t
	var fs unix.Statfs_t
	if err := unix.Stat(d.path, &st); err != nil {
		b.Fatalf("stat %s: %v", d.path, err)
	}
	if err := unix.Statfs(d.path, &fs); err != nil {
		b.Fatalf("statfs %s: %v", d.path, err)
	}
	// The seventh number is that of sectors of 512 bytes (the kernel's
	// Documentation/block/stat.rst).
	file := fmt.Sprintf("/sys/dev/block/%d:%d/stat", unix.Major(st.Dev), unix.Minor(st.Dev))
	fields := strings.Fields(text(b, file))
	if len(fields) < 7 {
		b.Fatalf("%s has %d fields", file, len(fields))
	}
	return number(b, fields[6]) * 512, int64(fs.Blocks-fs.Bfree) * fs.Bsize
}

// begin brings everything to the disks, so that no earlier writeback takes part in
// what is measured next.
func (d *disk) begin(b *testing.B) {
	b.Helper()
	unix.Sync()
	d.written, d.used = d.counters(b)
}

// end syncs the file system and completes a sample that began at a time.
func (d *disk) end(b *testing.B, begin time.Time, s *result.Sample) {
	b.Helper()
	if out, err := exec.Command("sync", "-f", d.path).CombinedOutput(); err != nil {
		b.Fatalf("sync: %v: %s", err, out)
	}
	s.Synced = time.Since(begin).Seconds()
	written, used := d.counters(b)
	s.Written, s.Used = written-d.written, used-d.used
}

// run measures a program that runs from begin to end, keeps the sample and returns what
// the program printed.
func run(b *testing.B, d *disk, s result.Sample, cmd *exec.Cmd) string {
	b.Helper()
	s, stdout := measure(b, d, s, cmd)
	record(s)
	return stdout
}

// measure is run for those who add to the sample. With a disk, what the program wrote
// there is synced; without one, its memory is not measured, as that takes another
// process.
func measure(b *testing.B, d *disk, s result.Sample, cmd *exec.Cmd) (result.Sample, string) {
	b.Helper()
	peak := filepath.Join(b.TempDir(), "peak")
	if d != nil {
		d.begin(b)
		// What the kernel tells of a child's peak is no less than that of its parent.
		cmd.Args = append([]string{"time", "-f", "%M", "-o", peak, cmd.Path}, cmd.Args[1:]...)
		cmd.Path = "/usr/bin/time"
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	begin := time.Now()
	stdout, err := cmd.Output()
	s.Seconds = time.Since(begin).Seconds()
	if err != nil {
		b.Fatalf("%q: %v: %s", cmd.Args, err, stderr.String())
	}
	s.CPU = (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()
	if d != nil {
		d.end(b, begin, &s)
		s.Peak = number(b, strings.TrimSpace(text(b, peak))) << 10
	}
	return s, string(stdout)
}

// daemonCPU is the CPU seconds of a process and of the children that it waited for.
func daemonCPU(b *testing.B, pid int) float64 {
	b.Helper()
	// proc_pid_stat(5): utime, stime, cutime and cstime are the 12th to 15th field
	// behind the name, in hundredths of a second.
	_, rest, _ := strings.Cut(text(b, fmt.Sprintf("/proc/%d/stat", pid)), ") ")
	ticks := int64(0)
	for _, f := range strings.Fields(rest)[11:15] {
		ticks += number(b, f)
	}
	return float64(ticks) / 100
}

// memory is a line of /proc/PID/status, in bytes: VmRSS, what a process has, or VmHWM,
// the most that it had.
func memory(b *testing.B, pid int, name string) int64 {
	b.Helper()
	for line := range strings.Lines(text(b, fmt.Sprintf("/proc/%d/status", pid))) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return number(b, strings.Fields(value)[0]) << 10
		}
	}
	b.Fatalf("process %d has no %s", pid, name)
	return 0
}

// forgetPeak makes VmHWM what VmRSS is now.
func forgetPeak(b *testing.B, pid int) {
	b.Helper()
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0); err != nil {
		b.Fatalf("forget the peak of memory: %v", err)
	}
}

// readAll brings the files below dir into the page cache.
func readAll(b *testing.B, dir string) {
	b.Helper()
	if out, err := exec.Command("sh", "-c", `find "$0" -type f -exec cat {} + >/dev/null`, dir).CombinedOutput(); err != nil {
		b.Fatalf("read %s: %v: %s", dir, err, out)
	}
}

func text(b *testing.B, file string) string {
	b.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		b.Fatal(err)
	}
	return string(data)
}

func number(b *testing.B, s string) int64 {
	b.Helper()
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	return n
}

// unmountBelow removes what a program left mounted on the disk.
func (d *disk) unmountBelow(b *testing.B) {
	b.Helper()
	mounts, err := harness.MountsBelow(d.path)
	if err != nil {
		b.Error(err)
	}
	for _, m := range mounts {
		if m == d.path {
			continue
		}
		if err := syscall.Unmount(m, 0); err != nil {
			b.Errorf("unmount %s: %v", m, err)
		}
	}
}
