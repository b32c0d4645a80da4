package tree

import (
	"os"
	"os/exec"
	"strconv"
	"testing"
)

// keptEnv is how many directories are in memory at once, in a process that
// TestDroppedDirectories starts.
const keptEnv = "GANTRY_TEST_KEPT"

func TestMain(m *testing.M) {
	if n, err := strconv.Atoi(os.Getenv(keptEnv)); err == nil {
		maxKept = n
	}
	os.Exit(m.Run())
}

// TestDroppedDirectories holds that it makes no difference which directories are in
// memory: all that the other tests say of trees is so too when each entry has to load
// its directories from the disk again.
func TestDroppedDirectories(t *testing.T) {
	if os.Getenv(keptEnv) != "" {
		return
	}
	if os.Getuid() != 0 {
		t.Skip("extraction needs root")
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^(TestContract|TestExtract.*|TestMemory|TestRebuild.*|Fuzz.*|.*ACI.*)$")
	cmd.Env = append(os.Environ(), keptEnv+"=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("with one directory in memory: %v\n%s", err, out)
	}
}
