package kubelet

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"

	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/harness/kube"
)

// steady are pods that run through all restarts.
type steady struct {
	pod     *corev1.Pod // of two containers that count in their logs
	control string      // a file here tells the pod "late" to end
	beside  podView     // of the command line
	image   string      // of beside, which nothing else uses
}

// startSteady starts them before all other pods.
func (n *node) startSteady(t *testing.T) *steady {
	t.Helper()
	s := &steady{image: n.pushBusybox(t, "held:1", "held")}
	// Each pause is a process, which a slow machine has no time for.
	pause := fmt.Sprintf("usleep %d", harness.Slowly(50*time.Millisecond).Microseconds())
	count := `i=0; while :; do echo "tick $i"; i=$((i+1)); ` + pause + `; done`
	pod := newPod("steady", n.shell("one", count), n.shell("two", count))
	pod.Spec.Containers[1].LivenessProbe = execProbe("true")
	n.ready(t, pod)
	dir, volume := hostDir(t)
	s.control = dir
	late := mount(never(newPod("late", n.shell("main", "until [ -e /ctl/end ]; do "+pause+"; done; echo the end; exit 42"))), "ctl", "/ctl", volume)
	n.add(t, late)
	n.kubelet.WaitReady(t, "late", patience)
	uuid := strings.TrimSpace(n.gantry.CLI(t, "run", "--quiet", "--detach", "docker://"+s.image, "--exec", "/bin/sleep", "--", "8888"))
	t.Cleanup(func() { n.removePod(t, uuid) })
	s.beside = n.view(t, uuid)
	s.pod = n.kubelet.WaitReady(t, "steady", patience)
	return s
}

// testRestarts kills the kubelet and the daemon in turn, and both.
func (n *node) testRestarts(t *testing.T, s *steady) {
	t.Run("kubelet", func(t *testing.T) {
		n.kubelet.Restart(t)
		n.checkSteady(t, s)
	})
	t.Run("images collected", func(t *testing.T) { n.testCollected(t, s) })
	t.Run("daemon", func(t *testing.T) {
		n.restartDaemon(t)
		n.checkSteady(t, s)
	})
	t.Run("both", func(t *testing.T) {
		n.kubelet.Kill(t)
		n.gantry.Restart(t)
		n.kubelet.Start(t)
		n.checkSteady(t, s)
	})
	t.Run("end while the daemon is down", func(t *testing.T) { n.testEndWhileDown(t, s) })
	t.Run("daemon during a start", func(t *testing.T) {
		n.add(t, newPod("interrupted", n.sleeper("one"), n.sleeper("two")))
		n.waitCall(t, "interrupted")
		n.restartDaemon(t)
		n.kubelet.WaitReady(t, "interrupted", patience)
		n.checkSteady(t, s)
	})
	t.Run("new pod", func(t *testing.T) {
		n.ready(t, newPod("new", n.sleeper("main")))
		n.checkSteady(t, s)
	})
}

// restartDaemon kills the daemon under a running kubelet and returns once that
// has found the new one. Until its gRPC connection dials again, after a back-off
// of up to 3 s, all that the kubelet is asked fails as the last attempt did.
func (n *node) restartDaemon(t *testing.T) {
	t.Helper()
	n.gantry.Restart(t)
	harness.Eventually(t, patience, func() string {
		_, err := n.kubelet.Exec(t.Context(), kube.Container{Pod: "steady", Name: "one"}, nil, "true")
		if err != nil {
			return fmt.Sprintf("the kubelet has not found the daemon again: %v", err)
		}
		return ""
	})
}

// waitCall waits until the runtime has been asked for the pod's sandbox.
func (n *node) waitCall(t *testing.T, pod string) {
	t.Helper()
	harness.Eventually(t, patience, func() string {
		dirs, err := filepath.Glob(filepath.Join(n.kubelet.PodLogs, "default_"+kube.PodName(pod)+"_*"))
		if err != nil || len(dirs) == 0 {
			return fmt.Sprintf("the kubelet has not begun: %v", err)
		}
		return ""
	})
}

