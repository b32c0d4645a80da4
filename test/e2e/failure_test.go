package e2e

import (
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
)

func TestFailedStarts(t *testing.T) {
	n := startNode(t, harness.GantryOptions{})
	b := n.pod(t, "bad")
	tests := []struct {
		name   string
		change change
		words  string
	}{
		{"no-program", func(c *runtimeapi.ContainerConfig) { c.Command = []string{"/no-such-program"} }, "/no-such-program"},
		{"not-in-path", func(c *runtimeapi.ContainerConfig) { c.Command = []string{"no-such-word"} }, "no-such-word"},
		{"no-executable", func(c *runtimeapi.ContainerConfig) { c.Command = []string{"/etc/passwd"} }, "ermission denied"}, // crun does not name the file
		{"seccomp", secure(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "/no/such/profile.json"}
		}), "/no/such/profile.json"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			id := b.create(t, tt.name, "true", tt.change)
			_, err := n.StartContainer(callContext(t, callTimeout), &runtimeapi.StartContainerRequest{ContainerId: id})
			if err == nil || !strings.Contains(err.Error(), tt.words) {
				t.Errorf("start: %v, want %q in it", err, tt.words)
			}
			st := n.state(t, id)
			if st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode != 128 || st.Reason != "StartError" || !strings.Contains(st.Message, tt.words) || st.FinishedAt == 0 {
				t.Errorf("status: %v", st)
			}
		})
	}
	b.output(t, "good", "true")
}

func TestFailingNetworkPlugin(t *testing.T) {
	n, gate := gatedNode(t)
	gate.set(t, "broken")
	c := sandboxConfig(t, "unplugged")
	_, err := n.askSandbox(callContext(t, callTimeout), c)
	if err == nil || !strings.Contains(err.Error(), "no cable in the socket") {
		t.Errorf("run: %v, want the plugin's message", err)
	}
	n.wantNoPods(t)
	if a := n.Network.Addresses(t); len(a) > 0 {
		t.Errorf("addresses %q", a)
	}
	gate.clear(t, "broken")
	n.run(t, c).output(t, "c", "true")
}

// wantNoPods checks that nothing of any pod is left.
func (n *node) wantNoPods(t *testing.T) {
	t.Helper()
	if list := n.sandboxes(t); len(list) != 0 {
		t.Errorf("listed: %v", list)
	}
	if left := must(filepath.Glob(filepath.Join(n.RunDir, "pods", "*-*")))(t); len(left) > 0 {
		t.Errorf("left in the run directory: %q", left)
	}
	if left := must(filepath.Glob(filepath.Join(n.Dir, "pods", "*", "*-*")))(t); len(left) > 0 {
		t.Errorf("left in the data directory: %q", left)
	}
}

// conditions are those of Status by their type.
func (n *node) conditions(t *testing.T) map[string]*runtimeapi.RuntimeCondition {
	t.Helper()
	resp := must(n.Status(callContext(t, callTimeout), &runtimeapi.StatusRequest{}))(t)
	m := map[string]*runtimeapi.RuntimeCondition{}
	for _, c := range resp.Status.Conditions {
		m[c.Type] = c
	}
	return m
}

func TestMissingNetworkConfiguration(t *testing.T) {
	n := startNode(t, harness.GantryOptions{NoNetwork: true})
	got := n.conditions(t)
	if c := got[runtimeapi.NetworkReady]; c.Status || c.Reason != "NetworkPluginNotReady" || !strings.Contains(c.Message, filepath.Join(n.Base, "net.d")) {
		t.Errorf("network: %v", c)
	}
	if c := got[runtimeapi.RuntimeReady]; !c.Status {
		t.Errorf("runtime: %v", c)
	}
	_, err := n.askSandbox(callContext(t, callTimeout), sandboxConfig(t, "no-network"))
	if err == nil || !strings.Contains(err.Error(), filepath.Join(n.Base, "net.d")) {
		t.Errorf("run: %v", err)
	}
	n.wantNoPods(t)
	c := sandboxConfig(t, "host-network")
	c.Hostname = ""
	c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	n.run(t, c).output(t, "c", "true")
}

func TestMissingRuntime(t *testing.T) {
	const path = "/no/such/runtime"
	n := startNode(t, harness.GantryOptions{Args: config(t, "runtime: "+path)})
	got := n.conditions(t)
	if c := got[runtimeapi.RuntimeReady]; c.Status || c.Reason != "RuntimeNotReady" || !strings.Contains(c.Message, path) {
		t.Errorf("runtime: %v", c)
	}
	_, err := n.askSandbox(callContext(t, callTimeout), sandboxConfig(t, "no-runtime"))
	wantCode(t, err, codes.FailedPrecondition, path)
	n.wantNoPods(t)
}

func TestUnknownHandler(t *testing.T) {
	n := startNode(t, harness.GantryOptions{})
	_, err := n.RunPodSandbox(callContext(t, callTimeout), &runtimeapi.RunPodSandboxRequest{Config: sandboxConfig(t, "h"), RuntimeHandler: "kata"})
	wantCode(t, err, codes.InvalidArgument, "kata")
	b := n.pod(t, "missing-image")
	c := n.containerConfig("c", "true")
	c.Image.Image = n.registry.Ref("never:1")
	_, err = b.ask(callContext(t, callTimeout), c)
	wantCode(t, err, codes.NotFound, "never:1")
	b.remove(t)
	_, err = b.ask(callContext(t, callTimeout), n.containerConfig("c", "true"))
	wantCode(t, err, codes.NotFound, b.id)
}
