package contract

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/images"
)

// patience is how long things may take that take a moment.
const patience = 20 * time.Second

// TestMain lets more pods be struck at a time than there are processors, unless -parallel
// says how many: their tests wait more than they work.
func TestMain(m *testing.M) {
	if err := flag.Set("test.parallel", "8"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run()) // which reads the command line
}

// callTimeout is the deadline of every call: what a kubelet waits.
const callTimeout = 2 * time.Minute

// node is a daemon and what asks it for pods.
type node struct {
	*harness.Gantry
	harness.Raw
	image string
}

// newNode makes a daemon, with more arguments of serve, that has pulled busybox.
func newNode(t *testing.T, args ...string) *node {
	t.Helper()
	return newNodeOn(t, "", args...)
}

// newNodeOn is newNode with a data directory; empty is one of its own.
func newNodeOn(t *testing.T, dir string, args ...string) *node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("runs containers: needs root")
	}
	r := harness.StartRegistry(t)
	img, err := images.Busybox(images.Options{})
	if err != nil {
		t.Fatal(err)
	}
	r.Push(t, "busybox:1", img)
	g := harness.StartGantry(t, harness.GantryOptions{Dir: dir, Registries: []string{r.Addr}, Config: spoolAll, Args: args})
	n := &node{Gantry: g, Raw: g.Raw(t), image: r.Ref("busybox:1")}
	n.pull(t)
	return n
}

// Start starts the daemon again and waits until the open connection has found it.
func (n *node) Start(tb testing.TB) {
	tb.Helper()
	n.Gantry.Start(tb)
	harness.Eventually(tb, patience, func() string {
		if _, err := n.Version(tb.Context(), &runtimeapi.VersionRequest{}); err != nil {
			return err.Error()
		}
		return ""
	})
}

// Restart kills the daemon and starts it again.
func (n *node) Restart(tb testing.TB) {
	tb.Helper()
	n.Kill(tb)
	n.Start(tb)
}

// config writes a line of configuration and returns the arguments that name it.
func config(t *testing.T, line string) []string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte(line+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return []string{"--config", file}
}

func (n *node) pull(t *testing.T) {
	t.Helper()
	if _, err := n.PullImage(call(t), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: n.image}}); err != nil {
		t.Fatalf("pull: %v", err)
	}
}

// call is the context of one call.
func call(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), callTimeout)
	t.Cleanup(cancel)
	return ctx
}

// box is a sandbox.
type box struct {
	*node
	id     string
	config *runtimeapi.PodSandboxConfig
}

// sandboxConfig says also whose PID namespace the pod's containers live in.
func sandboxConfig(t *testing.T, name string, pid runtimeapi.NamespaceMode) *runtimeapi.PodSandboxConfig {
	t.Helper()
	return &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "default", Uid: "uid-" + name},
		Hostname:     name,
		LogDirectory: filepath.Join(t.TempDir(), name),
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: pid},
		}},
	}
}

// sandbox runs a sandbox whose containers have PID namespaces of their own.
func (n *node) sandbox(t *testing.T, name string) *box {
	t.Helper()
	return n.sandboxOf(t, sandboxConfig(t, name, runtimeapi.NamespaceMode_CONTAINER))
}

func (n *node) sandboxOf(t *testing.T, c *runtimeapi.PodSandboxConfig) *box {
	t.Helper()
	resp, err := n.RunPodSandbox(call(t), &runtimeapi.RunPodSandboxRequest{Config: c})
	if err != nil {
		t.Fatalf("run sandbox: %v", err)
	}
	return &box{n, resp.PodSandboxId, c}
}

func (b *box) containerConfig(name, script string) *runtimeapi.ContainerConfig {
	own := b.config.Linux.SecurityContext.NamespaceOptions
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name},
		Image:    &runtimeapi.ImageSpec{Image: b.image},
		Command:  []string{"sh", "-c", script},
		LogPath:  name + ".log",
		Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: own.Pid},
		}},
	}
}

// create creates a container that runs a shell script.
func (b *box) create(t *testing.T, name, script string) string {
	t.Helper()
	if err := os.MkdirAll(b.config.LogDirectory, 0o755); err != nil { // as the kubelet does
		t.Fatal(err)
	}
	resp, err := b.CreateContainer(call(t), &runtimeapi.CreateContainerRequest{PodSandboxId: b.id, Config: b.containerConfig(name, script), SandboxConfig: b.config})
	if err != nil {
		t.Fatalf("create container: %v", err)
	}
	return resp.ContainerId
}

func (b *box) start(t *testing.T, name, script string) string {
	t.Helper()
	id := b.create(t, name, script)
	if err := b.startID(t, id); err != nil {
		t.Fatalf("start container: %v", err)
	}
	return id
}

func (n *node) startID(t *testing.T, id string) error {
	t.Helper()
	_, err := n.StartContainer(call(t), &runtimeapi.StartContainerRequest{ContainerId: id})
	return err
}

func (n *node) stopID(t *testing.T, id string, grace int64) {
	t.Helper()
	if _, err := n.StopContainer(call(t), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: grace}); err != nil {
		t.Errorf("stop container: %v", err)
	}
}

func (b *box) stop(t *testing.T) {
	t.Helper()
	if _, err := b.StopPodSandbox(call(t), &runtimeapi.StopPodSandboxRequest{PodSandboxId: b.id}); err != nil {
		t.Errorf("stop sandbox: %v", err)
	}
}

