package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
)

func itoa(v int64) string { return strconv.FormatInt(v, 10) }

// limited gives a container limits as a kubelet writes them.
func limited(memory int64) change {
	return func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{
			CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 204, MemoryLimitInBytes: memory, MemorySwapLimitInBytes: memory, OomScoreAdj: 500,
			HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB"}, {PageSize: "1GB"}},
		}
	}
}

// cgroupDir is a container's directory in the hierarchy of a v1 controller, or
// in the v2 one.
func cgroupDir(t *testing.T, id, controller string) string {
	t.Helper()
	var found string
	for _, root := range []string{filepath.Join("/sys/fs/cgroup", controller), "/sys/fs/cgroup"} {
		_ = filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() && d.Name() == harness.ContainerCgroup(id) {
				found = path
				return filepath.SkipAll
			}
			return nil // what goes away meanwhile is no matter
		})
		if below := filepath.Join(found, "container"); found != "" && isDir(below) {
			return below // crun's, in the scope that systemd made
		}
		if found != "" {
			return found
		}
	}
	t.Fatalf("container %s has no cgroup", id)
	return ""
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// limitIn reads one limit of a container where v1 or v2 keeps it.
func limitIn(t *testing.T, id, controller, v1, v2 string) string {
	t.Helper()
	dir := cgroupDir(t, id, controller)
	for _, file := range []string{v1, v2} {
		if data, err := os.ReadFile(filepath.Join(dir, file)); err == nil {
			return strings.TrimSpace(string(data))
		}
	}
	t.Fatalf("%s has neither %s nor %s", dir, v1, v2)
	return ""
}

func testResources(t *testing.T, b *box) {
	id := b.start(t, "limited", "exec sleep 1000", limited(64<<20))
	if got := limitIn(t, id, "memory", "memory.limit_in_bytes", "memory.max"); got != itoa(64<<20) {
		t.Errorf("memory limit is %s", got)
	}
	if got := limitIn(t, id, "cpu", "cpu.cfs_quota_us", "cpu.max"); got != "50000" && got != "50000 100000" {
		t.Errorf("CPU quota is %s", got)
	}
	if got := b.exec(t, id, "cat /proc/1/oom_score_adj"); got != "500" {
		t.Errorf("oom_score_adj is %s", got)
	}
	update := &runtimeapi.LinuxContainerResources{
		CpuPeriod: 100000, CpuQuota: 70000, CpuShares: 307, MemoryLimitInBytes: 96 << 20, MemorySwapLimitInBytes: 96 << 20, OomScoreAdj: 500,
		HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB"}},
	}
	if _, err := b.UpdateContainerResources(callContext(t, callTimeout), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id, Linux: update}); err != nil {
		t.Fatalf("update: %v", err)
	}
	if got := limitIn(t, id, "memory", "memory.limit_in_bytes", "memory.max"); got != itoa(96<<20) {
		t.Errorf("memory limit after the update is %s", got)
	}
	got := b.state(t, id).Resources.Linux
	if got.CpuQuota != 70000 || got.CpuShares != 307 || got.MemoryLimitInBytes != 96<<20 || got.CpuPeriod != 100000 {
		t.Errorf("status after the update: %v", got)
	}
	b.stop(t, id, 0)
}

func TestOOMKilled(t *testing.T) {
	n := startNode(t, harness.GantryOptions{})
	b := n.pod(t, "oom")
	for name, script := range map[string]string{
		"main":  "exec dd if=/dev/zero of=/dev/null bs=40M count=1",
		"child": "dd if=/dev/zero of=/dev/null bs=40M count=1; exit $?",
	} {
		t.Run(name, func(t *testing.T) {
			st := n.waitExited(t, b.start(t, "c-"+name, script, limited(15<<20)))
			if st.ExitCode != 137 || st.Reason != "OOMKilled" {
				t.Errorf("exit code %d, reason %q, message %q", st.ExitCode, st.Reason, st.Message)
			}
		})
	}
}

func TestStats(t *testing.T) {
	parent := harness.MakeCgroup(t)
	n := startNode(t, harness.GantryOptions{})
	c := sandboxConfig(t, "stats")
	c.Linux.CgroupParent = parent
	b := n.run(t, c)
	id := b.start(t, "c", "dd if=/dev/zero of=/file bs=1M count=3 2>/dev/null; while :; do i=$((i+1)); [ $((i%2000)) != 0 ] || usleep 100000; done", limited(64<<20))
	ctx := callContext(t, callTimeout)
	first := must(n.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: id}))(t).Stats
	if first.Cpu.GetTimestamp() == 0 || first.Memory.GetTimestamp() == 0 || first.Attributes.GetLabels()["io.kubernetes.container.name"] != "c" {
		t.Errorf("right after the start: %v", first)
	}
	harness.Eventually(t, patience, func() string {
		s := must(n.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: id}))(t).Stats
		switch {
		case s.Cpu.GetUsageCoreNanoSeconds().GetValue() <= first.Cpu.GetUsageCoreNanoSeconds().GetValue(), s.Cpu.GetUsageNanoCores().GetValue() == 0,
			s.Memory.GetUsageBytes().GetValue() == 0, s.Memory.GetWorkingSetBytes().GetValue() == 0,
			s.WritableLayer.GetUsedBytes().GetValue() < 3<<20, s.WritableLayer.GetInodesUsed().GetValue() == 0:
			return fmt.Sprintf("stats: %v", s)
		}
		return ""
	})
	for name, f := range map[string]*runtimeapi.ContainerStatsFilter{
		"no filter": nil, "id": {Id: id}, "sandbox": {PodSandboxId: b.id},
		"label": {LabelSelector: map[string]string{"io.kubernetes.container.name": "c"}},
	} {
		list := must(n.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{Filter: f}))(t).Stats
		if len(list) != 1 || list[0].Attributes.GetId() != id {
			t.Errorf("list with %s: %v", name, list)
		}
	}
	pod := must(n.PodSandboxStats(ctx, &runtimeapi.PodSandboxStatsRequest{PodSandboxId: b.id}))(t).Stats
	linux := pod.GetLinux()
	if linux.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 || linux.GetMemory().GetUsageBytes().GetValue() == 0 || len(linux.GetContainers()) != 1 ||
		linux.GetNetwork().GetDefaultInterface().GetName() != "eth0" || linux.GetProcess().GetProcessCount().GetValue() == 0 {
		t.Errorf("pod: %v", pod)
	}
	pods := must(n.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{}))(t).Stats
	if len(pods) != 1 || pods[0].Attributes.GetId() != b.id || pods[0].Attributes.GetMetadata().GetName() != "stats" {
		t.Errorf("pods: %v", pods)
	}
}
