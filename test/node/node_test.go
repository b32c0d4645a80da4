//go:build node

package node

import (
	"context"
	"flag"
	"os/exec"
	"path/filepath"
	"slices"
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
	"^TestACIOverCRI$|^TestOwner$|^TestMissingNetworkConfiguration$|^TestMissingRuntime$|^TestUnknownHandler$|^TestFullDisk$|^TestCrun$|^TestReadme$|^TestNoPauseContainer$|^TestOnDiskIsDocumented$|^TestApart$|^TestEndedWhileItStarts$"

// sameInPods are the kubelet's pods of which the same is true.
const sameInPods = "^TestKubelet$/^pods$/^(pull always|bad command .*|command line|rotation|log link|port-forward)$"

// node is a machine that runs suites, in this order after the package is installed.
type node struct {
	name    string
	kubelet bool // whether a test starts one
	suites  []string
}

// Two lanes of machines run beside one another, one for each processor of a small host.
// In the first there is one more before, which is rebooted and whose power is cut; the
// lanes take about the same time.
var (
	first = []node{
		// more than four at once wait for the emulated processor until they give up
		{"kubelet", true, []string{suite("kubelet") + " -test.parallel 4 -test.skip '" + sameInPods + "'"}},
	}
	second = []node{
		{"suites", true, []string{
			suite("guest", "^TestKubelet$", "^TestPod$", "^TestOthersSlice$", "^TestAppArmor$", "^TestDaemonGoesContainersStay$", "^TestUpgrade$", "^TestWatchdog$"),
			suite("cgroup"), suite("overlay") + " -test.skip '^TestMount(Mapped)?$/^500$'", // the most layers: the kernel's own work
			suite("stage1") + " -test.skip 'Formats?$|^Fuzz'", // which read files of the checkout
			suite("e2e") + " -test.skip '" + sameEverywhere + "'",
		}},
		// The upgrade of guest has packages, the one left out here builds; a full disk, a
		// letter and a sandbox in the making are the same everywhere, and so is what waits a
		// minute for plugins. While the daemon is stopped a command waits 20 s for it, and
		// 30 s are what a start may take: this machine needs more between.
		{"contract", false, []string{suite("contract") + " -test.skip '^TestUpgrade$|^TestFullDisk$|^TestMailbox$|^TestACIKilled$|^TestRepairKilled$|^TestStruckInTheMaking$|^TestStruck$/^daemon$/^STOP$|" +
			"^TestPluginHangs$/^ADD daemon killed$|^TestPluginHangs$/^beside one another$/^(DEL remove|ADD and DEL|ADD of a command)$'"}},
	}
)

// TestNode installs the package on nodes, reboots one and cuts its power, and runs suites
// in the others.
func TestNode(t *testing.T) {
	if *deb == "" || *next == "" {
		t.Fatal("no packages given: run make test-node")
	}
	t.Run("first", func(t *testing.T) {
		t.Parallel()
		t.Run("power", func(t *testing.T) { newMachine(t).testPower(t) })
		runNodes(t, first)
	})
	t.Run("second", func(t *testing.T) {
		t.Parallel()
		runNodes(t, second)
	})
}

func runNodes(t *testing.T, nodes []node) {
	t.Helper()
	for _, n := range nodes {
		t.Run(n.name, n.test)
	}
}

// test runs those suites that are wanted in one boot.
func (n node) test(t *testing.T) {
	commands, names := []string{suite("guest", "^TestInstall$")}, []string{"guest"}
	for _, s := range n.suites {
		if name := strings.Fields(s)[1]; wanted(name) {
			commands, names = append(commands, s), append(names, name)
		}
	}
	if len(commands) == 1 {
		t.Skip("none of its suites is wanted (-only)")
	}
	slices.Sort(names)
	dir := newPayload(t, slices.Compact(names)...)
	link(t, dir, "gantry.deb", *deb)
	link(t, dir, "gantry-next.deb", *next)
	if n.kubelet {
		addKubelet(t, dir)
	}
	report(t, newMachine(t).start(t, pack(t, dir, commands...), "CACHE=unsafe").finish(t, 40*time.Minute))
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
