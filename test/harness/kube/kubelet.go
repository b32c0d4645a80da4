package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"

	"github.com/gantry-cri/gantry/test/harness"
)

// NodeName is what the kubelet takes its node to be called; it ends the names
// of static pods.
const NodeName = "node"

// KubeletOptions vary how the kubelet is started.
type KubeletOptions struct {
	Endpoint  string // the runtime's socket, unix://PATH
	Configure func(*kubeletconfig.KubeletConfiguration)
	Args      []string
}

// Kubelet is the real kubelet v1.37.2 without an API server: it runs the pods
// whose manifests lie in a directory.
type Kubelet struct {
	*harness.Process
	Root      string // its own directory; volumes lie below
	Manifests string
	PodLogs   string // podLogsDir
	Cgroup    string // cgroup of its cgroupRoot
	Addr      string // host:port of its HTTPS port, self-signed and open to all
	options   KubeletOptions
}

// kubeletBinary is $GANTRY_KUBELET; else it builds the kubelet, or finds it in
// the cache.
var kubeletBinary = sync.OnceValues(func() (string, error) {
	if bin := os.Getenv("GANTRY_KUBELET"); bin != "" {
		return bin, nil
	}
	root, err := harness.Checkout()
	if err != nil {
		return "", err
	}
	cmd := exec.Command(filepath.Join(root, "hack", "build-kubelet"))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("build kubelet: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
})

// StartKubelet starts a kubelet over the runtime at o.Endpoint and waits until
// it is healthy. Its pods are stopped before it is, at the end of the test.
func StartKubelet(tb testing.TB, o KubeletOptions) *Kubelet {
	tb.Helper()
	dir := harness.Dir(tb)
	k := &Kubelet{
		Root: filepath.Join(dir, "kubelet"), Manifests: filepath.Join(dir, "manifests"), PodLogs: filepath.Join(dir, "logs"),
		Addr: harness.FreeAddr(tb), options: o,
	}
	for _, d := range []string{k.Root, k.Manifests, k.PodLogs} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			tb.Fatalf("make directory: %v", err)
		}
	}
	k.clearMounts(tb)
	k.clearLinks(tb)
	k.Cgroup = harness.MakeCgroup(tb)
	k.clearCgroups(tb)
	k.writeConfig(tb)
	tb.Cleanup(func() {
		if k.Process != nil {
			defer k.Finish(tb) // also when Drain fails
			k.Drain(tb)
		}
	})
	k.Start(tb)
	return k
}

// clearMounts unmounts, at the end of the test, the volumes that a kubelet
// which was killed left behind.
func (k *Kubelet) clearMounts(tb testing.TB) {
	tb.Helper()
	tb.Cleanup(func() {
		mounts, err := harness.MountsBelow(k.Root)
		if err != nil {
			tb.Errorf("list volumes: %v", err)
		}
		for _, m := range mounts {
			if out, err := exec.Command("umount", m).CombinedOutput(); err != nil {
				tb.Errorf("unmount volume: %v: %s", err, out)
			}
		}
	})
}

// clearLinks removes, at the end of the test, the links for log agents that the
// kubelet had no time to remove. Their directory cannot be configured.
func (k *Kubelet) clearLinks(tb testing.TB) {
	tb.Helper()
	tb.Cleanup(func() {
		links, err := filepath.Glob("/var/log/containers/*.log")
		if err != nil {
			tb.Errorf("list log links: %v", err)
		}
		for _, link := range links {
			target, err := os.Readlink(link)
			if err != nil || !strings.HasPrefix(target, k.PodLogs+"/") {
				continue // another's
			}
			if err := os.Remove(link); err != nil {
				tb.Errorf("remove log link: %v", err)
			}
		}
	})
}

