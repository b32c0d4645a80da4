package kubelet

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/gantry-cri/gantry/test/harness"
)

// testVolumes mounts volumes of every kind that needs no API server.
func testVolumes(t *testing.T, n *node) {
	dir, host := hostDir(t)
	if err := os.MkdirAll(filepath.Join(dir, "sub", "below"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"file": "host\n", "sub/below/file": "sub\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	writer, reader := n.sleeper("writer"), n.sleeper("reader")
	reader.VolumeMounts = []corev1.VolumeMount{
		{Name: "host", MountPath: "/sub", SubPath: "sub/below"},
		{Name: "host", MountPath: "/etc/one-file", SubPath: "file", ReadOnly: true},
	}
	writer.VolumeMounts = []corev1.VolumeMount{{Name: "shared", MountPath: "/new", SubPath: "made/by/kubelet"}}
	pod := newPod("volumes", writer, reader)
	mount(pod, "shared", "/shared", emptyDir())
	mount(pod, "memory", "/memory", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}})
	mount(pod, "host", "/host", host)
	n.ready(t, pod)
	n.exec(t, "volumes", "writer", "echo a >/shared/a; echo b >/memory/b; echo c >/host/c; echo d >/new/d; echo e >/dev/shm/e")
	wantLines(t, n.exec(t, "volumes", "reader", "cat /shared/a /memory/b /host/c /shared/made/by/kubelet/d /dev/shm/e /host/file /sub/file /etc/one-file"),
		"a", "b", "c", "d", "e", "host", "sub", "host")
	wantLines(t, n.exec(t, "volumes", "reader", "(echo x >/etc/one-file) 2>/dev/null || echo read-only; stat -c %a /shared; grep ' /memory ' /proc/mounts | cut -d' ' -f3"),
		"read-only", "777", "tmpfs")
	if data, err := os.ReadFile(filepath.Join(dir, "c")); err != nil || string(data) != "c\n" {
		t.Errorf("written to the host: %q, %v", data, err)
	}
}

// testUser runs as somebody, with a volume for a group, on a read-only root.
func testUser(t *testing.T, n *node) {
	c := n.sleeper("main")
	c.SecurityContext = &corev1.SecurityContext{
		RunAsUser: new(int64(1000)), RunAsGroup: new(int64(3000)), RunAsNonRoot: new(true), ReadOnlyRootFilesystem: new(true),
	}
	pod := newPod("user", c)
	pod.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: new(int64(2000)), SupplementalGroups: []int64{4000}}
	n.ready(t, mount(pod, "data", "/data", emptyDir()))
	wantLines(t, n.exec(t, "user", "main", "id -u; id -g; (touch /tmp/x) 2>/dev/null || echo read-only; touch /data/x; stat -c '%u %g' /data/x; stat -c %g /data; id -G"),
		"1000", "3000", "read-only", "1000 2000", "2000", "3000 2000 4000 50000")
}

// testCapabilities looks at what is taken from root.
func testCapabilities(t *testing.T, n *node) {
	c := n.sleeper("main")
	c.SecurityContext = &corev1.SecurityContext{
		Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: []corev1.Capability{"NET_BIND_SERVICE"}},
		SeccompProfile:           &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		AllowPrivilegeEscalation: new(false),
	}
	n.ready(t, newPod("capabilities", c))
	const bind = "0000000000000400"
	wantLines(t, n.exec(t, "capabilities", "main", "grep -E '^(Cap(Prm|Eff|Bnd)|Seccomp|NoNewPrivs):' /proc/1/status | tr -d '\t '"),
		"CapPrm:"+bind, "CapEff:"+bind, "CapBnd:"+bind, "NoNewPrivs:1", "Seccomp:2")
	wantLines(t, n.exec(t, "capabilities", "main", "grep -E '^(CapEff|Seccomp|NoNewPrivs):' /proc/self/status | tr -d '\t '; chown 1:1 /tmp 2>/dev/null || echo refused"),
		"CapEff:"+bind, "NoNewPrivs:1", "Seccomp:2", "refused")
}

// testResources finds the limits in the container and in its status.
func testResources(t *testing.T, n *node) {
	c := n.sleeper("main")
	c.Resources.Limits = corev1.ResourceList{
		corev1.ResourceMemory: resource.MustParse("64Mi"), corev1.ResourceCPU: resource.MustParse("500m"),
	}
	c.Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("250m")}
	got := n.ready(t, newPod("resources", c))
	wantLines(t, n.exec(t, "resources", "main", `cd /sys/fs/cgroup
cat memory/memory.limit_in_bytes 2>/dev/null || cat memory.max
if [ -e cpu.max ]; then cat cpu.max; else echo $(cat cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us); fi`), "67108864", "50000 100000")
	r := status(got, "main").Resources
	if r == nil {
		t.Fatal("no resources in the status")
	}
	for _, name := range []corev1.ResourceName{corev1.ResourceMemory, corev1.ResourceCPU} {
		if have, want := r.Limits[name], c.Resources.Limits[name]; have.Cmp(want) != 0 {
			t.Errorf("limit of %s is %s in the status, want %s", name, have.String(), want.String())
		}
	}
	pid := n.pid(t, got, "main")
	cgroup, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	id := strings.TrimPrefix(status(got, "main").ContainerID, "gantry://")
	if err != nil || !strings.Contains(string(cgroup), n.kubelet.PodCgroup(string(got.UID))+"/"+harness.ContainerCgroup(id)) {
		t.Errorf("cgroup is not below the pod's: %v\n%s", err, cgroup)
	}
}

