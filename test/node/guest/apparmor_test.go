//go:build node

package guest

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// denyWrites is a profile of the node that lets nothing be written.
const denyWrites = `profile gantry-test-deny-writes flags=(attach_disconnected) {
  file,
  capability,
  signal,
  deny /** w,
}
`

const profileList = "/sys/kernel/security/apparmor/profiles"

// TestAppArmor confines containers: by default, by a profile of the node, not at all.
func TestAppArmor(t *testing.T) {
	n := connect(t)
	if resp, err := n.Status(t.Context(), &runtimeapi.StatusRequest{Verbose: true}); err != nil || resp.Info["apparmor"] != "enabled, RuntimeDefault is gantry-default" {
		t.Errorf("status: %v, %v", resp.GetInfo()["apparmor"], err)
	}
	sh(t, "apparmor_parser -rK <<'EOF'\n"+denyWrites+"EOF")
	t.Cleanup(func() { sh(t, "apparmor_parser -R <<'EOF'\n"+denyWrites+"EOF") })
	ref := n.busybox(t)
	b := n.run(t, "apparmor", ref, "")
	defer n.remove(t, b.id)
	boss := n.runConfig(t, &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "apparmor-privileged", Namespace: "default", Uid: "uid-apparmor-privileged"},
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			Privileged: true, NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
		}},
	}, ref)
	defer n.remove(t, boss.id)

	type security = runtimeapi.LinuxContainerSecurityContext
	type profile = runtimeapi.SecurityProfile
	const localhost = "localhost/gantry-test-deny-writes"
	for _, c := range []struct {
		name    string
		sec     *security
		label   string
		refused string // a script that the profile makes fail
		allowed string
	}{
		{"default", &security{}, "gantry-default (enforce)", "echo 1 >/proc/sys/kernel/panic", "echo x >/tmp-file && echo 0 >/proc/self/oom_score_adj && kill -0 1"},
		{"runtime-default", &security{Apparmor: &profile{}}, "gantry-default (enforce)", "mkdir -p /m && mount -t tmpfs none /m", "true"},
		{"localhost", &security{Apparmor: &profile{ProfileType: 2, LocalhostRef: localhost}}, "gantry-test-deny-writes (enforce)", "echo x >/tmp-file", "true"},
		{"localhost-string", &security{ApparmorProfile: localhost}, "gantry-test-deny-writes (enforce)", "echo x >/tmp-file", "true"},
		{"unconfined", &security{Apparmor: &profile{ProfileType: 1}}, "unconfined", "false", "echo 0 >/proc/sys/kernel/panic && mkdir -p /m && mount -t tmpfs none /m"},
		{"privileged", &security{Privileged: true}, "unconfined", "false", "mkdir -p /m && mount -t tmpfs none /m"},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := b
			if c.sec.Privileged {
				in = boss
			}
			// What is not the profile's doing must not refuse: /proc/sys is writable, and
			// mounts are allowed by the capability.
			c.sec.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}
			c.sec.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
			id := in.startConfined(t, c.name, c.sec)
			if got := n.exec(t, id, "cat /proc/1/attr/current"); got != c.label {
				t.Errorf("main process is %q, want %q", got, c.label)
			}
			if got := n.exec(t, id, "cat /proc/self/attr/current"); got != c.label {
				t.Errorf("exec is %q, want %q", got, c.label)
			}
			resp, err := n.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", c.refused}, Timeout: 60})
			if err != nil || resp.ExitCode == 0 || c.refused != "false" && !strings.Contains(strings.ToLower(string(resp.Stderr)), "denied") {
				t.Errorf("%s: %v, %v", c.refused, err, resp)
			}
			n.exec(t, id, c.allowed)
			if _, err := n.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 20}); err != nil {
				t.Errorf("stop: %v", err)
			}
		})
	}
	for name, sec := range map[string]*security{
		"missing":        {Apparmor: &profile{ProfileType: 2, LocalhostRef: "localhost/gantry-test-none"}},
		"missing-string": {ApparmorProfile: "localhost/gantry-test-none"},
	} {
		resp, err := n.CreateContainer(t.Context(), b.confined(name, sec))
		if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "gantry-test-none") || resp.GetContainerId() != "" {
			t.Errorf("%s: %v, %v", name, resp, err)
		}
	}
	// The command line's containers have it too, and bring it back when it is gone.
	sh(t, "printf 'profile gantry-default {}' | apparmor_parser -R && ! grep gantry-default "+profileList)
	if out := sh(t, "gantry run --net=none --quiet docker://"+ref+" --exec=/bin/cat -- /proc/self/attr/current"); !strings.Contains(out, "gantry-default (enforce)") {
		t.Errorf("gantry run: %s", out)
	}
	sh(t, "gantry gc --grace-period=0")
}

// runConfig runs a sandbox of a configuration.
func (n *node) runConfig(t *testing.T, c *runtimeapi.PodSandboxConfig, image string) *box {
	t.Helper()
	resp, err := n.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: c})
	if err != nil {
		t.Fatalf("run sandbox: %v", err)
	}
	return &box{n, resp.PodSandboxId, image, c}
}

// confined is a request for a container that sleeps until it is told to stop.
func (b *box) confined(name string, sec *runtimeapi.LinuxContainerSecurityContext) *runtimeapi.CreateContainerRequest {
	return &runtimeapi.CreateContainerRequest{
		PodSandboxId: b.id, SandboxConfig: b.config,
		Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: name},
			Image:    &runtimeapi.ImageSpec{Image: b.image},
			Command:  []string{"sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1; done"},
			Linux:    &runtimeapi.LinuxContainerConfig{SecurityContext: sec},
		},
	}
}

func (b *box) startConfined(t *testing.T, name string, sec *runtimeapi.LinuxContainerSecurityContext) string {
	t.Helper()
	created, err := b.CreateContainer(t.Context(), b.confined(name, sec))
	if err != nil {
		t.Fatalf("create: %v", err)
	}
	if _, err := b.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: created.ContainerId}); err != nil {
		t.Fatalf("start: %v", err)
	}
	return created.ContainerId
}
