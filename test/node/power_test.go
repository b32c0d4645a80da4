//go:build node

package node

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/images"
)

var seedFlag = flag.Uint64("seed", 0, "`number` from which the moments of the power cuts come; another each time unless set")

// What the boots of this machine are started with. Those that are cut after the first
// have no systemd.
var (
	powerMachine = []string{"MEMORY=1024"}
	bareMachine  = append([]string{"INIT=/usr/local/sbin/bare"}, powerMachine...)
)

// bootPatience is for one boot of this machine and what it does there.
const bootPatience = 5 * time.Minute

// longestCut is the latest moment of a cut: by then images were pulled and removed,
// and pods prepared and removed, several times.
const longestCut = 7 * time.Second

// expected is what one boot is told of the last (guest/power_test.go).
type expected struct {
	Prepared []string // UUIDs of pods
	Present  bool     // the image of layers
	Seed     uint64
}

// testPower installs, reboots, and cuts the power while images are pulled and pods
// prepared; the next boot goes on with the disk. What is left is looked at on a copy,
// by this machine's kernel, which is ten times faster; the last time by the node's too.
func (m *machine) testPower(t *testing.T) {
	dir := newPayload(t, "guest")
	addRegistry(t, dir)
	link(t, dir, "gantry.deb", *deb)
	first := pack(t, dir, suite("guest", "^TestInstall$"), suite("guest", "^TestBeforePowerCuts$"), suite("guest", "^TestBeforeReboot$"))
	report(t, m.start(t, first, powerMachine...).finish(t, 2*bootPatience))
	if err := os.Remove(filepath.Join(dir, "gantry.deb")); err != nil || t.Failed() {
		t.Fatalf("the package is not installed: %v", err)
	}

	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("the moments of the cuts come from -seed %d", seed)
	moments := rand.New(rand.NewPCG(seed, seed))
	began := time.Now()
	var last expected
	promises, images := 0, 0
	for i := range *cuts {
		last = m.cutOnce(t, dir, i == 0, last, moments)
		m.look(t, dir, last)
		promises += len(last.Prepared)
		if last.Present {
			images++
		}
		t.Logf("cut %d: %d pods were promised, the image: %t", i+1, len(last.Prepared), last.Present)
	}
	figure(t, fmt.Sprintf("%d power cuts in %v, seed %d: %d prepared pods and %d pulled images promised before",
		*cuts, time.Since(began).Round(time.Second), seed, promises, images))
	report(t, m.start(t, pack(t, dir, suite("guest", "^TestAfterCuts$")), powerMachine...).finish(t, bootPatience))
}

// look runs the test that looks at what a cut left on a copy of the disk.
func (m *machine) look(t *testing.T, dir string, want expected) {
	t.Helper()
	writeExpected(t, dir, want)
	began := time.Now()
	out, err := exec.Command(hack("node/look"), filepath.Join(m.dir, "disk.qcow2"), dir, "/payload/bin/guest.test",
		"-test.v=test2json", "-test.run=^TestWhole$").CombinedOutput()
	if err != nil {
		t.Errorf("after the cut: %v\n%s", err, tail(out))
	}
	t.Logf("looked at in %v", time.Since(began).Round(100*time.Millisecond))
}

// addRegistry adds the data of a registry with the images that are pulled. They are
// made here, where that is ten times faster.
func addRegistry(t *testing.T, dir string) {
	t.Helper()
	r := harness.StartRegistry(t)
	small, err := images.Busybox(images.Options{})
	if err != nil {
		t.Fatal(err)
	}
	layers, err := images.Big(t.TempDir(), images.BigSpec{MB: 4, Files: 200, Layers: 4, Seed: 6}, images.Options{})
	if err != nil {
		t.Fatal(err)
	}
	r.Push(t, "small:1", small)
	r.Push(t, "layers:1", layers)
	link(t, dir, "registry", r.Data)
}

func writeExpected(t *testing.T, dir string, e expected) {
	t.Helper()
	data, err := json.Marshal(e)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "expected.json"), data, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// cutOnce boots, lets TestCut work, the first time after TestAfterReboot, and cuts the
// power at a random moment. It returns what was promised by then.
func (m *machine) cutOnce(t *testing.T, dir string, first bool, last expected, moments *rand.Rand) expected {
	t.Helper()
	after := time.Duration(moments.Int64N(int64(longestCut)))
	last.Seed = moments.Uint64()
	writeExpected(t, dir, last)
	commands, kind := []string{suite("guest", "^TestCut$")}, bareMachine
	if first {
		commands, kind = append([]string{suite("guest", "^TestAfterReboot$")}, commands...), powerMachine
	}
	b := m.start(t, pack(t, dir, commands...), kind...)
	b.waitFor(t, "cut: begin", bootPatience)
	ready := time.Since(b.began)
	time.Sleep(after)
	b.cut()
	out := b.read()
	if _, failed, ok := bytes.Cut(out, []byte("cut: error ")); ok {
		t.Errorf("before the cut something failed: %s", failed)
	}
	report(t, out[:bytes.LastIndex(out, []byte("=== suite guest\n"))])
	t.Logf("the work began after %v, and was cut %v later", ready.Round(100*time.Millisecond), after.Round(time.Millisecond))
	return last.after(string(out))
}

// after is what is promised when a boot has said out. The last line may be cut too.
func (e expected) after(out string) expected {
	for line := range strings.Lines(out) {
		what, ok := strings.CutPrefix(line, "cut: ")
		if !ok || !strings.HasSuffix(line, "\n") {
			continue
		}
		switch verb, uuid, _ := strings.Cut(strings.TrimSpace(what), " "); verb {
		case "prepared":
			e.Prepared = append(e.Prepared, uuid)
		case "dropping":
			e.Prepared = slices.DeleteFunc(e.Prepared, func(s string) bool { return s == uuid })
		case "pulled":
			e.Present = true
		case "removing":
			e.Present = false
		}
	}
	return e
}
