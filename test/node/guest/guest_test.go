//go:build node

package guest

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/images"
)

// The places that the package promises.
const (
	endpoint = "unix:///run/gantry/gantry.sock"
	dataDir  = "/var/lib/gantry"
	runDir   = "/run/gantry"
	certsDir = "/etc/gantry/certs.d"
	// keepDir holds what one boot has to tell the next.
	keepDir = "/var/lib/gantry-test"
)

// patience is how long things may take that take a moment, on a fast machine.
const patience = 30 * time.Second

// TestMain refuses to change a machine that is not ours.
func TestMain(m *testing.M) {
	if host, err := os.Hostname(); err != nil || host != "node" || os.Getenv("GANTRY_SLOWNESS") == "" {
		fmt.Fprintln(os.Stderr, "these tests run in the virtual node alone: make test-node")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// sh runs a shell command that has to succeed and returns its trimmed output.
func sh(t *testing.T, script string) string {
	t.Helper()
	out, err := exec.Command("sh", "-c", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return strings.TrimSpace(string(out))
}

// node is the installed daemon and a registry that it pulls from.
type node struct {
	harness.Raw
	registry *harness.Registry
}

// connect waits until the installed daemon answers.
func connect(t *testing.T) *node {
	t.Helper()
	n := &node{Raw: harness.RawClient(t, endpoint)}
	harness.Eventually(t, patience, func() string {
		if _, err := n.Version(t.Context(), &runtimeapi.VersionRequest{}); err != nil {
			return err.Error() + "\n" + journal()
		}
		return ""
	})
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("journal of the daemon:\n%s", journal())
		}
	})
	return n
}

func journal() string {
	out, _ := exec.Command("journalctl", "--no-pager", "-o", "cat", "-n", "40", "-u", "gantry").CombinedOutput()
	return string(out)
}

// serve starts a registry that the installed daemon knows.
func (n *node) serve(t *testing.T) {
	t.Helper()
	n.registry = harness.StartRegistry(t)
	harness.WriteHosts(t, certsDir, n.registry.Addr)
}

// push pushes an image and returns its reference by tag.
func (n *node) push(t *testing.T, name string, img remote.Taggable) string {
	t.Helper()
	n.registry.Push(t, name, img)
	return n.registry.Ref(name)
}

// busybox starts the registry and pulls busybox from it.
func (n *node) busybox(t *testing.T) string {
	t.Helper()
	n.serve(t)
	img, err := images.Busybox(images.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ref := n.push(t, "busybox:1", img)
	if _, err := n.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}}); err != nil {
		t.Fatalf("pull: %v", err)
	}
	return ref
}

// box is a sandbox.
type box struct {
	*node
	id, image string
	config    *runtimeapi.PodSandboxConfig
}

// run runs a sandbox below a cgroup (the default where it is empty).
func (n *node) run(t *testing.T, name, image, parent string) *box {
	t.Helper()
	c := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "default", Uid: "uid-" + name},
		Hostname:     name,
		LogDirectory: filepath.Join("/var/log/pods", name),
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: parent,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
			},
		},
	}
	resp, err := n.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: c})
	if err != nil {
		t.Fatalf("run sandbox %s: %v", name, err)
	}
	return &box{n, resp.PodSandboxId, image, c}
}

// start creates and starts a container that runs a shell script with a memory
// limit in bytes.
func (b *box) start(t *testing.T, name, script string, memory int64, mounts ...*runtimeapi.Mount) string {
	t.Helper()
	created, err := b.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{
		PodSandboxId: b.id, SandboxConfig: b.config,
		Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: name},
			Image:    &runtimeapi.ImageSpec{Image: b.image},
			Command:  []string{"sh", "-c", script},
			LogPath:  name + ".log",
			Mounts:   mounts,
			Linux: &runtimeapi.LinuxContainerConfig{
				Resources: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: memory, MemorySwapLimitInBytes: memory, CpuShares: 204},
				SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
					NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
				},
			},
		},
	})
	if err != nil {
		t.Fatalf("create container %s: %v", name, err)
	}
	if _, err := b.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: created.ContainerId}); err != nil {
		t.Fatalf("start container %s: %v", name, err)
	}
	return created.ContainerId
}

// state is a container's status.
func (n *node) state(t *testing.T, id string) *runtimeapi.ContainerStatus {
	t.Helper()
	resp, err := n.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
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
			return "container is " + st.State.String()
		}
		return ""
	})
	return st
}

// exec runs a script in a container; it has to succeed.
func (n *node) exec(t *testing.T, id, script string) string {
	t.Helper()
	resp, err := n.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", script}, Timeout: 60})
	if err != nil || resp.ExitCode != 0 {
		t.Fatalf("exec %q: %v, %v", script, err, resp)
	}
	return strings.TrimSpace(string(resp.Stdout))
}

// remove stops and removes a sandbox.
func (n *node) remove(t *testing.T, id string) {
	t.Helper()
	if _, err := n.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
		t.Errorf("stop sandbox: %v", err)
	}
	if _, err := n.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
		t.Errorf("remove sandbox: %v", err)
	}
}

// podView is what gantry list --format=json says of a pod.
type podView struct {
	UUID, ID, Owner, State string
	Apps                   []struct {
		Name, State string
		ExitCode    *int32
		PID         int
	}
}

// list is what gantry list says.
func list(t *testing.T) []podView {
	t.Helper()
	var views []podView
	if err := json.Unmarshal([]byte(sh(t, "gantry list --format=json")), &views); err != nil {
		t.Fatalf("decode list: %v", err)
	}
	return views
}

// pid is the init process of a container.
func pid(t *testing.T, id string) int {
	t.Helper()
	for _, v := range list(t) {
		if v.ID == id && len(v.Apps) == 1 && v.Apps[0].PID != 0 {
			return v.Apps[0].PID
		}
	}
	t.Fatalf("gantry list has no process of %s:\n%s", id, sh(t, "gantry list --full"))
	return 0
}

// checkNothingLeft fails the test when something that a pod had outside of its
// directory is still there.
func checkNothingLeft(t *testing.T) {
	t.Helper()
	harness.Eventually(t, patience, func() string {
		left := ""
		for what, script := range map[string]string{
			"units":      "systemctl list-units --all --plain --no-legend 'gantry-*.scope' 'gantry-*.slice'",
			"failed":     "systemctl list-units --failed --plain --no-legend",
			"mounts":     "grep -E ' /(run|var/lib)/gantry/' /proc/self/mountinfo || true",
			"monitors":   "pgrep -a conmon || true",
			"pods":       "ls /run/gantry/pods /var/lib/gantry/pods/by-id | grep -v -e : -e '^boot$' || true",
			"tmp":        "ls /var/lib/gantry/tmp",
			"OCI states": "find /run/gantry/runtime -mindepth 2 -maxdepth 2",
			"leases":     "ls /etc/cni/ipam/*/10.* 2>/dev/null || true",
			"links":      "ip -o link show type veth",
			"namespaces": "grep -c ' nsfs ' /proc/self/mountinfo | grep -v '^0$' || true",
		} {
			if out := sh(t, script); out != "" {
				left += fmt.Sprintf("%s: %s\n", what, out)
			}
		}
		return left
	})
}
