package kubelet

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/harness/kube"
)

// testCrashLoop lets a container end again and again: the first restart comes
// at once, the second 10 s later.
func testCrashLoop(t *testing.T, n *node) {
	script := `echo "run $(cat /data/n)"; echo x >>/data/n; exit 3`
	n.add(t, mount(newPod("crash", n.shell("main", script)), "data", "/data", emptyDir()))
	first := n.waitRestarts(t, "crash", 1)
	n.waitBackOff(t, "crash")
	second := n.waitRestarts(t, "crash", 2)
	s := status(second, "main")
	if exitCode(s.LastTerminationState) != 3 || s.LastTerminationState.Terminated.Reason != "Error" {
		t.Errorf("last state is %+v", s.LastTerminationState)
	}
	if status(first, "main").ContainerID == s.ContainerID {
		t.Errorf("restarted with the same id %s", s.ContainerID)
	}
	if pause := startOf(t, s.State).Sub(s.LastTerminationState.Terminated.FinishedAt.Time); pause < 9*time.Second {
		t.Errorf("second restart came after %v", pause)
	}
	c := kube.Container{Pod: "crash", Name: "main"}
	n.waitLog(t, c, "", "run x\nx")
	n.waitLog(t, c, "previous=true", "run x")
}

// startOf is when a container of this state was started.
func startOf(t *testing.T, s corev1.ContainerState) time.Time {
	t.Helper()
	switch {
	case s.Running != nil:
		return s.Running.StartedAt.Time
	case s.Terminated != nil:
		return s.Terminated.StartedAt.Time
	}
	t.Fatalf("never started: %+v", s)
	return time.Time{}
}

// waitRestarts waits until the container main was restarted some times and its
// state says so.
func (n *node) waitRestarts(t *testing.T, pod string, count int32) *corev1.Pod {
	t.Helper()
	return n.kubelet.WaitPod(t, pod, patience, func(p *corev1.Pod) string {
		if s := status(p, "main"); s.RestartCount < count || s.State.Waiting != nil || s.LastTerminationState.Terminated == nil {
			return fmt.Sprintf("not restarted %d times", count)
		}
		return ""
	})
}

// waitBackOff waits until the kubelet shows CrashLoopBackOff for main.
func (n *node) waitBackOff(t *testing.T, pod string) {
	t.Helper()
	n.kubelet.WaitPod(t, pod, patience, func(p *corev1.Pod) string {
		if w := status(p, "main").State.Waiting; w == nil || w.Reason != "CrashLoopBackOff" {
			return "not in CrashLoopBackOff"
		}
		return ""
	})
}

// testBadCommandNever wants exactly one container of a command that there is
// not, and the pod failed.
func testBadCommandNever(t *testing.T, n *node) {
	pod := never(newPod("bad-never", corev1.Container{Name: "main", Image: n.busybox, Command: []string{"/no/such/command"}}))
	got := n.done(t, pod)
	if got.Status.Phase != corev1.PodFailed {
		t.Errorf("phase is %s", got.Status.Phase)
	}
	s := status(got, "main")
	if exitCode(s.State) != 128 || s.State.Terminated.Reason != "StartError" || !strings.Contains(s.State.Terminated.Message, "/no/such/command") {
		t.Errorf("state is %+v, want exit code 128, StartError and the command", s.State.Terminated)
	}
	// A sync later there still is no other one.
	asked := time.Now()
	harness.Eventually(t, patience, func() string {
		list := n.containers(t, "bad-never")
		if len(list) != 1 || list[0].Metadata.Attempt != 0 {
			t.Fatalf("containers are %v", list)
		}
		if time.Since(asked) < 5*time.Second {
			return "watching for another container"
		}
		return ""
	})
	if s := status(n.kubelet.WaitPod(t, "bad-never", patience, func(*corev1.Pod) string { return "" }), "main"); s.RestartCount != 0 {
		t.Errorf("restarted: %+v", s)
	}
}

