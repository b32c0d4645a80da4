package kubelet

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/harness/kube"
)

// testDeletion deletes a pod gracefully: preStop hook, SIGTERM, a last line in
// the log, an exit code, and nothing left.
func testDeletion(t *testing.T, n *node) {
	dir, volume := hostDir(t)
	c := n.shell("main", `trap 'echo term >>/ctl/order; echo last line; exit 5' TERM
echo first line
while :; do usleep 100000; done`)
	c.Lifecycle = &corev1.Lifecycle{
		PostStart: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"sh", "-c", "echo started >>/ctl/order"}}},
		PreStop:   &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"sh", "-c", "usleep 500000; echo stop >>/ctl/order"}}},
	}
	pod := mount(newPod("deleted", c), "ctl", "/ctl", volume)
	grace := harness.Slowly(time.Minute)
	pod.Spec.TerminationGracePeriodSeconds = new(int64(grace.Seconds()))
	got := n.ready(t, pod)
	id := strings.TrimPrefix(status(got, "main").ContainerID, "gantry://")
	n.waitLog(t, kube.Container{Pod: "deleted", Name: "main"}, "", "first line")
	log := n.kubelet.Follow(t, kube.Container{Pod: "deleted", Name: "main"})
	exit := n.watchExit(t, id)
	begin := time.Now()
	n.kubelet.RemovePod(t, "deleted")
	n.kubelet.WaitGone(t, got, patience)
	if took := time.Since(begin); took > grace-5*time.Second {
		t.Errorf("deletion took %v", took)
	}
	if order, err := os.ReadFile(filepath.Join(dir, "order")); err != nil || string(order) != "started\nstop\nterm\n" {
		t.Errorf("order was %q, %v", order, err)
	}
	if text := <-log; text != "first line\nlast line\n" {
		t.Errorf("followed log is %q", text)
	}
	if code := <-exit; code != 5 {
		t.Errorf("exit code in CRI was %d, want 5", code)
	}
	n.waitRemoved(t, "deleted")
	harness.Eventually(t, patience, func() string {
		// The kubelet removes the log with the container.
		if left, err := filepath.Glob(filepath.Join(n.logDir(got, "main"), "*")); err != nil || len(left) > 0 {
			return fmt.Sprintf("logs are left: %q, %v", left, err)
		}
		return ""
	})
}

// watchExit waits for a container's exit code as CRI tells it, -1 if the
// container disappears first.
func (n *node) watchExit(t *testing.T, id string) <-chan int32 {
	t.Helper()
	code := make(chan int32, 1)
	go func() {
		for tick := time.Tick(harness.Slowly(20 * time.Millisecond)); ; <-tick {
			resp, err := n.runtime.ContainerStatus(context.Background(), id, false)
			if err != nil {
				code <- -1
				return
			}
			if resp.Status.State == runtimeapi.ContainerState_CONTAINER_EXITED {
				code <- resp.Status.ExitCode
				return
			}
		}
	}()
	return code
}

// testPrometheus asks Prometheus what it scraped while pods were started. A rate needs
// a change between two scrapes: one more image is pulled once there was the first.
func (n *node) testPrometheus(t *testing.T) {
	harness.Eventually(t, 30*time.Second, func() string {
		if up := n.prometheus.Query(t, "up"); len(up) != 1 || up[0] != 1 {
			return fmt.Sprintf("up is %v", up)
		}
		return ""
	})
	c := n.sleeper("main")
	c.Image = n.pushBusybox(t, "scraped:1", "scraped")
	n.ready(t, newPod("scraped", c))
	for _, stage := range []string{"resolve", "fetch", "verify", "extract", "allocate", "rootfs", "commit"} {
		harness.Eventually(t, 30*time.Second, func() string { return n.checkStage(t, stage) })
	}
	if got := n.prometheus.Query(t, stageDuration+`_count{stage="resolve",result="failure"}`); len(got) != 1 || got[0] == 0 {
		t.Errorf("failed pulls were counted as %v", got)
	}
	if got := n.prometheus.Query(t, `max_over_time(gantry_pods{state="running",kind="container",owner="cri"}[10m])`); len(got) != 1 || got[0] < 2 {
		t.Errorf("most running containers: %v", got)
	}
	if got := n.prometheus.Query(t, `sum(gantry_cri_calls_total{method="RunPodSandbox",code="OK"})`); len(got) != 1 || int64(got[0]) < n.begun.Load()-2 {
		t.Errorf("RunPodSandbox was counted %v times", got)
	}
}

// stageDuration is the histogram of how long the stages of preparing took.
const stageDuration = "gantry_prepare_stage_duration_seconds"

// checkStage complains unless Prometheus has sound figures of a stage that succeeded.
func (n *node) checkStage(t *testing.T, stage string) string {
	t.Helper()
	of := fmt.Sprintf(`{stage=%q,result="success"}`, stage)
	count := n.prometheus.Query(t, stageDuration+"_count"+of)
	last := n.prometheus.Query(t, fmt.Sprintf(`%s_bucket{stage=%q,result="success",le="+Inf"}`, stageDuration, stage))
	rate := n.prometheus.Query(t, fmt.Sprintf("rate(%s_count%s[30m])", stageDuration, of))
	quantile := n.prometheus.Query(t, fmt.Sprintf("histogram_quantile(0.9, sum by (le) (rate(%s_bucket%s[30m])))", stageDuration, of))
	switch {
	case len(count) != 1 || count[0] == 0:
		return fmt.Sprintf("stage %s was counted %v", stage, count)
	case len(last) != 1 || last[0] != count[0]:
		return fmt.Sprintf("stage %s was counted %v, its last bucket is %v", stage, count, last)
	case len(rate) != 1 || !(rate[0] > 0):
		return fmt.Sprintf("rate of stage %s is %v", stage, rate)
	case len(quantile) != 1 || !(quantile[0] > 0 && quantile[0] <= 600):
		return fmt.Sprintf("0.9 quantile of stage %s is %v", stage, quantile)
	}
	return ""
}

// sumSeries adds up the series of an exposition that begin with prefix.
func sumSeries(exposition, prefix string) float64 {
	sum := 0.0
	for line := range strings.Lines(exposition) {
		if !strings.HasPrefix(line, prefix) {
			continue
		}
		var v float64
		if _, err := fmt.Sscan(line[strings.LastIndex(line, " ")+1:], &v); err == nil {
			sum += v
		}
	}
	return sum
}
