// Package kubelet lets a real kubelet judge Gantry: it runs static pods over
// the daemon's socket, and the tests look at them through the kubelet's own API.
//
// Registry, daemon, kubelet and Prometheus are started once. The pods run beside
// one another, because much of a kubelet's time is waiting; what restarts the
// kubelet or the daemon comes after them, one at a time.
package kubelet

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"

	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/harness/kube"
	"github.com/gantry-cri/gantry/test/images"
)

// patience is how long a pod may take to get anywhere while the others start
// too, on a small machine that others use.
const patience = 4 * time.Minute

// logLimit is the size at which the kubelet rotates a log.
const logLimit = "256Ki"

// TestMain lets more pods run at a time than there are processors, unless -parallel
// says how many: their tests wait more than they work.
func TestMain(m *testing.M) {
	if err := flag.Set("test.parallel", "16"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run()) // which reads the command line
}

// node is a machine with a kubelet over Gantry, and what they need.
type node struct {
	registry   *harness.Registry
	gantry     *harness.Gantry
	kubelet    *kube.Kubelet
	prometheus *harness.Prometheus
	runtime    internalapi.RuntimeService
	busybox    string       // a reference
	web        string       // a reference
	begun      atomic.Int64 // tests of podTests; a node leaves some out
}

// TestKubelet is the whole judgement.
func TestKubelet(t *testing.T) {
	needs(t)
	n := startNode(t)
	steady := n.startSteady(t)
	t.Run("pods", func(t *testing.T) {
		for name, test := range podTests {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				n.begun.Add(1)
				test(t, n)
			})
		}
	})
	t.Run("prometheus", n.testPrometheus)
	t.Run("restart", func(t *testing.T) { n.testRestarts(t, steady) })
}

// podTests run side by side.
var podTests = map[string]func(*testing.T, *node){
	"loopback":          testLoopback,
	"port-forward":      testPortForward,
	"init":              testInit,
	"exec":              testExec,
	"readiness":         testReadiness,
	"http liveness":     testHTTPLiveness,
	"exec probe hangs":  testExecProbeTimeout,
	"volumes":           testVolumes,
	"crash loop":        testCrashLoop,
	"bad command never": testBadCommandNever,
	"bad command loop":  testBadCommandAlways,
	"termination":       testTerminationMessage,
	"out of memory":     testOutOfMemory,
	"user":              testUser,
	"capabilities":      testCapabilities,
	"resources":         testResources,
	"host network":      testHostNetwork,
	"shared processes":  testSharedProcesses,
	"command line":      testCommandLine,
	"deletion":          testDeletion,
	"statistics":        testStatistics,
	"rotation":          testRotation,
	"pull always":       testPullAlways,
	"pull fails":        testPullFails,
	"log link":          testLogLink,
}

func needs(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if testing.Short() {
		t.Skip("starts a kubelet")
	}
	for _, p := range []string{"docker-registry", "conmon", "catatonit", "prometheus"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("needs %s (hack/deps test): %v", p, err)
		}
	}
}

func startNode(t *testing.T) *node {
	t.Helper()
	n := &node{registry: harness.StartRegistry(t)}
	n.busybox = n.pushBusybox(t, "busybox:1", "")
	web, err := images.Web(t.Context(), images.DefaultCache(), images.Options{})
	if err != nil {
		t.Fatal(err)
	}
	n.registry.Push(t, "web:1", web)
	n.web = n.registry.Ref("web:1")
	n.gantry = harness.StartGantry(t, harness.GantryOptions{Registries: []string{n.registry.Addr}})
	n.prometheus = harness.StartPrometheus(t, n.gantry.MetricsAddr)
	n.runtime = kube.RuntimeService(t, n.gantry.Endpoint)
	n.kubelet = kube.StartKubelet(t, kube.KubeletOptions{Endpoint: n.gantry.Endpoint, Configure: configure})
	return n
}

// configure makes logs rotate soon, and an unused image garbage at once.
func configure(c *kubeletconfig.KubeletConfiguration) {
	files, serial := int32(200), false
	c.ContainerLogMaxSize, c.ContainerLogMaxFiles = logLimit, &files
	c.ContainerLogMonitorInterval = &metav1.Duration{Duration: 3 * time.Second}
	c.ImageMinimumGCAge = metav1.Duration{Duration: time.Millisecond}
	c.SerializeImagePulls = &serial
}

// pushBusybox pushes a busybox image; unique makes it another one.
func (n *node) pushBusybox(t *testing.T, repository, unique string) string {
	t.Helper()
	img, err := images.Busybox(images.Options{Format: images.Docker, Unique: unique})
	if err != nil {
		t.Fatal(err)
	}
	n.registry.Push(t, repository, img)
	return n.registry.Ref(repository)
}

// shell is a container that runs a script.
func (n *node) shell(name, script string) corev1.Container {
	return corev1.Container{Name: name, Image: n.busybox, Command: []string{"sh", "-c", script}}
}

// sleeper is a container that does nothing until it is told to end.
func (n *node) sleeper(name string) corev1.Container {
	return n.shell(name, "trap 'exit 0' TERM; sleep 10000 & wait")
}

// newPod is a pod that has 2 s to end.
func newPod(name string, containers ...corev1.Container) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.PodSpec{TerminationGracePeriodSeconds: new(int64(2)), Containers: containers},
	}
}

// never is a pod whose containers are not started again.
func never(pod *corev1.Pod) *corev1.Pod {
	pod.Spec.RestartPolicy = corev1.RestartPolicyNever
	return pod
}

