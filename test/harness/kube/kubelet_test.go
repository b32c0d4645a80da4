package kube

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilexec "k8s.io/client-go/util/exec"

	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/images"
)

// TestOverContainerd shows that the kubelet's side works, over a runtime that does.
func TestOverContainerd(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, p := range []string{"docker-registry", "runc"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("needs %s (hack/deps): %v", p, err)
		}
	}
	if !harness.ContainerdBuilt() {
		t.Skip("needs containerd (hack/build-peers)")
	}
	if testing.Short() {
		t.Skip("starts a kubelet")
	}
	r := harness.StartRegistry(t)
	web, err := images.Web(t.Context(), images.DefaultCache(), images.Options{})
	if err != nil {
		t.Fatal(err)
	}
	r.Push(t, "web:1", web)
	busybox, err := images.Busybox(images.Options{Format: images.Docker})
	if err != nil {
		t.Fatal(err)
	}
	index, err := images.Index(images.Docker, busybox)
	if err != nil {
		t.Fatal(err)
	}
	r.Push(t, "busybox:1", index)
	c := harness.StartContainerd(t, r, harness.ContainerdOptions{})
	k := StartKubelet(t, KubeletOptions{Endpoint: c.Endpoint})
	k.AddPod(t, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: corev1.PodSpec{TerminationGracePeriodSeconds: new(int64(1)), Containers: []corev1.Container{
			{Name: "nginx", Image: r.Ref("web:1")},
			{Name: "client", Image: r.Ref("busybox:1"), Command: []string{"sh", "-c", "until wget -q -O - http://127.0.0.1/; do sleep 1; done; sleep 1000"}},
		}},
	})
	pod := k.WaitReady(t, "web", time.Minute)
	nginx := Container{Pod: "web", Name: "nginx"}
	t.Run("exec", func(t *testing.T) { checkExec(t, k, nginx) })
	t.Run("port-forward", func(t *testing.T) { checkBody(t, k.PortForward(t, "web", 80)) })
	t.Run("pod IP", func(t *testing.T) { checkBody(t, pod.Status.PodIP+":80") })
	t.Run("logs", func(t *testing.T) {
		checkLog(t, k, nginx, "GET / ")
		checkLog(t, k, Container{Pod: "web", Name: "client"}, images.WebBody)
	})
	k.Restart(t)
	after := k.WaitReady(t, "web", time.Minute)
	if got, want := after.Status.ContainerStatuses[0].ContainerID, pod.Status.ContainerStatuses[0].ContainerID; got != want {
		t.Errorf("container is %s after the kubelet's restart, was %s", got, want)
	}
	k.RemovePod(t, "web")
	k.WaitGone(t, pod, time.Minute)
	// One that the harness removes.
	k.AddPod(t, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "left"},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "nginx", Image: r.Ref("web:1")}}},
	})
	k.WaitReady(t, "left", time.Minute)
}

func checkExec(t *testing.T, k *Kubelet, c Container) {
	t.Helper()
	got, err := k.Exec(t.Context(), c, strings.NewReader("in"), "sh", "-c", "cat; echo err >&2; exit 3")
	var exit utilexec.CodeExitError
	if !errors.As(err, &exit) || exit.Code != 3 || got != (ExecResult{"in", "err\n"}) {
		t.Errorf("exec gave %+v, %v", got, err)
	}
}

func checkLog(t *testing.T, k *Kubelet, c Container, want string) {
	t.Helper()
	harness.Eventually(t, 5*time.Second, func() string {
		log, err := k.Logs(t.Context(), c, "tailLines=50")
		if err != nil || !strings.Contains(log, want) {
			return fmt.Sprintf("log of %s has no %q: %v\n%s", c.Name, want, err, log)
		}
		return ""
	})
}

func checkBody(t *testing.T, addr string) {
	t.Helper()
	resp, err := http.Get("http://" + addr + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || string(body) != images.WebBody {
		t.Errorf("body is %q, %v", body, err)
	}
}
