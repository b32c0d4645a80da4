package bench

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/test/bench/result"
	"github.com/gantry-cri/gantry/test/harness"
)

// machine describes this one.
func machine() (result.Machine, error) {
	m := result.Machine{Cores: runtime.NumCPU()}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return m, fmt.Errorf("ask for the memory: %w", err)
	}
	m.Memory = int64(info.Totalram) * int64(info.Unit)
	var names unix.Utsname
	if err := unix.Uname(&names); err != nil {
		return m, fmt.Errorf("ask for the kernel: %w", err)
	}
	m.Kernel = unix.ByteSliceToString(names.Release[:])
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return m, err
	}
	defer f.Close()
	for in := bufio.NewScanner(f); in.Scan() && m.CPU == ""; {
		if name, value, ok := strings.Cut(in.Text(), ":"); ok && strings.TrimSpace(name) == "model name" {
			m.CPU = strings.TrimSpace(value)
		}
	}
	out, err := exec.Command("stat", "-f", "-c", "%T", os.TempDir()).Output()
	if err != nil {
		return m, fmt.Errorf("ask for the file system: %w", err)
	}
	m.Filesystem = strings.TrimSpace(string(out))
	return m, nil
}

// commit is that of the checkout.
func commit() (string, error) {
	root, err := harness.Checkout()
	if err != nil {
		return "", err
	}
	id, err := exec.Command("git", "-C", root, "rev-parse", "--short=12", "HEAD").Output()
	if err != nil {
		return "", fmt.Errorf("ask for the commit: %w", err)
	}
	changes, err := exec.Command("git", "-C", root, "status", "--porcelain").Output()
	if err != nil {
		return "", fmt.Errorf("ask for changes: %w", err)
	}
	if len(changes) > 0 {
		return strings.TrimSpace(string(id)) + "+", nil
	}
	return strings.TrimSpace(string(id)), nil
}

// version keeps the first line of what a program says of its version.
func version(b *testing.B, name string, argv ...string) {
	b.Helper()
	text, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		b.Fatalf("%q: %v: %s", argv, err, text)
	}
	first, _, _ := strings.Cut(string(text), "\n")
	if recorded.Versions == nil {
		recorded.Versions = map[string]string{"go": runtime.Version()}
	}
	recorded.Versions[name] = strings.TrimSpace(first)
}