// checkSteady wants the pods that were there before: the same containers, never
// restarted, and logs that go on without a hole.
func (n *node) checkSteady(t *testing.T, s *steady) {
	t.Helper()
	logs := []string{n.logDir(s.pod, "one"), n.logDir(s.pod, "two")}
	var before []int
	for _, dir := range logs {
		before = append(before, countLines(t, dir, "tick"))
	}
	got := n.kubelet.WaitReady(t, "steady", patience)
	if got.UID != s.pod.UID || got.Status.PodIP != s.pod.Status.PodIP {
		t.Errorf("pod is %s with %s, was %s with %s", got.UID, got.Status.PodIP, s.pod.UID, s.pod.Status.PodIP)
	}
	for _, name := range []string{"one", "two"} {
		is, was := status(got, name), status(s.pod, name)
		if is.ContainerID != was.ContainerID || is.RestartCount != 0 {
			t.Errorf("container %s is %s, restarted %d times, was %s", name, is.ContainerID, is.RestartCount, was.ContainerID)
		}
		wantLines(t, n.exec(t, "steady", name, "echo here"), "here")
	}
	for i, dir := range logs {
		harness.Eventually(t, patience, func() string {
			if countLines(t, dir, "tick") < before[i]+10 {
				return "the log does not go on"
			}
			return ""
		})
		harness.Eventually(t, 10*time.Second, func() string { return checkCount(dir, "tick") })
	}
	beside := n.view(t, s.beside.UUID)
	if beside.State != "running" || beside.Apps[0].PID != s.beside.Apps[0].PID {
		t.Errorf("pod of the command line is %+v, was %+v", beside, s.beside)
	}
}

// testEndWhileDown lets a container end while no daemon is there to see it.
func (n *node) testEndWhileDown(t *testing.T, s *steady) {
	pid := n.pid(t, n.kubelet.WaitReady(t, "late", patience), "main")
	n.gantry.Kill(t)
	if err := os.WriteFile(filepath.Join(s.control, "end"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, patience, func() string {
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err == nil {
			return "the container has not ended"
		}
		return ""
	})
	ended := time.Now()
	n.gantry.Start(t)
	n.waitExit(t, "late", "main", 42)
	got := n.kubelet.WaitPod(t, "late", patience, func(p *corev1.Pod) string {
		if p.Status.Phase != corev1.PodFailed {
			return "phase is " + string(p.Status.Phase)
		}
		return ""
	})
	if end := status(got, "main").State.Terminated; end.Reason != "Error" || end.FinishedAt.Time.After(ended) {
		t.Errorf("ended as %+v, gone at %v", end, ended)
	}
	n.waitLog(t, kube.Container{Pod: "late", Name: "main"}, "", "the end")
	n.checkSteady(t, s)
}

// leaveGarbage runs a pod with an image of its own and removes it; the image is
// garbage then.
func (n *node) leaveGarbage(t *testing.T) string {
	t.Helper()
	c := n.sleeper("main")
	c.Image = n.pushBusybox(t, "garbage:1", "garbage")
	pod := newPod("garbage", c)
	got := n.ready(t, pod)
	n.kubelet.RemovePod(t, "garbage")
	n.kubelet.WaitGone(t, got, patience)
	if !slices.Contains(n.imageNames(t), c.Image) {
		t.Errorf("no image %s", c.Image)
	}
	return c.Image
}

// testCollected wants a kubelet that lacks disk space to remove the images that
// nothing uses, and those alone. It does not evict static pods.
func (n *node) testCollected(t *testing.T, s *steady) {
	garbage := n.leaveGarbage(t)
	usual := n.restartWith(t, func(c *kubeletconfig.KubeletConfiguration) {
		c.EvictionHard = map[string]string{"nodefs.available": "99%"}
	})
	harness.Eventually(t, patience, func() string {
		if names := n.imageNames(t); slices.Contains(names, garbage) {
			return fmt.Sprintf("%s is still among %v", garbage, names)
		}
		return ""
	})
	names := n.imageNames(t)
	for _, used := range []string{n.busybox, s.image} {
		if !slices.Contains(names, used) {
			t.Errorf("%s is used and was removed; left are %v", used, names)
		}
	}
	n.restartWith(t, func(c *kubeletconfig.KubeletConfiguration) { *c = usual })
	n.checkSteady(t, s)
}

// restartWith kills the kubelet and starts it with another configuration. It
// returns the former one.
func (n *node) restartWith(t *testing.T, change func(*kubeletconfig.KubeletConfiguration)) kubeletconfig.KubeletConfiguration {
	t.Helper()
	file := filepath.Join(n.kubelet.Root, "config.yaml")
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var c kubeletconfig.KubeletConfiguration
	if err := json.Unmarshal(data, &c); err != nil {
		t.Fatal(err)
	}
	former := *c.DeepCopy()
	change(&c)
	if data, err = json.Marshal(c); err != nil {
		t.Fatal(err)
	}
	n.kubelet.Kill(t)
	if err := os.WriteFile(file, data, 0o644); err != nil {
		t.Fatal(err)
	}
	n.kubelet.Start(t)
	return former
}

// imageNames are the names of all images.
func (n *node) imageNames(t *testing.T) []string {
	t.Helper()
	var list []struct{ Names []string }
	if err := json.Unmarshal([]byte(n.gantry.CLI(t, "image", "list", "--format=json")), &list); err != nil {
		t.Fatalf("decode image list: %v", err)
	}
	var names []string
	for _, i := range list {
		names = append(names, i.Names...)
	}
	return names
}
