package harness

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/images"
)

// Containerd is the containerd of test/peers on directories of its own: what the
// benchmarks compare with, and what shows whether a failing test is the
// harness's fault.
type Containerd struct {
	*Process
	Endpoint string // unix://PATH
	Network  *Network
	programs string // directory of containerd and ctr
}

const containerdConfig = `version = 3
root = "%[5]s/root"
state = "%[1]s/state"
[grpc]
  address = "%[1]s/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "%[1]s/opt"
[plugins."io.containerd.nri.v1.nri"]
  disable = true
[plugins."io.containerd.transfer.v1.local"]
  config_path = "%[1]s/certs.d"
  max_concurrent_unpacks = %[6]d
[plugins."io.containerd.cri.v1.images"]
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "%[2]s"
  [plugins."io.containerd.cri.v1.images".registry]
    config_path = "%[1]s/certs.d"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["%[3]s"]
    conf_dir = "%[4]s"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
`

// ContainerdOptions vary how containerd is started.
type ContainerdOptions struct {
	Root string // of its data; a directory of its own unless set
	Env  []string
}

// containerdPrograms is the directory of what hack/build-peers builds.
var containerdPrograms = sync.OnceValues(func() (string, error) {
	root, err := Checkout()
	if err != nil {
		return "", err
	}
	cmd := exec.Command(filepath.Join(root, "hack", "build-peers"))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("build containerd: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
})

// ContainerdBuilt reports whether a containerd lies in the cache, so that tests that do
// without it need not wait for its build.
func ContainerdBuilt() bool {
	found, err := filepath.Glob(filepath.Join(images.DefaultCache(), "containerd-v*"))
	return err == nil && len(found) > 0
}

// StartContainerd starts a containerd that pulls from the registry, where it
// pushes a sandbox image. It unpacks as many layers at once as there are processors.
func StartContainerd(tb testing.TB, registry *Registry, o ContainerdOptions) *Containerd {
	tb.Helper()
	programs, err := containerdPrograms()
	if err != nil {
		tb.Fatal(err)
	}
	dir := Dir(tb)
	if o.Root == "" {
		o.Root = dir
	}
	pause, err := images.Pause(images.Options{})
	if err != nil {
		tb.Fatal(err)
	}
	registry.Push(tb, "pause:1", pause)
	WriteHosts(tb, filepath.Join(dir, "certs.d"), registry.Addr)
	c := &Containerd{Endpoint: "unix://" + filepath.Join(dir, "containerd.sock"), Network: NewNetwork(tb, dir), programs: programs}
	CheckLeaks(tb, LeakScope{Dirs: []string{dir}, Bridge: c.Network.Bridge})
	config := filepath.Join(dir, "config.toml")
	text := fmt.Sprintf(containerdConfig, dir, registry.Ref("pause:1"), CNIBinDir, c.Network.ConfDir, o.Root, runtime.NumCPU())
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		tb.Fatalf("write configuration of containerd: %v", err)
	}
	client := RawClient(tb, c.Endpoint)
	// It looks for its shim in PATH.
	env := append([]string{"PATH=" + programs + ":" + os.Getenv("PATH")}, o.Env...)
	c.Process = StartProcess(tb, dir, "containerd", []string{filepath.Join(programs, "containerd"), "--config", config}, env...)
	tb.Cleanup(func() {
		if c.Running() {
			RemovePods(tb, client)
		}
		c.Finish(tb)
	})
	c.WaitFor(tb, 30*time.Second, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		_, err := client.Version(ctx, &runtimeapi.VersionRequest{})
		return err
	})
	return c
}

// Program is the path of containerd or ctr.
func (c *Containerd) Program(name string) string { return filepath.Join(c.programs, name) }

// Command is ctr on this containerd, in the namespace of CRI.
func (c *Containerd) Command(args ...string) *exec.Cmd {
	flags := []string{"--address", strings.TrimPrefix(c.Endpoint, "unix://"), "--namespace", "k8s.io"}
	return exec.Command(c.Program("ctr"), append(flags, args...)...)
}
