package fetch_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// runChild tells that this process is the child of the test.
func runChild(t *testing.T, name string) bool {
	t.Helper()
	return os.Getenv(name) != ""
}

// child runs the calling test in a process with another environment.
func child(t *testing.T, name string, env ...string) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	for _, e := range os.Environ() {
		if !strings.HasSuffix(strings.ToUpper(strings.SplitN(e, "=", 2)[0]), "_PROXY") {
			cmd.Env = append(cmd.Env, e)
		}
	}
	cmd.Env = append(append(cmd.Env, name+"=1"), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
