package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gantry-cri/gantry/test/harness"
)

// gate is a program put before another one, which waits while the gate is shut
// and fails while it is broken.
type gate struct {
	dir     string
	program string // the gated one
}

// newGate writes a program that stands before real. condition is a shell
// condition: only calls that meet it stop at the gate. failure is what a broken
// gate does.
func newGate(t *testing.T, real, condition, failure string) *gate {
	t.Helper()
	dir := harness.Dir(t)
	g := &gate{dir: dir, program: filepath.Join(dir, "gated")}
	script := fmt.Sprintf(`#!/bin/sh
if %s; then
	touch %[2]s/entered
	while [ -e %[2]s/shut ]; do sleep 0.05; done
	if [ -e %[2]s/broken ]; then
		%[3]s
	fi
fi
exec %[4]s "$@"
`, condition, dir, failure, real)
	if err := os.WriteFile(g.program, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return g
}

// gatedNode is a node whose network set-up stops at a gate before the bridge
// plugin. Taking down does not.
func gatedNode(t *testing.T, lines ...string) (*node, *gate) {
	t.Helper()
	r, ref := startRegistry(t)
	gate := newGate(t, filepath.Join(harness.CNIBinDir, "bridge"), `[ "$CNI_COMMAND" = ADD ]`,
		`echo '{"cniVersion":"1.0.0","code":101,"msg":"no cable in the socket"}'; exit 1`)
	args := append(config(t, lines...), "--cni-bin-dir", gate.dir)
	g := harness.NewGantry(t, harness.GantryOptions{Registries: []string{r.Addr}, Args: args})
	file := filepath.Join(g.Network.ConfDir, "10-gantry.conflist")
	text := string(must(os.ReadFile(file))(t))
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(text, `"type": "bridge"`, `"type": "gated"`)), 0o644); err != nil {
		t.Fatal(err)
	}
	g.Start(t)
	t.Cleanup(func() { gate.open(t) }) // before the daemon ends
	n := &node{Gantry: g, Raw: g.Raw(t), registry: r, busybox: ref}
	n.pull(t, ref)
	return n, gate
}

func (g *gate) set(t *testing.T, name string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(g.dir, name), nil, 0o644); err != nil {
		t.Fatal(err)
	}
}

func (g *gate) clear(t *testing.T, name string) {
	t.Helper()
	if err := os.Remove(filepath.Join(g.dir, name)); err != nil && !os.IsNotExist(err) {
		t.Error(err)
	}
}

// shut makes the next calls wait.
func (g *gate) shut(t *testing.T) {
	t.Helper()
	g.clear(t, "entered")
	g.set(t, "shut")
}

// open lets them go on.
func (g *gate) open(t *testing.T) {
	t.Helper()
	g.clear(t, "shut")
}

// await waits until a call stands at the gate.
func (g *gate) await(t *testing.T) {
	t.Helper()
	harness.Eventually(t, patience, func() string {
		if _, err := os.Stat(filepath.Join(g.dir, "entered")); err != nil {
			return "nobody stands at the gate"
		}
		return ""
	})
}
