//go:build node

package guest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
)

// TestInstall installs the package as a person would, without a network.
func TestInstall(t *testing.T) {
	if out, want := sh(t, "dpkg-deb -f ../gantry.deb Depends"), "crun | runc, conmon, catatonit, containernetworking-plugins"; out != want {
		t.Errorf("the package depends on %s, want %s", out, want)
	}
	sh(t, "DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends ../gantry.deb")
	if out := sh(t, "systemctl is-active gantry || true"); out != "inactive" {
		t.Errorf("before it is enabled the daemon is %s", out)
	}
	sh(t, "systemctl enable --now gantry")
	n := connect(t)
	for property, want := range map[string]string{
		"ControlGroup": "/system.slice/gantry.service", "Type": "notify", "KillMode": "process", "Delegate": "yes",
		"OOMScoreAdjust": "-999", "WatchdogUSec": "1min",
	} {
		if out := sh(t, "systemctl show -P "+property+" gantry"); out != want {
			t.Errorf("%s is %s, want %s", property, out, want)
		}
	}
	if out := sh(t, "cat /proc/$(systemctl show -P MainPID gantry)/oom_score_adj"); out != "-999" {
		t.Errorf("the daemon's oom_score_adj is %s", out)
	}
	network := func() *runtimeapi.RuntimeCondition {
		resp, err := n.Status(t.Context(), &runtimeapi.StatusRequest{Verbose: true})
		if err != nil {
			t.Fatal(err)
		}
		if got := resp.Info["ociRuntime"]; !strings.HasPrefix(got, "crun ") {
			t.Errorf("chosen runtime: %s", got)
		}
		for _, c := range resp.Status.Conditions {
			if c.Type == "RuntimeReady" && !c.Status {
				t.Errorf("not ready: %s", c)
			}
			if c.Type == "NetworkReady" {
				return c
			}
		}
		t.Fatalf("no network in %v", resp.Status)
		return nil
	}
	if c := network(); c.Status {
		t.Errorf("network is ready without any: %v", c)
	}
	harness.NewNetwork(t, "/etc/cni")
	harness.Eventually(t, patience, func() string {
		if c := network(); !c.Status {
			return c.String()
		}
		return ""
	})
	config, err := n.RuntimeConfig(t.Context(), &runtimeapi.RuntimeConfigRequest{})
	if err != nil || config.Linux.GetCgroupDriver() != runtimeapi.CgroupDriver_SYSTEMD || config.Linux == nil {
		t.Errorf("cgroup driver: %v, %v", config, err)
	}
}

// TestPod looks at a pod of the installed daemon where a kubelet's tools look.
func TestPod(t *testing.T) {
	parent := harness.MakeCgroup(t)
	n := connect(t)
	ref := n.busybox(t)
	b := n.run(t, "pod", ref, parent)
	id := b.start(t, "main", "trap '' TERM; dd if=/dev/zero of=/f bs=1M count=3 2>/dev/null; while :; do sleep 1; done", 64<<20)
	main := pid(t, id)
	// crun keeps the container in a group below its scope: what systemd does not know it does not overwrite.
	if got, want := cgroupOf(t, main), parent+"/gantry-"+id+".scope/container"; got != want {
		t.Errorf("container is in %s, want %s", got, want)
	}
	if got := sh(t, fmt.Sprintf("cat /proc/%d/oom_score_adj", main)); got != "0" {
		t.Errorf("the container has the daemon's protection: oom_score_adj is %s", got)
	}
	if got := sh(t, "pgrep conmon | head -1"); got != "" {
		if group := cgroupOf(t, got); group != "/system.slice/gantry-monitor-"+id+".scope" {
			t.Errorf("monitor is in %s", group)
		}
	}
	if got := n.exec(t, id, "cat /sys/fs/cgroup/memory.max"); got != fmt.Sprint(64<<20) {
		t.Errorf("memory.max is %s", got)
	}
	checkStats(t, b, id)
	if _, err := n.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 96 << 20, MemorySwapLimitInBytes: 96 << 20, CpuShares: 307},
	}); err != nil {
		t.Errorf("update: %v", err)
	}
	sh(t, "systemctl daemon-reload") // systemd writes again what it knows
	if got := n.exec(t, id, "cat /sys/fs/cgroup/memory.max"); got != fmt.Sprint(96<<20) {
		t.Errorf("after the update and a reload memory.max is %s", got)
	}
	if st := n.waitExited(t, b.start(t, "oom", "exec dd if=/dev/zero of=/dev/null bs=40M count=1", 15<<20)); st.Reason != "OOMKilled" || st.ExitCode != 137 {
		t.Errorf("out of memory: %v", st)
	}
	if st := n.waitExited(t, b.start(t, "three", "exit 3", 0)); st.ExitCode != 3 {
		t.Errorf("exit 3: %v", st)
	}
	if _, err := n.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 2}); err != nil {
		t.Errorf("stop: %v", err)
	}
	if st := n.state(t, id); st.ExitCode != 137 {
		t.Errorf("stopped: %v", st)
	}
	n.remove(t, b.id)
	checkNothingLeft(t)
}

