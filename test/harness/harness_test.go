package harness

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilexec "k8s.io/client-go/util/exec"

	"github.com/gantry-cri/gantry/test/images"
)

// needs skips a test where root or a program is missing.
func needs(t *testing.T, programs ...string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("needs %s (hack/deps bench): %v", p, err)
		}
	}
}

func TestRegistry(t *testing.T) {
	needs(t, "docker-registry")
	r := StartRegistry(t)
	img, err := images.Busybox(images.Options{})
	if err != nil {
		t.Fatal(err)
	}
	digest := r.Push(t, "test/busybox:1", img)
	if !strings.HasPrefix(digest, r.Addr+"/test/busybox@sha256:") {
		t.Errorf("pushed as %q", digest)
	}
	r.Stop(t)
	if r.Running() || httpOK("http://"+r.Addr+"/v2/") == nil {
		t.Error("registry answers after Stop")
	}
	r.Start(t)
	if err := httpOK("http://" + r.Addr + "/v2/test/busybox/tags/list"); err != nil {
		t.Errorf("image is gone after a restart: %v", err)
	}
}

func TestLeaks(t *testing.T) {
	needs(t, "sleep")
	dir := Dir(t)
	scope := LeakScope{Dirs: []string{dir}}
	before, err := TakeSnapshot(scope)
	if err != nil {
		t.Fatal(err)
	}
	mount := filepath.Join(dir, "mnt")
	if err := os.Mkdir(mount, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("none", mount, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	sleep := startProcess(t, dir, "sleep", []string{"sh", "-c", "sleep 1000 # " + mount + "/x"})
	t.Cleanup(func() { sleep.Kill(t) })
	hs, err := hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	cgroup := filepath.Join(hs[0].mount, "leak-"+filepath.Base(dir))
	if err := os.Mkdir(cgroup, 0o755); err != nil {
		t.Fatal(err)
	}
	after, err := TakeSnapshot(scope)
	if err != nil {
		t.Fatal(err)
	}
	found := after.Since(before)
	for _, want := range []string{"mount " + mount, "process ", "cgroup " + cgroup} {
		if !slices.ContainsFunc(found, func(s string) bool { return strings.HasPrefix(s, want) }) {
			t.Errorf("%q is not among %q", want, found)
		}
	}
	after.clear(before)
	<-sleep.Exited()
	cleared, err := TakeSnapshot(scope)
	if err != nil {
		t.Fatal(err)
	}
	if left := cleared.Since(before); slices.ContainsFunc(left, func(s string) bool { return slices.Contains(found, s) }) {
		t.Errorf("not cleared: %q", left)
	}
}

// TestKubelet shows that the kubelet's side works, over a runtime that does.
func TestKubelet(t *testing.T) {
	needs(t, "containerd", "docker-registry", "runc")
	if testing.Short() {
		t.Skip("starts a kubelet")
	}
	r := StartRegistry(t)
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
	c := StartContainerd(t, r, "")
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
	Eventually(t, 5*time.Second, func() string {
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

func TestSmallDisk(t *testing.T) {
	needs(t, "mkfs.ext4")
	dir := SmallDisk(t, 8)
	err := os.WriteFile(filepath.Join(dir, "f"), make([]byte, 16<<20), 0o644)
	if !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("writing 16 MiB to a disk of 8: %v", err)
	}
}

func TestPrometheus(t *testing.T) {
	needs(t, "prometheus")
	mux := http.NewServeMux()
	mux.HandleFunc("/metrics", func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "# TYPE answer gauge\nanswer{a=\"b\"} 42\n") //nolint:errcheck // a test server
	})
	server := httptest.NewServer(mux)
	defer server.Close()
	p := StartPrometheus(t, strings.TrimPrefix(server.URL, "http://"))
	Eventually(t, 10*time.Second, func() string {
		if got := p.Query(t, `answer{a="b"}`); len(got) != 1 || got[0] != 42 {
			return fmt.Sprintf("query gave %v", got)
		}
		return ""
	})
}