// testBadCommandAlways wants a back-off between the attempts.
func testBadCommandAlways(t *testing.T, n *node) {
	n.add(t, newPod("bad-always", corev1.Container{Name: "main", Image: n.busybox, Command: []string{"/no/such/command"}}))
	n.waitBackOff(t, "bad-always")
	list := n.containers(t, "bad-always")
	if len(list) > 3 {
		t.Errorf("%d containers during the first back-off: %v", len(list), list)
	}
}

// testTerminationMessage reads what containers leave for the kubelet.
func testTerminationMessage(t *testing.T, n *node) {
	file := n.shell("file", "echo from the file >/dev/termination-log; exit 1")
	path := n.shell("path", "echo from elsewhere >/tmp/message; exit 0")
	path.TerminationMessagePath = "/tmp/message"
	log := n.shell("log", "echo from the log; exit 1")
	log.TerminationMessagePolicy = corev1.TerminationMessageFallbackToLogsOnError
	got := n.done(t, never(newPod("message", file, path, log)))
	for name, want := range map[string]string{"file": "from the file\n", "path": "from elsewhere\n", "log": "from the log\n"} {
		if s := status(got, name).State.Terminated; s == nil || s.Message != want {
			t.Errorf("%s ended as %+v, want message %q", name, s, want)
		}
	}
}

// testOutOfMemory lets a container use more than it may.
func testOutOfMemory(t *testing.T, n *node) {
	c := n.shell("main", "x=0123456789abcdef; while :; do x=$x$x; done")
	c.Resources.Limits = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("24Mi")}
	got := n.done(t, never(newPod("oom", c)))
	if s := status(got, "main").State.Terminated; s == nil || s.Reason != "OOMKilled" || s.ExitCode != 137 {
		t.Errorf("ended as %+v, want OOMKilled and 137", s)
	}
}

// testPullAlways wants a new image under an old name after a restart.
func testPullAlways(t *testing.T, n *node) {
	ref := n.pushBusybox(t, "moving:1", "one")
	c := n.shell("main", "until [ -e /tmp/end ]; do usleep 100000; done; exit 1")
	c.Image, c.ImagePullPolicy = ref, corev1.PullAlways
	before := status(n.ready(t, newPod("pull-always", c)), "main")
	n.pushBusybox(t, "moving:1", "two")
	n.exec(t, "pull-always", "main", "touch /tmp/end")
	after := n.kubelet.WaitPod(t, "pull-always", patience, func(p *corev1.Pod) string {
		if s := status(p, "main"); s.RestartCount != 1 || s.State.Running == nil {
			return "not restarted"
		}
		return ""
	})
	if s := status(after, "main"); s.ImageID == before.ImageID || s.Image != ref {
		t.Errorf("restarted with %s as %s, was %s", s.ImageID, s.Image, before.ImageID)
	}
}

// testPullFails wants reasons that name the image.
func testPullFails(t *testing.T, n *node) {
	missing := corev1.Container{Name: "missing", Image: n.registry.Ref("nobody/nothing:1")}
	gone := corev1.Container{Name: "gone", Image: harness.FreeAddr(t) + "/busybox:1"}
	n.add(t, newPod("pull-fails", missing, gone, n.sleeper("good")))
	seen := map[string]bool{}
	n.kubelet.WaitPod(t, "pull-fails", patience, func(p *corev1.Pod) string {
		for _, c := range []corev1.Container{missing, gone} {
			if w := status(p, c.Name).State.Waiting; w != nil {
				seen[c.Name+" "+w.Reason] = strings.Contains(w.Message, c.Image)
			}
		}
		if !seen["missing ErrImagePull"] || !seen["missing ImagePullBackOff"] || !seen["gone ImagePullBackOff"] || !seen["gone RegistryUnavailable"] {
			return fmt.Sprintf("seen %v", seen)
		}
		if s := status(p, "good"); !s.Ready {
			return "the container whose image is there does not run"
		}
		return ""
	})
}