func checkStats(t *testing.T, b *box, id string) {
	t.Helper()
	harness.Eventually(t, patience, func() string {
		resp, err := b.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: id})
		if err != nil {
			return err.Error()
		}
		s := resp.Stats
		if s.Cpu.GetUsageCoreNanoSeconds().GetValue() == 0 || s.Memory.GetUsageBytes().GetValue() == 0 ||
			s.Memory.GetWorkingSetBytes().GetValue() == 0 || s.WritableLayer.GetUsedBytes().GetValue() < 3<<20 {
			return s.String()
		}
		return ""
	})
	resp, err := b.PodSandboxStats(t.Context(), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: b.id})
	if l := resp.GetStats().GetLinux(); err != nil || l.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 || l.GetMemory().GetUsageBytes().GetValue() == 0 {
		t.Errorf("pod's statistics: %v, %v", err, l)
	}
}

// cgroupOf is the v2 cgroup of a process.
func cgroupOf(t *testing.T, pid any) string {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%v/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimPrefix(strings.TrimSpace(string(data)), "0::")
}

// TestDaemonGoesContainersStay replaces, kills and stops the daemon under a
// running container.
func TestDaemonGoesContainersStay(t *testing.T) {
	n := connect(t)
	b := n.run(t, "stays", n.busybox(t), "")
	id := b.start(t, "main", "while :; do sleep 1; done", 0)
	main, daemon := pid(t, id), sh(t, "systemctl show -P MainPID gantry")
	for _, script := range []string{
		"DEBIAN_FRONTEND=noninteractive apt-get install -q -y --reinstall ../gantry.deb",
		"systemctl kill -s KILL gantry",
		"systemctl restart gantry",
		"systemctl stop gantry && systemctl start gantry",
	} {
		sh(t, script)
		harness.Eventually(t, patience, func() string {
			if now := sh(t, "systemctl show -P MainPID gantry"); now == daemon || now == "0" {
				return "after " + script + " the daemon is still or again " + now
			}
			return ""
		})
		n := connect(t)
		daemon = sh(t, "systemctl show -P MainPID gantry")
		if st := n.state(t, id); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING || pid(t, id) != main {
			t.Fatalf("after %s: %v", script, st)
		}
		n.exec(t, id, "true")
	}
	n.remove(t, b.id)
	checkNothingLeft(t)
}

// TestOthersSlice has a slice that bears a pod's name, and that none of ours made.
func TestOthersSlice(t *testing.T) {
	const slice = "gantry-22222222222242228222222222222222.slice"
	sh(t, "systemctl start "+slice)
	if out := sh(t, "gantry doctor --fix"); out != "nothing is there that no pod claims" {
		t.Errorf("the doctor says %s", out)
	}
	if out := sh(t, "systemctl is-active "+slice); out != "active" {
		t.Errorf("the slice is %s", out)
	}
	sh(t, "systemctl stop "+slice)
}

// TestUpgrade upgrades the package while containers run and commands are in flight in
// one of them. TestUpgrade of test/contract does the same without packages.
func TestUpgrade(t *testing.T) {
	version := sh(t, "dpkg-deb -f ../gantry-next.deb Version")
	if was := sh(t, "gantry version"); strings.HasPrefix(was, "gantry "+version+" ") {
		t.Fatalf("version %s is installed already", version)
	}
	n := connect(t)
	b := n.run(t, "upgraded", n.busybox(t), "")
	dir := t.TempDir()
	counts := b.start(t, "counts", "i=0; while :; do echo $((i=i+1)); sleep 0.1; done", 0)
	flown := b.start(t, "flown", "exec sleep 100000", 0, &runtimeapi.Mount{HostPath: dir, ContainerPath: harness.InFlightMount})
	was := [2]int{pid(t, counts), pid(t, flown)}
	flight := harness.StartInFlight(t, n.Raw, flown, dir)

	ctx, done := context.WithCancel(t.Context())
	go flight.ReleaseAnswered(ctx, t, strings.TrimPrefix(endpoint, "unix://"))
	sh(t, "DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends ../gantry-next.deb")
	n = connect(t)
	done()
	if got := sh(t, "gantry version"); !strings.HasPrefix(got, "gantry "+version+" ") {
		t.Errorf("gantry version says %s, want %s", got, version)
	}
	if v, err := n.Version(t.Context(), &runtimeapi.VersionRequest{}); err != nil || v.RuntimeVersion != version {
		t.Errorf("the daemon is %v, %v; want %s", v, err, version)
	}
	flight.Check(t)
	for _, id := range []string{counts, flown} {
		if st := n.state(t, id); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
			t.Errorf("after the upgrade: %v", st)
		}
	}
	if is := [2]int{pid(t, counts), pid(t, flown)}; is != was {
		t.Errorf("the processes were %v and are %v", was, is)
	}
	if _, err := n.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: counts, Timeout: 1}); err != nil {
		t.Errorf("stop: %v", err)
	}
	harness.Unbroken(t, filepath.Join(b.config.LogDirectory, "counts.log"))
	n.remove(t, b.id)
	checkNothingLeft(t)
}

// TestWatchdog stops the daemon's main thread of control: systemd must notice.
func TestWatchdog(t *testing.T) {
	connect(t)
	before := sh(t, "systemctl show -P NRestarts gantry")
	sh(t, "systemctl kill -s STOP gantry")
	harness.Eventually(t, 2*time.Minute, func() string {
		if now := sh(t, "systemctl show -P NRestarts gantry"); now == before {
			return "the stopped daemon is not restarted"
		}
		return ""
	})
	connect(t)
}
