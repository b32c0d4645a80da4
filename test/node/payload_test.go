//go:build node

package node

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// allDone is the last line of a payload that came to its end.
const allDone = "=== all done"

// prelude begins every payload. A pod needs a default route, which the machine
// has not: a kubelet finds its node's address by it.
const prelude = `#!/bin/bash
export HOME=/root GANTRY_BIN=/usr/bin/gantry GANTRY_CACHE=/payload/cache GANTRY_KUBELET=/payload/bin/kubelet
export GANTRY_CGROUP_DRIVER=systemd GANTRY_SLOWNESS=6 GANTRY_CONTRACT_STRIDE=30
ip link add dummy0 type dummy
ip addr add 192.0.2.10/24 dev dummy0
ip link set dummy0 up
ip route add default via 192.0.2.1
if [ -d /run/systemd/system ]; then
	systemctl start gantry.slice # where pods without a parent go; systemd keeps it
fi
cd /payload/bin
suite() {
	name=$1
	shift
	echo "=== suite $name"
	began=$SECONDS
	"./$name.test" -test.v=test2json "$@" 2>&1
	status=$?
	printf '\n=== end of suite %s: %s after %s s\n' "$name" $status $((SECONDS - began))
}
`

// packages are the tests that run in the node, by the name of their suite: those
// of the main module, then those of the test module.
var packages = map[string]string{
	"cgroup": "../../stage1/cgroup", "stage1": "../../stage1", "overlay": "../../stage0/overlay",
	"guest": "./guest", "e2e": "../e2e", "kubelet": "../kubelet", "contract": "../contract",
}

// newPayload is a directory to be packed, with the test binaries of suites.
func newPayload(t *testing.T, suites ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, s := range suites {
		cmd := exec.Command("nice", "-n", "5", "go", "test", "-c", "-tags", "node", "-ldflags", "-s -w", "-o", filepath.Join(dir, "bin", s+".test"), ".")
		cmd.Dir = packages[s]
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build suite %s: %v\n%s", s, err, out)
		}
	}
	return dir
}

// pack makes the tar file of a payload that runs commands; links are followed.
func pack(t *testing.T, dir string, commands ...string) string {
	t.Helper()
	script := prelude + strings.Join(commands, "\n") + "\necho '" + allDone + "'\n"
	if err := os.WriteFile(filepath.Join(dir, "run"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	file := dir + ".tar"
	if out, err := exec.Command("tar", "-h", "-C", dir, "-cf", file, ".").CombinedOutput(); err != nil {
		t.Fatalf("pack payload: %v\n%s", err, out)
	}
	t.Cleanup(func() { os.Remove(file) })
	return file
}

// link puts a file or directory of this machine into a payload.
func link(t *testing.T, dir, name, target string) {
	t.Helper()
	target, err := filepath.Abs(target)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755)
	}
	if err == nil {
		err = os.Symlink(target, filepath.Join(dir, name))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// suite is the command that runs a suite; patterns are joined by |.
func suite(name string, patterns ...string) string {
	command := "suite " + name + " -test.timeout 30m"
	if len(patterns) > 0 {
		command += fmt.Sprintf(" -test.run '%s'", strings.Join(patterns, "|"))
	}
	return command
}
