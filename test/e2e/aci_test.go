package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
)

// busyboxACI makes an appc image of this machine's busybox, whose app has the user,
// the environment and the working directory that are looked for below.
func busyboxACI(t *testing.T, more string) string {
	t.Helper()
	dir := t.TempDir()
	script := `mkdir -p "$1/rootfs/bin" && cp /bin/busybox "$1/rootfs/bin/sh" && for l in $(ldd /bin/busybox 2>/dev/null | grep -o "/[^ ]*"); do mkdir -p "$1/rootfs$(dirname "$l")" && cp -L "$l" "$1/rootfs$l"; done`
	if out, err := exec.Command("sh", "-c", script, "sh", dir).CombinedOutput(); err != nil {
		t.Fatalf("copy busybox: %v: %s", err, out)
	}
	arch := map[string]string{"amd64": "amd64", "arm64": "aarch64"}[runtime.GOARCH]
	manifest := fmt.Sprintf(`{"acKind":"ImageManifest","acVersion":"0.8.11","name":"example.com/sh","labels":[{"name":"os","value":"linux"},{"name":"arch","value":%q}],
		"app":{"exec":["/bin/sh","-c","exit 3"],"user":"1003","group":"1004","workingDirectory":"/bin","environment":[{"name":"FROM","value":"image"}]%s}}`, arch, more)
	if err := os.WriteFile(filepath.Join(dir, "manifest"), []byte(manifest), 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "sh.aci")
	if out, err := exec.Command("tar", "-C", dir, "-czf", file, "manifest", "rootfs").CombinedOutput(); err != nil {
		t.Fatalf("tar: %v: %s", err, out)
	}
	return file
}

// TestACIOverCRI holds that an appc image which the command line has fetched is one
// for a kubelet too, by its id and by that of appc.
func TestACIOverCRI(t *testing.T) {
	n := startNode(t, harness.GantryOptions{})
	id := strings.TrimSpace(n.CLI(t, "fetch", "--quiet", busyboxACI(t, "")))
	status, err := n.ImageStatus(callContext(t, callTimeout), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: id}})
	if err != nil || status.GetImage().GetId() != id || status.GetImage().GetUid().GetValue() != 1003 {
		t.Fatalf("status of %s: %v, %v", id, status, err)
	}
	b := n.pod(t, "aci")
	script := `echo "$FROM in $PWD"; while read -r key value rest; do case $key in Uid:|Gid:) echo "$key $value";; esac; done </proc/self/status`
	got := b.output(t, "a", script, func(c *runtimeapi.ContainerConfig) {
		c.Image.Image = id
		c.Command = []string{"/bin/sh", "-c", script}
	})
	for _, want := range []string{"image in /bin", "Uid: 1003", "Gid: 1004"} {
		if !strings.Contains(got, want) {
			t.Errorf("it wrote\n%swithout %q", got, want)
		}
	}
	own := b.start(t, "b", "", func(c *runtimeapi.ContainerConfig) { c.Image.Image, c.Command = id, nil })
	if st := b.waitExited(t, own); st.ExitCode != 3 {
		t.Errorf("its own app exited with %d: %s", st.ExitCode, st.Message)
	}
	// What the image asks for and nobody honours.
	hooked := strings.TrimSpace(n.CLI(t, "fetch", "--quiet", busyboxACI(t, `,"eventHandlers":[{"name":"post-stop","exec":["/bin/sh"]}]`)))
	c := b.containerConfig("c", "true")
	c.Image.Image = hooked
	if _, err := b.ask(callContext(t, callTimeout), c); err == nil || !strings.Contains(err.Error(), `event handler "post-stop"`) {
		t.Errorf("with an event handler: %v", err)
	}
}
