package harness

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/images"
)

// Containerd is Debian's containerd on directories of its own: what the
// benchmarks compare with, and what shows whether a failing test is the
// harness's fault.
type Containerd struct {
	*Process
	Endpoint string // unix://PATH
	Network  *Network
}

const containerdConfig = `version = 2
root = "%[5]s/root"
state = "%[1]s/state"
[grpc]
  address = "%[1]s/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "%[1]s/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "%[2]s"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "%[3]s"
    conf_dir = "%[4]s"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "%[1]s/certs.d"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
`

// StartContainerd starts a containerd that pulls from the registry, where it
// pushes a sandbox image. Its data lies in root; empty: a directory of its own.
func StartContainerd(tb testing.TB, registry *Registry, root string) *Containerd {
	tb.Helper()
	dir := Dir(tb)
	if root == "" {
		root = dir
	}
	pause, err := images.Pause(images.Options{})
	if err != nil {
		tb.Fatal(err)
	}
	registry.Push(tb, "pause:1", pause)
	WriteHosts(tb, filepath.Join(dir, "certs.d"), registry.Addr)
	c := &Containerd{Endpoint: "unix://" + filepath.Join(dir, "containerd.sock"), Network: NewNetwork(tb, dir)}
	CheckLeaks(tb, LeakScope{Dirs: []string{dir}, Bridge: c.Network.Bridge})
	config := filepath.Join(dir, "config.toml")
	text := fmt.Sprintf(containerdConfig, dir, registry.Ref("pause:1"), CNIBinDir, c.Network.ConfDir, root)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		tb.Fatalf("write configuration of containerd: %v", err)
	}
	client := RawClient(tb, c.Endpoint)
	c.Process = StartProcess(tb, dir, "containerd", []string{"containerd", "--config", config})
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