// pid is the init process of a container, as the command line tells it.
func (n *node) pid(t *testing.T, pod *corev1.Pod, container string) int {
	t.Helper()
	v := n.view(t, strings.TrimPrefix(status(pod, container).ContainerID, "gantry://"))
	if len(v.Apps) != 1 || v.Apps[0].PID == 0 {
		t.Fatalf("container %s is listed as %+v", container, v)
	}
	return v.Apps[0].PID
}

// testHostNetwork runs in the node's network.
func testHostNetwork(t *testing.T, n *node) {
	pod := newPod("host-network", n.sleeper("main"))
	pod.Spec.HostNetwork = true
	n.ready(t, pod)
	want, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	wantLines(t, n.exec(t, "host-network", "main", "readlink /proc/self/ns/net; hostname"), want, host)
}

// testSharedProcesses lets the containers of a pod see one another's processes.
func testSharedProcesses(t *testing.T, n *node) {
	pod := newPod("shared-pids", n.shell("one", "exec sleep 1111"), n.shell("two", "exec sleep 2222"))
	pod.Spec.ShareProcessNamespace = new(true)
	got := n.ready(t, pod)
	ps := n.exec(t, "shared-pids", "two", "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline; echo; done")
	for _, want := range []string{"sleep 1111 ", "sleep 2222 ", "catatonit"} {
		if !strings.Contains(ps, want) {
			t.Errorf("%q is not among the pod's processes:\n%s", want, ps)
		}
	}
	n.exec(t, "shared-pids", "two", "kill -KILL $(pidof sleep | tr ' ' '\\n' | while read p; do grep -q 1111 /proc/$p/cmdline && echo $p; done)")
	after := n.kubelet.WaitPod(t, "shared-pids", patience, func(p *corev1.Pod) string {
		if s := status(p, "one"); s.RestartCount != 1 || s.State.Running == nil {
			return "one is not restarted"
		}
		return ""
	})
	if was, is := status(got, "two"), status(after, "two"); was.ContainerID != is.ContainerID {
		t.Errorf("two is %s, was %s", is.ContainerID, was.ContainerID)
	}
}

// processes are the processes whose command line, with NUL after each argument,
// holds text.
func processes(t *testing.T, text string) []int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil || !strings.Contains(string(data), text) {
			continue // it has ended, or is another
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f)))
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return pids
}

// testCommandLine runs a pod of the command line that the kubelet leaves alone.
func testCommandLine(t *testing.T, n *node) {
	ref := n.pushBusybox(t, "beside:1", "beside")
	uuid := strings.TrimSpace(n.gantry.CLI(t, "prepare", "--quiet", "docker://"+ref, "--exec", "/bin/sleep", "--", "7777"))
	t.Cleanup(func() { n.removePod(t, uuid) })
	if v := n.view(t, uuid); v.State != "prepared" || v.Owner != "cli" || v.Kind != "pod" {
		t.Errorf("prepared as %+v", v)
	}
	n.gantry.CLI(t, "run-prepared", "--detach", uuid)
	before := n.view(t, uuid)
	// A pod comes and goes meanwhile, and with it the kubelet's housekeeping.
	pod := n.ready(t, newPod("neighbour", n.sleeper("main")))
	n.kubelet.RemovePod(t, "neighbour")
	n.kubelet.WaitGone(t, pod, patience)
	after := n.view(t, uuid)
	if after.State != "running" || len(after.Apps) != 1 || after.Apps[0].PID == 0 || after.Apps[0].PID != before.Apps[0].PID {
		t.Errorf("pod of the command line is %+v, was %+v", after, before)
	}
	list, err := n.runtime.ListPodSandbox(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range list {
		if s.Id == after.ID {
			t.Error("CRI lists the pod of the command line")
		}
	}
	n.checkKubeletKnows(t)
}

// checkKubeletKnows fails when the kubelet shows a pod that has no manifest.
func (n *node) checkKubeletKnows(t *testing.T) {
	t.Helper()
	harness.Eventually(t, patience, func() string {
		pods, err := n.kubelet.Pods(t.Context())
		if err != nil {
			return err.Error()
		}
		for name := range pods {
			if _, err := os.Stat(filepath.Join(n.kubelet.Manifests, name+".json")); err != nil {
				return "the kubelet has a pod of its own: " + name
			}
		}
		return ""
	})
}
