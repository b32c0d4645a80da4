//go:build node

package node

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gantry-cri/gantry/test/images"
)

var (
	deb     = flag.String("deb", "", "the Debian `package` to install")
	cuts    = flag.Int("cuts", 3, "how `often` the power is cut")
	figures = flag.String("figures", "", "`file` to which a line a suite is added")
	only    = flag.String("only", "", "suites to run, `separated` by commas; all unless set")
)

// suites run in the first boot, in this order, after the package is installed.
var suites = []string{
	suite("guest", "^TestPod$", "^TestDaemonGoesContainersStay$", "^TestWatchdog$"),
	suite("cgroup"), suite("overlay"), suite("stage1"),
	suite("e2e"),
	suite("kubelet"),
	suite("contract"),
}

// TestNode installs the package, runs the suites, reboots, and cuts the power, all
// on one disk.
func TestNode(t *testing.T) {
	if *deb == "" {
		t.Fatal("no package given: run make test-node")
	}
	m := newMachine(t)
	if !t.Run("installed", m.testInstalled) {
		return
	}
	t.Run("reboot", m.testReboot)
	t.Run("power", m.testPowerCuts)
}

// testInstalled is the first boot.
func (m *machine) testInstalled(t *testing.T) {
	commands := []string{suite("guest", "^TestInstall$")}
	names := []string{"guest"}
	for _, s := range suites {
		name := strings.Fields(s)[1]
		if *only != "" && !strings.Contains(","+*only+",", ","+name+",") {
			continue
		}
		commands = append(commands, s)
		if name != "guest" {
			names = append(names, name)
		}
	}
	commands = append(commands, suite("guest", "^TestBeforeReboot$"))
	dir := newPayload(t, names...)
	link(t, dir, "gantry.deb", *deb)
	addKubelet(t, dir)
	report(t, m.start(t, pack(t, dir, commands...), "CACHE=unsafe").finish(t, 40*time.Minute))
}

// addKubelet adds the kubelet and the packages of which its web image is made.
func addKubelet(t *testing.T, dir string) {
	t.Helper()
	kubelet, err := exec.Command(hack("build-kubelet")).Output()
	if err != nil {
		t.Fatalf("build kubelet: %v", err)
	}
	link(t, dir, "bin/kubelet", strings.TrimSpace(string(kubelet)))
	if _, err := images.Web(context.Background(), images.DefaultCache(), images.Options{}); err != nil {
		t.Fatalf("download packages: %v", err)
	}
	link(t, dir, "cache/debs", filepath.Join(images.DefaultCache(), "debs"))
}

// testReboot boots the same disk again.
func (m *machine) testReboot(t *testing.T) {
	dir := newPayload(t, "guest")
	payload := pack(t, dir, suite("guest", "^TestAfterReboot$"), suite("guest", "^TestBeforePowerCuts$"))
	report(t, m.start(t, payload).finish(t, 5*time.Minute))
}

// testPowerCuts cuts the power while images are pulled and pods prepared, and looks
// at the disk in the next boot.
func (m *machine) testPowerCuts(t *testing.T) {
	var want struct {
		Prepared []string
		Present  bool
	}
	dir := newPayload(t, "guest")
	for i := range *cuts + 1 {
		data, err := json.Marshal(want)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "expected.json"), data, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
		whole := suite("guest", "^TestWhole$")
		if i == *cuts {
			report(t, m.start(t, pack(t, dir, whole)).finish(t, 5*time.Minute))
			return
		}
		b := m.start(t, pack(t, dir, whole, suite("guest", "^TestCut$")))
		b.waitFor(t, "cut: begin", 5*time.Minute)
		after := rand.N(8 * time.Second)
		time.Sleep(after)
		b.cut()
		out := b.read()
		report(t, out[:bytes.LastIndex(out, []byte("=== suite guest\n"))])
		want.Prepared, want.Present = promised(string(out))
		t.Logf("cut %d, %v after the beginning: %d pods were prepared, the image was there: %t; boot took %v",
			i+1, after, len(want.Prepared), want.Present, time.Since(b.began).Round(time.Second))
	}
}

// promised reads what was said to be done before the power was cut. The last line
// may be cut too.
func promised(out string) (prepared []string, present bool) {
	for line := range strings.Lines(out) {
		what, ok := strings.CutPrefix(line, "cut: ")
		if !ok || !strings.HasSuffix(line, "\n") {
			continue
		}
		switch verb, uuid, _ := strings.Cut(strings.TrimSpace(what), " "); verb {
		case "prepared":
			prepared = append(prepared, uuid)
		case "pulled":
			present = true
		case "removing":
			present = false
		}
	}
	return prepared, present
}
