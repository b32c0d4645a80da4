package kubelet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	utilexec "k8s.io/client-go/util/exec"

	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/harness/kube"
	"github.com/gantry-cri/gantry/test/images"
)

// testLoopback runs a real web server and a client that reaches it over the
// pod's loopback; the node reaches it by the pod's address.
func testLoopback(t *testing.T, n *node) {
	pod := newPod("loop",
		corev1.Container{Name: "server", Image: n.web},
		n.shell("client", "until wget -q -O - http://127.0.0.1/; do usleep 200000; done; echo to stderr >&2; sleep 10000"))
	got := n.ready(t, pod)
	client := kube.Container{Pod: "loop", Name: "client"}
	n.waitLog(t, client, "", strings.TrimSpace(images.WebBody))
	n.waitLog(t, client, "tailLines=1", "to stderr")
	if body := httpGet(t, got.Status.PodIP+":80"); body != images.WebBody {
		t.Errorf("by pod IP %s: %q", got.Status.PodIP, body)
	}
	n.waitServerLog(t)
	for _, s := range got.Status.ContainerStatuses {
		if !strings.HasPrefix(s.ContainerID, "gantry://") || !strings.Contains(s.ImageID, "@sha256:") {
			t.Errorf("container %s is %q of image %q", s.Name, s.ContainerID, s.ImageID)
		}
	}
	hosts := n.exec(t, "loop", "client", "cat /etc/hosts; cat /etc/hostname; hostname")
	for _, want := range []string{got.Status.PodIP + "\t" + got.Name, "\n" + got.Name + "\n" + got.Name} {
		if !strings.Contains(hosts, want) {
			t.Errorf("hosts and hostname have no %q:\n%s", want, hosts)
		}
	}
}

// waitServerLog waits until the web server has logged a request.
func (n *node) waitServerLog(t *testing.T) {
	t.Helper()
	harness.Eventually(t, patience, func() string {
		log, err := n.kubelet.Logs(t.Context(), kube.Container{Pod: "loop", Name: "server"}, "")
		if err != nil || !strings.Contains(log, "GET / ") {
			return fmt.Sprintf("no request in the server's log: %v\n%s", err, log)
		}
		return ""
	})
}

func httpGet(t *testing.T, addr string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		t.Fatalf("get from pod: %v", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("get from pod: %v", err)
	}
	return string(body)
}

// testPortForward reaches a server that listens on the pod's loopback alone,
// also after a port that nobody listens on was asked for.
func testPortForward(t *testing.T, n *node) {
	n.ready(t, newPod("forward", n.shell("server", "exec httpd -f -p 127.0.0.1:8080 -h /var/www")))
	// kubectl's side closes a tunnel for good when a port refuses.
	n.exec(t, "forward", "server", "until wget -q -O - http://127.0.0.1:8080/; do usleep 100000; done")
	addr := n.kubelet.PortForward(t, "forward", 8080)
	if body := httpGet(t, addr); body != "gantry busybox\n" {
		t.Errorf("through the tunnel: %q", body)
	}
	refused, err := net.Dial("tcp", n.kubelet.PortForward(t, "forward", 8081))
	if err != nil {
		t.Fatal(err)
	}
	defer refused.Close()
	if err := refused.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(refused); len(got) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a port that nobody listens on gave %q, %v", got, err)
	}
	if body := httpGet(t, addr); body != "gantry busybox\n" {
		t.Errorf("after the refusal: %q", body)
	}
}

// testInit runs two init containers and a sidecar before the container.
func testInit(t *testing.T, n *node) {
	always := corev1.ContainerRestartPolicyAlways
	sidecar := n.shell("sidecar", "echo three >>/data/order; touch /data/up; trap 'exit 0' TERM; sleep 10000 & wait")
	sidecar.RestartPolicy = &always
	sidecar.StartupProbe = execProbe("test -e /data/up")
	pod := newPod("init", n.shell("main", "cat /data/order; exec sleep 10000"))
	pod.Spec.InitContainers = []corev1.Container{
		n.shell("first", "usleep 300000; echo one >>/data/order"), n.shell("second", "echo two >>/data/order"), sidecar,
	}
	got := n.ready(t, mount(pod, "data", "/data", emptyDir()))
	n.waitLog(t, kube.Container{Pod: "init", Name: "main"}, "", "one\ntwo\nthree")
	for _, name := range []string{"first", "second"} {
		if s := status(got, name); exitCode(s.State) != 0 || s.State.Terminated.Reason != "Completed" || s.RestartCount != 0 {
			t.Errorf("init container is %+v", s)
		}
	}
	wantLines(t, n.exec(t, "init", "main", "cat /data/order"), "one", "two", "three")
}

