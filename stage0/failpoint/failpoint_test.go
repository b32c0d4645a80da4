package failpoint

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"syscall"
	"testing"
)

// TestMain is a process that hits three points, when a test starts it as one.
func TestMain(m *testing.M) {
	if os.Getenv("HIT_POINTS") == "" {
		os.Exit(m.Run())
	}
	if err := Arm(); err != nil {
		os.Exit(3)
	}
	Hit(PodMade)
	Hit(PodLocked)
	Hit(PodMade)
	os.Exit(0)
}

func TestNames(t *testing.T) {
	seen := map[string]bool{}
	for i, n := range Names() {
		if !regexp.MustCompile(`^[a-z]+(-[a-z]+)+$`).MatchString(n) || seen[n] {
			t.Errorf("point %d is called %q: want words joined by dashes, once", i, n)
		}
		seen[n] = true
	}
}

func TestArm(t *testing.T) {
	tests := []struct {
		name, spec, hits string
		signal           syscall.Signal
		code             int
	}{
		{name: "nothing", hits: "pod-made\npod-locked\npod-made\n"},
		{name: "first", spec: "pod-made", hits: "pod-made\n", signal: syscall.SIGKILL},
		{name: "second", spec: "pod-made:2", hits: "pod-made\npod-locked\npod-made\n", signal: syscall.SIGKILL},
		{name: "never", spec: "pod-made:3", hits: "pod-made\npod-locked\npod-made\n"},
		{name: "another", spec: "link-deleted", hits: "pod-made\npod-locked\npod-made\n"},
		{name: "unknown point", spec: "nowhere", code: 3},
		{name: "no number", spec: "pod-made:x", code: 3},
		{name: "unknown word", spec: "pod-made=jump", code: 3},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "hits")
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), "HIT_POINTS=1", EnvPoint+"="+tt.spec, EnvHits+"="+file)
			_ = cmd.Run() // how it ended is looked at below
			status, _ := cmd.ProcessState.Sys().(syscall.WaitStatus)
			if got := status.Signal(); tt.signal != 0 && got != tt.signal {
				t.Errorf("ended by signal %v (%v), want %v", got, cmd.ProcessState, tt.signal)
			}
			if tt.signal == 0 && status.ExitStatus() != tt.code {
				t.Errorf("ended with %v, want code %d", cmd.ProcessState, tt.code)
			}
			if got, _ := os.ReadFile(file); string(got) != tt.hits {
				t.Errorf("hits %q, want %q", got, tt.hits)
			}
		})
	}
}

func BenchmarkHit(b *testing.B) {
	for b.Loop() {
		Hit(PodMade)
	}
}
