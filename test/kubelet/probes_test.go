package kubelet

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/harness/kube"
)

// probePeriod is a second; on a slow machine probes would keep it from all else.
var probePeriod = max(1, int32(harness.Slowly(500*time.Millisecond)/time.Second))

// execProbe asks a script every second.
func execProbe(script string) *corev1.Probe {
	return &corev1.Probe{
		ProbeHandler:  corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"sh", "-c", script}}},
		PeriodSeconds: probePeriod, TimeoutSeconds: 20, FailureThreshold: 60,
	}
}

// httpProbe asks a path on port 8080 every second, and gives up at once.
func httpProbe(path string) *corev1.Probe {
	return &corev1.Probe{
		ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: intstr.FromInt32(8080)}},
		PeriodSeconds: probePeriod, TimeoutSeconds: 10, FailureThreshold: 2,
	}
}

// testReadiness holds a pod back until its probe succeeds, and takes its
// readiness away when that fails again.
func testReadiness(t *testing.T, n *node) {
	c := n.sleeper("main")
	c.ReadinessProbe = execProbe("test -e /tmp/open")
	c.ReadinessProbe.FailureThreshold = 1
	n.add(t, newPod("readiness", c))
	started := func(ready bool) func(*corev1.Pod) string {
		return func(p *corev1.Pod) string {
			if s := status(p, "main"); s.State.Running == nil || s.Ready != ready {
				return fmt.Sprintf("want running, ready %v", ready)
			}
			return ""
		}
	}
	n.kubelet.WaitPod(t, "readiness", patience, started(false))
	n.waitProbes(t, 2)
	n.kubelet.WaitPod(t, "readiness", patience, started(false))
	n.exec(t, "readiness", "main", "touch /tmp/open")
	n.kubelet.WaitReady(t, "readiness", patience)
	n.exec(t, "readiness", "main", "rm /tmp/open")
	got := n.kubelet.WaitPod(t, "readiness", patience, started(false))
	if s := status(got, "main"); s.RestartCount != 0 {
		t.Errorf("restarted by a readiness probe: %+v", s)
	}
}

// waitProbes waits until the pod "readiness" was asked some times: its probe
// leaves a trace in no log, so a probe's count is taken from the kubelet.
func (n *node) waitProbes(t *testing.T, count float64) {
	t.Helper()
	want := fmt.Sprintf(`prober_probe_total{container="main",namespace="default",pod="%s"`, kube.PodName("readiness"))
	harness.Eventually(t, patience, func() string {
		body, err := n.kubelet.Get(t.Context(), "/metrics/probes")
		if err != nil {
			return err.Error()
		}
		if got := sumSeries(string(body), want); got < count {
			return fmt.Sprintf("%v probes, want %v", got, count)
		}
		return ""
	})
}

// testHTTPLiveness lets a probe fail: the container gets SIGTERM, says its last
// words, ends with its own code, and is started again.
func testHTTPLiveness(t *testing.T, n *node) {
	script := `echo ok >/var/www/healthz
httpd -f -p 8080 -h /var/www & 
trap 'echo last words; kill $!; exit 7' TERM
echo first words; wait`
	c := n.shell("main", script)
	c.LivenessProbe, c.ReadinessProbe = httpProbe("/healthz"), httpProbe("/healthz")
	before := n.ready(t, newPod("liveness", c))
	n.exec(t, "liveness", "main", "rm /var/www/healthz")
	after := n.kubelet.WaitPod(t, "liveness", patience, func(p *corev1.Pod) string {
		if s := status(p, "main"); s.RestartCount < 1 || s.State.Running == nil || !s.Ready {
			return "not restarted and ready"
		}
		return ""
	})
	s := status(after, "main")
	if exitCode(s.LastTerminationState) != 7 {
		t.Errorf("last state is %+v, want exit code 7", s.LastTerminationState)
	}
	if s.ContainerID == status(before, "main").ContainerID || after.Status.PodIP != before.Status.PodIP {
		t.Errorf("restarted as %s with %s, was %s with %s", s.ContainerID, after.Status.PodIP, status(before, "main").ContainerID, before.Status.PodIP)
	}
	main := kube.Container{Pod: "liveness", Name: "main"}
	n.waitLog(t, main, "previous=true", "first words\nlast words")
	n.waitLog(t, main, "", "first words")
	if log, err := n.kubelet.Logs(t.Context(), main, ""); err != nil || log != "first words\n" {
		t.Errorf("log after the restart is %q, %v", log, err)
	}
}

// testExecProbeTimeout lets a probe's command hang: it is a failure, and the
// command does not live on.
func testExecProbeTimeout(t *testing.T, n *node) {
	c := n.sleeper("main")
	c.LivenessProbe = execProbe("[ ! -e /tmp/hang ] || exec sleep 4321")
	c.LivenessProbe.TimeoutSeconds, c.LivenessProbe.FailureThreshold = 2, 2
	before := n.ready(t, newPod("hang", c))
	n.exec(t, "hang", "main", "touch /tmp/hang")
	n.kubelet.WaitPod(t, "hang", patience, func(p *corev1.Pod) string {
		if s := status(p, "main"); s.RestartCount < 1 || s.State.Running == nil {
			return "not restarted"
		}
		return ""
	})
	got := n.kubelet.WaitReady(t, "hang", patience)
	if got.UID != before.UID {
		t.Errorf("pod is %s, was %s", got.UID, before.UID)
	}
	harness.Eventually(t, patience, func() string {
		if left := processes(t, "sleep\x004321\x00"); len(left) > 0 {
			return fmt.Sprintf("probes' commands live on: %v", left)
		}
		return ""
	})
}