// testExec runs commands by the way of kubectl exec.
func testExec(t *testing.T, n *node) {
	n.ready(t, newPod("exec", n.sleeper("main")))
	c := kube.Container{Pod: "exec", Name: "main"}
	got, err := n.kubelet.Exec(t.Context(), c, strings.NewReader("in"), "sh", "-c", "cat; echo err >&2; exit 3")
	if code := codeOf(err); code != 3 || got != (kube.ExecResult{Stdout: "in", Stderr: "err\n"}) {
		t.Errorf("exec gave %+v, exit %d, %v", got, code, err)
	}
	large := strings.Repeat("0123456789abcde\n", 1<<16)
	if got, err = n.kubelet.Exec(t.Context(), c, strings.NewReader(large), "cat"); err != nil || got.Stdout != large {
		t.Errorf("1 MiB through cat: %d bytes, %v", len(got.Stdout), err)
	}
	if got, err = n.kubelet.Exec(t.Context(), c, nil, "no-such-command"); err == nil {
		t.Errorf("a missing command gave %+v", got)
	}
	if code := codeOf(err); code == 0 {
		t.Errorf("a missing command's exit is %d, %v", code, err)
	}
}

// codeOf is the exit code that an error of Exec stands for, 0 for none, -1 for
// an error of another kind.
func codeOf(err error) int {
	var exit utilexec.CodeExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.Code
	}
	return -1
}

// agentPattern is how Fluent Bit takes a log link's name apart.
var agentPattern = regexp.MustCompile(`^(?P<pod>[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*)_(?P<namespace>[^_]+)_(?P<container>.+)-(?P<id>[a-z0-9]{64})\.log$`)

// testLogLink finds the link that the kubelet makes for log agents.
func testLogLink(t *testing.T, n *node) {
	got := n.ready(t, newPod("link", n.shell("main", "echo found; exec sleep 10000")))
	id := strings.TrimPrefix(status(got, "main").ContainerID, "gantry://")
	name := fmt.Sprintf("%s_default_main-%s.log", got.Name, id)
	if m := agentPattern.FindStringSubmatch(name); m == nil || m[agentPattern.SubexpIndex("id")] != id {
		t.Errorf("name %s gives %q", name, m)
	}
	link := filepath.Join("/var/log/containers", name)
	target, err := os.Readlink(link)
	if err != nil {
		t.Fatal(err)
	}
	want := filepath.Join(n.kubelet.PodLogs, fmt.Sprintf("default_%s_%s", got.Name, got.UID), "main", "0.log")
	if target != want {
		t.Errorf("link leads to %s, want %s", target, want)
	}
	harness.Eventually(t, patience, func() string {
		data, err := os.ReadFile(link)
		if err != nil || !bytes.HasSuffix(data, []byte(" stdout F found\n")) {
			return fmt.Sprintf("log is %q, %v", data, err)
		}
		return ""
	})
}

// testStatistics finds a pod in the kubelet's summary.
func testStatistics(t *testing.T, n *node) {
	n.ready(t, newPod("stats", n.shell("busy", "dd if=/dev/zero of=/file bs=1k count=100; while :; do i=$((i+1)); [ $((i%2000)) != 0 ] || usleep 100000; done")))
	harness.Eventually(t, patience, func() string {
		body, err := n.kubelet.Get(t.Context(), "/stats/summary")
		if err != nil {
			return err.Error()
		}
		return statsOf(body, kube.PodName("stats"), "busy")
	})
}

// testRotation writes more than the kubelet keeps in one file, and counts the
// lines in all of them. The kubelet itself shows the newest file alone, which may
// be empty.
func testRotation(t *testing.T, n *node) {
	dir, volume := hostDir(t)
	script := `i=0; pad=$(printf %0100d 0)
until [ -e /ctl/stop ]; do
	j=0; while [ $j -lt 200 ]; do echo "line $i $pad"; i=$((i+1)); j=$((j+1)); done
	usleep 100000
done; echo "end $i"; exit 0`
	got := n.ready(t, mount(never(newPod("rotate", n.shell("main", script))), "ctl", "/ctl", volume))
	logs := n.logDir(got, "main")
	harness.Eventually(t, patience, func() string {
		if files, err := filepath.Glob(filepath.Join(logs, "0.log.*")); err != nil || len(files) < 3 {
			return fmt.Sprintf("rotated only to %q, %v", files, err)
		}
		return ""
	})
	if err := os.WriteFile(filepath.Join(dir, "stop"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	n.waitExit(t, "rotate", "main", 0)
	harness.Eventually(t, patience, func() string {
		if bad := checkCount(logs, "line"); bad != "" {
			return bad
		}
		end, err := numbered(logs, "end")
		if want := []int{countLines(t, logs, "line")}; err != nil || !slices.Equal(end, want) {
			return fmt.Sprintf("ends with %d, %v; want %d", end, err, want)
		}
		return ""
	})
}

// waitExit waits until a container has ended with a code.
func (n *node) waitExit(t *testing.T, pod, container string, code int32) {
	t.Helper()
	n.kubelet.WaitPod(t, pod, patience, func(p *corev1.Pod) string {
		if s := status(p, container); exitCode(s.State) != code {
			return fmt.Sprintf("%s has not ended with %d", container, code)
		}
		return ""
	})
}