// mount adds a volume to a pod and mounts it in all its containers, init
// containers included.
func mount(pod *corev1.Pod, name, path string, source corev1.VolumeSource) *corev1.Pod {
	pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: name, VolumeSource: source})
	for _, containers := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range containers {
			containers[i].VolumeMounts = append(containers[i].VolumeMounts, corev1.VolumeMount{Name: name, MountPath: path})
		}
	}
	return pod
}

// hostDir is a volume of a directory of the test, and its path.
func hostDir(t *testing.T) (string, corev1.VolumeSource) {
	t.Helper()
	dir := harness.Dir(t)
	return dir, corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: dir}}
}

func emptyDir() corev1.VolumeSource {
	return corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}
}

// add gives a pod to the kubelet and, at the end of the test, takes it away and
// waits until it is gone: what it used may be removed then.
func (n *node) add(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	n.kubelet.AddPod(t, pod)
	t.Cleanup(func() {
		if _, err := os.Stat(filepath.Join(n.kubelet.Manifests, pod.Name+".json")); err != nil {
			return // removed by the test
		}
		n.kubelet.RemovePod(t, pod.Name)
		n.waitRemoved(t, pod.Name)
	})
}

// waitRemoved waits until the runtime has no container of the pod any more.
func (n *node) waitRemoved(t *testing.T, name string) {
	t.Helper()
	harness.Eventually(t, patience, func() string {
		left, err := n.runtime.ListPodSandbox(context.Background(), &runtimeapi.PodSandboxFilter{
			LabelSelector: map[string]string{"io.kubernetes.pod.name": kube.PodName(name)},
			State:         &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY},
		})
		if err != nil {
			return err.Error()
		}
		if len(left) > 0 {
			return fmt.Sprintf("sandbox of removed pod is still ready: %v", left)
		}
		return ""
	})
}

// ready adds a pod and waits until it is ready.
func (n *node) ready(t *testing.T, pod *corev1.Pod) *corev1.Pod {
	t.Helper()
	n.add(t, pod)
	return n.kubelet.WaitReady(t, pod.Name, patience)
}

// done adds a pod and waits until it has ended.
func (n *node) done(t *testing.T, pod *corev1.Pod) *corev1.Pod {
	t.Helper()
	n.add(t, pod)
	return n.kubelet.WaitPod(t, pod.Name, patience, func(p *corev1.Pod) string {
		if p.Status.Phase != corev1.PodFailed && p.Status.Phase != corev1.PodSucceeded {
			return "phase is " + string(p.Status.Phase)
		}
		return ""
	})
}

// containers are the containers of a pod that the runtime lists.
func (n *node) containers(t *testing.T, pod string) []*runtimeapi.Container {
	t.Helper()
	list, err := n.runtime.ListContainers(t.Context(), &runtimeapi.ContainerFilter{
		LabelSelector: map[string]string{"io.kubernetes.pod.name": kube.PodName(pod)},
	})
	if err != nil {
		t.Fatalf("list containers: %v", err)
	}
	return list
}

// status is the status of one container of a pod; empty when there is none yet.
func status(pod *corev1.Pod, container string) corev1.ContainerStatus {
	for _, list := range [][]corev1.ContainerStatus{pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses} {
		for _, s := range list {
			if s.Name == container {
				return s
			}
		}
	}
	return corev1.ContainerStatus{}
}

// exitCode is how a container ended, or -1 while it has not.
func exitCode(s corev1.ContainerState) int32 {
	if s.Terminated == nil {
		return -1
	}
	return s.Terminated.ExitCode
}

// exec runs a script in a container of a pod and returns what it says, without
// the last line's end.
func (n *node) exec(t *testing.T, pod, container, script string) string {
	t.Helper()
	r, err := n.kubelet.Exec(t.Context(), kube.Container{Pod: pod, Name: container}, nil, "sh", "-c", script)
	if err != nil {
		t.Errorf("exec: %v\n%s%s", err, r.Stdout, r.Stderr)
	}
	return strings.TrimSuffix(r.Stdout, "\n")
}

// waitLog waits until a container's log, read by the kubelet, holds a line.
func (n *node) waitLog(t *testing.T, c kube.Container, query, line string) {
	t.Helper()
	harness.Eventually(t, patience, func() string {
		log, err := n.kubelet.Logs(t.Context(), c, query)
		if err != nil || !strings.Contains("\n"+log, "\n"+line+"\n") {
			return fmt.Sprintf("log of %s/%s (%s) has no %q: %v\n%s", c.Pod, c.Name, query, line, err, log)
		}
		return ""
	})
}

// wantLines compares lines that a pod printed with those expected.
func wantLines(t *testing.T, got string, want ...string) {
	t.Helper()
	if got != strings.Join(want, "\n") {
		t.Errorf("got lines\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
}

// podView is what gantry list --format=json says of a pod.
type podView struct {
	UUID, ID, Owner, State, Kind string
	Apps                         []struct {
		Name, State string
		ExitCode    *int32
		PID         int
	}
}

// list is what gantry list says.
func (n *node) list(t *testing.T) []podView {
	t.Helper()
	var views []podView
	if err := json.Unmarshal([]byte(n.gantry.CLI(t, "list", "--format=json")), &views); err != nil {
		t.Fatalf("decode list: %v", err)
	}
	return views
}

// view is the pod in gantry list with this UUID or id.
func (n *node) view(t *testing.T, id string) podView {
	t.Helper()
	for _, v := range n.list(t) {
		if v.UUID == id || v.ID == id {
			return v
		}
	}
	t.Fatalf("gantry list has no %s", id)
	return podView{}
}

// removePod removes a pod of the command line; it may run.
func (n *node) removePod(t *testing.T, uuid string) {
	t.Helper()
	n.gantry.CLI(t, "stop", "--force", uuid)
	n.gantry.CLI(t, "rm", uuid)
}