func (b *box) ready(t *testing.T) bool {
	t.Helper()
	resp, err := b.PodSandboxStatus(call(t), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: b.id})
	if err != nil {
		t.Fatalf("sandbox status: %v", err)
	}
	return resp.Status.State == runtimeapi.PodSandboxState_SANDBOX_READY
}

// status is what CRI says of a container.
func (n *node) status(t *testing.T, id string) *runtimeapi.ContainerStatus {
	t.Helper()
	resp, err := n.ContainerStatus(call(t), &runtimeapi.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		t.Fatalf("container status: %v", err)
	}
	return resp.Status
}

// wantState fails the test unless the container is in a state now.
func (n *node) wantState(t *testing.T, id, want string) {
	t.Helper()
	if got := word(n.status(t, id).State); got != want {
		t.Errorf("container is %s, want %s", got, want)
	}
}

// word is a state without its prefix: CREATED, RUNNING, EXITED.
func word(s runtimeapi.ContainerState) string { return strings.TrimPrefix(s.String(), "CONTAINER_") }

// exited waits for the end of a container and compares code and reason.
func (n *node) exited(t *testing.T, id string, code int32, reason string) *runtimeapi.ContainerStatus {
	t.Helper()
	var st *runtimeapi.ContainerStatus
	harness.Eventually(t, patience, func() string {
		if st = n.status(t, id); word(st.State) != "EXITED" {
			return "container is " + word(st.State)
		}
		return ""
	})
	if st.ExitCode != code || st.Reason != reason {
		t.Errorf("container ended with %d %s (%s), want %d %s", st.ExitCode, st.Reason, st.Message, code, reason)
	}
	return st
}

// uuid is the pod of a CRI id.
func uuid(id string) string {
	return strings.Join([]string{id[:8], id[8:12], id[12:16], id[16:20], id[20:32]}, "-")
}

// idOf is the id of the sandbox of a name, also of one in the making, which is in no list.
func (n *node) idOf(t *testing.T, name string) string {
	t.Helper()
	for u := range n.byID(t) {
		raw, err := os.ReadFile(filepath.Join(n.Dir, "pods/by-id", u, "manifest"))
		if err == nil && strings.Contains(string(raw), "uid-"+name) {
			return strings.ReplaceAll(u, "-", "")
		}
	}
	t.Fatalf("there is no sandbox %s", name)
	return ""
}

// started is what started.json names.
type started struct {
	Init    struct{ PID int } `json:"init"`
	Monitor struct{ PID int } `json:"monitor"`
}

// processes are a container's init and monitor.
func (n *node) processes(t *testing.T, id string) started {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(n.RunDir, "pods", uuid(id), "apps", "*", "started.json"))
	if err != nil || len(files) != 1 {
		t.Fatalf("started.json of %s: %v, err %v", id, files, err)
	}
	raw, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	var s started
	if err := json.Unmarshal(raw, &s); err != nil {
		t.Fatal(err)
	}
	return s
}

func send(t *testing.T, pid int, sig syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(pid, sig); err != nil {
		t.Fatalf("signal %v to %d: %v", sig, pid, err)
	}
}

// end kills processes and waits until they have ended; a zombie has.
func end(t *testing.T, pids ...int) {
	t.Helper()
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && err != syscall.ESRCH {
			t.Fatalf("kill %d: %v", pid, err)
		}
		dead(t, pid)
	}
}

func dead(t *testing.T, pid int) {
	t.Helper()
	harness.Eventually(t, patience, func() string {
		if over(pid) {
			return ""
		}
		return fmt.Sprintf("process %d lives", pid)
	})
}

// over says that a process has ended; a zombie has.
func over(pid int) bool {
	s, err := processState(pid)
	return err != nil || s == "Z" || s == "X"
}

// processState is the letter that proc_pid_stat(5) has for what a process does.
func processState(pid int) (string, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, after, _ := strings.Cut(string(raw), ") ")
	letter, _, _ := strings.Cut(after, " ")
	return letter, err
}

// place is the directory that a pod's link lies in.
func (n *node) place(t *testing.T, u string) string {
	t.Helper()
	links, err := filepath.Glob(filepath.Join(n.Dir, "pods", "*", u))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if p := filepath.Base(filepath.Dir(l)); p != "by-id" {
			return p
		}
	}
	return ""
}

// listed says whether CRI lists a pod.
func (n *node) listed(t *testing.T, u string) bool {
	t.Helper()
	id := strings.ReplaceAll(u, "-", "")
	boxes, err := n.ListPodSandbox(call(t), &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range boxes.Items {
		if strings.HasPrefix(b.Id, id) {
			return true
		}
	}
	all, err := n.ListContainers(call(t), &runtimeapi.ListContainersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range all.Containers {
		if strings.HasPrefix(c.Id, id) {
			return true
		}
	}
	return false
}

// pause is a moment's sleep of a script: a process each, for which a slow machine has
// no time.
var pause = fmt.Sprintf("sleep %.1f", harness.Slowly(100*time.Millisecond).Seconds())

// forever is a script that numbers lines until it is killed.
var forever = "i=0; while :; do echo $((i=i+1)); " + pause + "; done"
