// Package e2e asks the real daemon for pods over the CRI socket, with a real
// registry, runc or crun, conmon and CNI plugins around it, and looks at what
// becomes of them. Every test has a daemon on directories of its own, and ends
// with a check that nothing is left behind.
package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/images"
)

// patience is how long things may take that take a moment.
const patience = 20 * time.Second

// callTimeout is the deadline of every call that a test does not shorten.
const callTimeout = 90 * time.Second

// node is a daemon, the bare clients of its socket, and a registry with busybox.
type node struct {
	*harness.Gantry
	harness.Raw
	registry *harness.Registry
	busybox  string // reference of the image by tag
}

// busybox is the image that nearly all containers run.
var busybox = sync.OnceValues(func() (v1.Image, error) { return images.Busybox(images.Options{}) })

// needs skips a test where root or a program is missing.
func needs(t *testing.T, programs ...string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, p := range append(programs, "docker-registry", "conmon", "catatonit") {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("needs %s (hack/deps): %v", p, err)
		}
	}
}

// startRegistry starts a registry that has busybox:1, and returns its reference.
func startRegistry(t *testing.T) (*harness.Registry, string) {
	t.Helper()
	needs(t)
	r := harness.StartRegistry(t)
	img, err := busybox()
	if err != nil {
		t.Fatal(err)
	}
	r.Push(t, "busybox:1", img)
	return r, r.Ref("busybox:1")
}

// startNode starts a registry and a daemon that has pulled busybox.
func startNode(t *testing.T, o harness.GantryOptions) *node {
	t.Helper()
	r, ref := startRegistry(t)
	o.Registries = append(o.Registries, r.Addr)
	g := harness.StartGantry(t, o)
	n := &node{Gantry: g, Raw: g.Raw(t), registry: r, busybox: ref}
	n.pull(t, ref)
	return n
}

// config writes a configuration file and returns the arguments that name it.
func config(t *testing.T, lines ...string) []string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return []string{"--config", file}
}

// callContext is the context of one call.
func callContext(t *testing.T, timeout time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	t.Cleanup(cancel)
	return ctx
}

// must returns the answer of a call that has to succeed.
func must[T any](answer T, err error) func(t *testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return answer
	}
}

// wantCode fails the test unless err has the code and says all the words.
func wantCode(t *testing.T, err error, code codes.Code, words ...string) {
	t.Helper()
	if got := status.Code(err); got != code {
		t.Errorf("got code %s (%v), want %s", got, err, code)
	}
	for _, w := range words {
		if err == nil || !strings.Contains(status.Convert(err).Message(), w) {
			t.Errorf("%v does not say %q", err, w)
		}
	}
}

// pull pulls an image and returns its id.
func (n *node) pull(t *testing.T, ref string) string {
	t.Helper()
	resp, err := n.PullImage(callContext(t, callTimeout), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	if err != nil {
		t.Fatalf("pull %s: %v", ref, err)
	}
	return resp.ImageRef
}

// box is a sandbox.
type box struct {
	*node
	id     string
	config *runtimeapi.PodSandboxConfig
}

// sandboxConfig is what a kubelet would send for a pod named like the test.
func sandboxConfig(t *testing.T, name string) *runtimeapi.PodSandboxConfig {
	t.Helper()
	return &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "default", Uid: "uid-" + name},
		Hostname:     name,
		LogDirectory: filepath.Join(t.TempDir(), "default_"+name+"_uid"),
		DnsConfig:    &runtimeapi.DNSConfig{Servers: []string{"192.0.2.53"}, Searches: []string{"svc.example"}, Options: []string{"ndots:5"}},
		Labels:       map[string]string{"io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": "default", "io.kubernetes.pod.uid": "uid-" + name},
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
		}},
	}
}

// run runs a sandbox; RemovePods of the harness removes it.
func (n *node) run(t *testing.T, config *runtimeapi.PodSandboxConfig) *box {
	t.Helper()
	resp, err := n.RunPodSandbox(callContext(t, callTimeout), &runtimeapi.RunPodSandboxRequest{Config: config})
	if err != nil {
		t.Fatalf("run sandbox %s: %v", config.Metadata.Name, err)
	}
	return &box{n, resp.PodSandboxId, config}
}

// pod runs the sandbox of an ordinary pod.
func (n *node) pod(t *testing.T, name string) *box {
	t.Helper()
	return n.run(t, sandboxConfig(t, name))
}

// containerConfig is a busybox that runs a shell script.
func (n *node) containerConfig(name, script string) *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name},
		Image:    &runtimeapi.ImageSpec{Image: n.busybox},
		Command:  []string{"sh", "-c", script},
		LogPath:  name + "/0.log",
		Labels:   map[string]string{"io.kubernetes.container.name": name},
		Linux:    &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}}},
	}
}

// change is what a test wants otherwise in a container.
type change func(*runtimeapi.ContainerConfig)

// create creates a container.
func (b *box) create(t *testing.T, name, script string, changes ...change) string {
	t.Helper()
	c := b.containerConfig(name, script)
	for _, f := range changes {
		f(c)
	}
	if err := os.MkdirAll(filepath.Dir(b.logPath(c)), 0o755); err != nil { // as the kubelet does
		t.Fatal(err)
	}
	id, err := b.ask(callContext(t, callTimeout), c)
	if err != nil {
		t.Fatalf("create container %s: %v", name, err)
	}
	return id
}