// clearCgroups removes, at the end of the test, the cgroups that the kubelet
// keeps for classes of pods. Those of pods are gone by then, or Drain failed.
func (k *Kubelet) clearCgroups(tb testing.TB) {
	tb.Helper()
	tb.Cleanup(func() {
		if err := harness.RemoveCgroup(k.Cgroup + "/kubepods"); err != nil {
			tb.Errorf("remove cgroups of kubelet: %v", err)
		}
		if name, ok := strings.CutSuffix(k.Cgroup, ".slice"); ok {
			// With the slice go those below it.
			if out, err := exec.Command("systemctl", "stop", filepath.Base(name)+"-kubepods.slice").CombinedOutput(); err != nil {
				tb.Errorf("remove slices of kubelet: %v: %s", err, out)
			}
		}
	})
}

func (k *Kubelet) configFile() string { return filepath.Join(k.Root, "config.yaml") }

// writeConfig writes the configuration: quick where waiting proves nothing, and
// without anything that would change the node.
func (k *Kubelet) writeConfig(tb testing.TB) {
	tb.Helper()
	host, port, err := net.SplitHostPort(k.Addr)
	if err != nil {
		tb.Fatal(err)
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		tb.Fatal(err)
	}
	yes, no, zero := true, false, int32(0)
	full := int32(100)
	c := kubeletconfig.KubeletConfiguration{
		TypeMeta:                 metav1.TypeMeta{Kind: "KubeletConfiguration", APIVersion: "kubelet.config.k8s.io/v1beta1"},
		EnableServer:             &yes,
		Address:                  host,
		Port:                     int32(number),
		HealthzPort:              &zero,
		StaticPodPath:            k.Manifests,
		FileCheckFrequency:       metav1.Duration{Duration: harness.Slowly(time.Second)}, // it watches as well
		ContainerRuntimeEndpoint: k.options.Endpoint,
		PodLogsDir:               k.PodLogs,
		VolumePluginDir:          filepath.Join(k.Root, "plugins"),
		Authentication: kubeletconfig.KubeletAuthentication{
			Anonymous: kubeletconfig.KubeletAnonymousAuthentication{Enabled: &yes},
			Webhook:   kubeletconfig.KubeletWebhookAuthentication{Enabled: &no},
		},
		Authorization:               kubeletconfig.KubeletAuthorization{Mode: kubeletconfig.KubeletAuthorizationModeAlwaysAllow},
		CgroupDriver:                harness.CgroupDriver(),
		CgroupRoot:                  strings.TrimSuffix(k.Cgroup, ".slice"), // the kubelet appends it
		EnforceNodeAllocatable:      []string{"none"},
		FailCgroupV1:                &no,
		FailSwapOn:                  &no,
		MakeIPTablesUtilChains:      &no,
		ImageGCHighThresholdPercent: &full,
		EvictionHard: map[string]string{
			"memory.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.available": "0%", "imagefs.inodesFree": "0%",
		},
	}
	if k.options.Configure != nil {
		k.options.Configure(&c)
	}
	data, err := json.Marshal(c)
	if err != nil {
		tb.Fatalf("write kubelet configuration: %v", err)
	}
	if err := os.WriteFile(k.configFile(), data, 0o644); err != nil {
		tb.Fatalf("write kubelet configuration: %v", err)
	}
}

// Start starts the kubelet, for the first time or again after Stop or Kill.
func (k *Kubelet) Start(tb testing.TB) {
	tb.Helper()
	bin, err := kubeletBinary()
	if err != nil {
		tb.Fatal(err)
	}
	argv := append([]string{
		bin, "--config", k.configFile(), "--root-dir", k.Root, "--cert-dir", filepath.Join(k.Root, "pki"),
		"--hostname-override", NodeName, "--v", "2",
	}, k.options.Args...)
	k.Process = harness.StartProcess(tb, filepath.Dir(k.Root), "kubelet", argv)
	k.WaitFor(tb, time.Minute, func() error {
		_, err := k.Get(context.Background(), "/healthz")
		return err
	})
}

