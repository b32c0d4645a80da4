//go:build node

package node

import (
	"context"
	"flag"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gantry-cri/gantry/test/images"
)

var (
	deb     = flag.String("deb", "", "the Debian `package` to install")
	next    = flag.String("next", "", "the Debian `package` to upgrade to")
	cuts    = flag.Int("cuts", 20, "how `often` the power is cut")
	figures = flag.String("figures", "", "`file` to which a line a suite is added")
	only    = flag.String("only", "", "suites to run, `separated` by commas; all unless set")
)

// sameEverywhere are tests of the CRI suite in which neither systemd nor cgroups nor
// AppArmor have a part, and one that runs others once more under crun, the node's own choice. The
// host runs them, ten times faster (docs/reliability.md).
const sameEverywhere = "^TestPull|^TestKilledDuringPullImage$|^TestImageListAndRemove$|^TestMetrics$|^TestUnimplemented$|" +
	"^TestACIOverCRI$|^TestOwner$|^TestMissingNetworkConfiguration$|^TestMissingRuntime$|^TestUnknownHandler$|^TestFullDisk$|^TestCrun$"

// sameInPods are the kubelet's pods of which the same is true.
const sameInPods = "^TestKubelet$/^pods$/^(pull always|bad command .*|command line|rotation|log link|port-forward)$"

// suites run in the first boot, in this order, after the package is installed.
var suites = []string{
	suite("guest", "^TestKubelet$", "^TestPod$", "^TestOthersSlice$", "^TestAppArmor$", "^TestDaemonGoesContainersStay$", "^TestUpgrade$", "^TestWatchdog$"),
	suite("cgroup"), suite("overlay") + " -test.skip '^TestMount(Mapped)?$/^500$'", // the most layers: the kernel's own work
	suite("stage1") + " -test.skip 'Formats?$|^Fuzz'", // which read files of the checkout
	suite("e2e") + " -test.skip '" + sameEverywhere + "'",
	// more than four at once wait for the emulated processors until they give up
	suite("kubelet") + " -test.parallel 4 -test.skip '" + sameInPods + "'",
}

// contract runs in the other node, after its power was cut for the last time. The
// upgrade of guest has packages, the one left out here builds; a full disk and a letter
// are the same everywhere.
var contract = suite("contract") + " -test.skip '^TestUpgrade$|^TestFullDisk$|^TestMailbox$'"

// TestNode installs the package on two nodes at a time: one runs suites, the other is
// rebooted, its power is cut, and it runs the contract suite.
func TestNode(t *testing.T) {
	if *deb == "" || *next == "" {
		t.Fatal("no packages given: run make test-node")
	}
	t.Run("installed", func(t *testing.T) {
		t.Parallel()
		newMachine(t).testInstalled(t)
	})
	t.Run("power", func(t *testing.T) {
		t.Parallel()
		newMachine(t).testPower(t)
	})
}

// testInstalled runs the suites in one boot.
func (m *machine) testInstalled(t *testing.T) {
	commands := []string{suite("guest", "^TestInstall$")}
	names := []string{"guest"}
	for _, s := range suites {
		name := strings.Fields(s)[1]
		if !wanted(name) {
			continue
		}
		commands = append(commands, s)
		if name != "guest" {
			names = append(names, name)
		}
	}
	dir := newPayload(t, names...)
	link(t, dir, "gantry.deb", *deb)
	link(t, dir, "gantry-next.deb", *next)
	addKubelet(t, dir)
	report(t, m.start(t, pack(t, dir, commands...), "CACHE=unsafe").finish(t, 40*time.Minute))
}

// wanted says whether a suite is to run.
func wanted(name string) bool { return *only == "" || strings.Contains(","+*only+",", ","+name+",") }

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