// ask sends a CreateContainer.
func (b *box) ask(ctx context.Context, c *runtimeapi.ContainerConfig) (string, error) {
	resp, err := b.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: b.id, Config: c, SandboxConfig: b.config})
	return resp.GetContainerId(), err
}

func (b *box) logPath(c *runtimeapi.ContainerConfig) string {
	return filepath.Join(b.config.LogDirectory, c.LogPath)
}

// start creates and starts a container.
func (b *box) start(t *testing.T, name, script string, changes ...change) string {
	t.Helper()
	id := b.create(t, name, script, changes...)
	b.startID(t, id)
	return id
}

func (n *node) startID(t *testing.T, id string) {
	t.Helper()
	if _, err := n.StartContainer(callContext(t, callTimeout), &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
		t.Fatalf("start container: %v", err)
	}
}

// output runs a script as a container to its end and returns what it wrote.
func (b *box) output(t *testing.T, name, script string, changes ...change) string {
	t.Helper()
	id := b.start(t, name, script, changes...)
	st := b.waitExited(t, id)
	text := logText(t, st.LogPath)
	if st.ExitCode != 0 {
		t.Errorf("%s exited with %d: %s %s\n%s", name, st.ExitCode, st.Reason, st.Message, text)
	}
	return text
}

// state is a container's status.
func (n *node) state(t *testing.T, id string) *runtimeapi.ContainerStatus {
	t.Helper()
	resp, err := n.ContainerStatus(callContext(t, callTimeout), &runtimeapi.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		t.Fatalf("container status: %v", err)
	}
	return resp.Status
}

// waitExited waits for the end of a container.
func (n *node) waitExited(t *testing.T, id string) *runtimeapi.ContainerStatus {
	t.Helper()
	var st *runtimeapi.ContainerStatus
	harness.Eventually(t, patience, func() string {
		if st = n.state(t, id); st.State != runtimeapi.ContainerState_CONTAINER_EXITED {
			return fmt.Sprintf("container is %s", st.State)
		}
		return ""
	})
	return st
}

// exec runs a command by ExecSync and returns its trimmed output; it has to
// succeed.
func (n *node) exec(t *testing.T, id, script string) string {
	t.Helper()
	resp, err := n.ExecSync(callContext(t, callTimeout), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", script}, Timeout: 20})
	if err != nil {
		t.Fatalf("exec %q: %v", script, err)
	}
	if resp.ExitCode != 0 {
		t.Errorf("exec %q: exit code %d, stderr %q", script, resp.ExitCode, resp.Stderr)
	}
	return strings.TrimSpace(string(resp.Stdout))
}

// stop stops a container.
func (n *node) stop(t *testing.T, id string, grace int64) {
	t.Helper()
	if _, err := n.StopContainer(callContext(t, callTimeout), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: grace}); err != nil {
		t.Errorf("stop container: %v", err)
	}
}

// remove stops and removes a sandbox.
func (b *box) remove(t *testing.T) {
	t.Helper()
	ctx := callContext(t, callTimeout)
	if _, err := b.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: b.id}); err != nil {
		t.Errorf("stop sandbox: %v", err)
	}
	if _, err := b.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: b.id}); err != nil {
		t.Errorf("remove sandbox: %v", err)
	}
}

// sandboxes lists the sandboxes.
func (n *node) sandboxes(t *testing.T) []*runtimeapi.PodSandbox {
	t.Helper()
	return must(n.ListPodSandbox(callContext(t, callTimeout), &runtimeapi.ListPodSandboxRequest{}))(t).Items
}

// containers lists the containers.
func (n *node) containers(t *testing.T) []*runtimeapi.Container {
	t.Helper()
	return must(n.ListContainers(callContext(t, callTimeout), &runtimeapi.ListContainersRequest{}))(t).Containers
}

// logLine is one line of a log in CRI's format.
type logLine struct {
	at          time.Time
	stream, tag string // stdout or stderr, F or P
	text        string
}

// logLines reads a log strictly.
func logLines(t *testing.T, path string) []logLine {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("read log: %v", err)
	}
	var lines []logLine
	for raw := range strings.Lines(string(data)) {
		f := strings.SplitN(strings.TrimSuffix(raw, "\n"), " ", 4)
		if len(f) != 4 || !strings.HasSuffix(raw, "\n") {
			t.Fatalf("log line %q is not CRI's", raw)
		}
		at, err := time.Parse(time.RFC3339Nano, f[0])
		if err != nil {
			t.Fatalf("log line %q: %v", raw, err)
		}
		lines = append(lines, logLine{at, f[1], f[2], f[3]})
	}
	return lines
}

// logText is the text of a log without its frame.
func logText(t *testing.T, path string) string {
	t.Helper()
	var b strings.Builder
	for _, l := range logLines(t, path) {
		b.WriteString(l.text)
		if l.tag == "F" {
			b.WriteByte('\n')
		}
	}
	return b.String()
}

// waitLog waits until a file, read from outside, contains a text.
func waitLog(t *testing.T, path, want string) {
	t.Helper()
	harness.Eventually(t, patience, func() string {
		data, _ := os.ReadFile(path) // it may not be there yet
		if !strings.Contains(string(data), want) {
			return fmt.Sprintf("%s has no %q:\n%s", path, want, data)
		}
		return ""
	})
}