// Restart kills the kubelet with SIGKILL and starts it again.
func (k *Kubelet) Restart(tb testing.TB) {
	tb.Helper()
	k.Kill(tb)
	k.Start(tb)
}

// AddPod writes a manifest. The pod's name at the kubelet is [PodName].
func (k *Kubelet) AddPod(tb testing.TB, pod *corev1.Pod) {
	tb.Helper()
	pod = pod.DeepCopy()
	pod.TypeMeta = metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"}
	data, err := json.Marshal(pod)
	if err != nil {
		tb.Fatalf("encode manifest: %v", err)
	}
	// A name that begins with a dot is not read: the pod appears whole.
	hidden := filepath.Join(k.Manifests, "."+pod.Name)
	if err := os.WriteFile(hidden, data, 0o644); err != nil {
		tb.Fatalf("write manifest: %v", err)
	}
	if err := os.Rename(hidden, k.manifest(pod.Name)); err != nil {
		tb.Fatalf("write manifest: %v", err)
	}
}

// RemovePod removes a manifest: the kubelet deletes the pod, with its grace.
func (k *Kubelet) RemovePod(tb testing.TB, name string) {
	tb.Helper()
	if err := os.Remove(k.manifest(name)); err != nil {
		tb.Fatalf("remove manifest: %v", err)
	}
}

func (k *Kubelet) manifest(name string) string { return filepath.Join(k.Manifests, name+".json") }

// PodName is the name of the static pod whose manifest says name.
func PodName(name string) string { return name + "-" + NodeName }

// Drain removes every manifest and waits until nothing of the pods is left.
func (k *Kubelet) Drain(tb testing.TB) {
	tb.Helper()
	files, err := filepath.Glob(filepath.Join(k.Manifests, "*.json"))
	if err != nil {
		tb.Fatalf("list manifests: %v", err)
	}
	for _, f := range files {
		if err := os.Remove(f); err != nil {
			tb.Errorf("remove manifest: %v", err)
		}
	}
	if !k.Running() {
		return
	}
	harness.Eventually(tb, 90*time.Second, func() string {
		pods, err := k.Pods(context.Background())
		if err != nil {
			return err.Error()
		}
		if len(pods) > 0 {
			return fmt.Sprintf("the kubelet still knows %d pods", len(pods))
		}
		return k.podCgroups("")
	})
}

// podCgroups complains of cgroups that the kubelet still has of the pod with
// this UID, or of any pod: it removes them when all else of a pod has gone.
// Its lists of running pods may be 2 s old and say nothing.
func (k *Kubelet) podCgroups(uid string) string {
	all, err := harness.CgroupsBelow(k.Cgroup)
	if err != nil {
		return err.Error()
	}
	for _, dir := range all {
		if ofPod(filepath.Base(dir), uid) {
			return "pod cgroup still there: " + dir
		}
	}
	return ""
}

// ofPod says whether a cgroup's name is the one that a kubelet gives to the pod
// with this UID (or, without one, to any pod) with either driver.
func ofPod(name, uid string) bool {
	if slice, ok := strings.CutSuffix(name, ".slice"); ok {
		_, pod, ok := strings.Cut(slice, "-pod")
		return ok && strings.HasPrefix(pod, strings.ReplaceAll(uid, "-", "_"))
	}
	return strings.HasPrefix(name, "pod"+uid)
}

// PodCgroup is the end of the path of a burstable pod's cgroup.
func (k *Kubelet) PodCgroup(uid string) string {
	if harness.CgroupDriver() != "systemd" {
		return k.Cgroup + "/kubepods/burstable/pod" + uid
	}
	root := strings.TrimSuffix(filepath.Base(k.Cgroup), ".slice")
	var path string
	for _, name := range []string{"", "-kubepods", "-burstable", "-pod" + strings.ReplaceAll(uid, "-", "_")} {
		root += name
		path += "/" + root + ".slice"
	}
	return path
}
