package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
)

// inside names the processes that live in a namespace of a sandbox.
func (b *box) inside(t *testing.T, namespace string) []string {
	t.Helper()
	var pin syscall.Stat_t
	pins := must(filepath.Glob(filepath.Join(b.RunDir, "pods", "*", "ns", namespace)))(t)
	for _, p := range pins {
		if uuid := strings.ReplaceAll(filepath.Base(filepath.Dir(filepath.Dir(p))), "-", ""); strings.HasPrefix(b.id, uuid) {
			if err := syscall.Stat(p, &pin); err != nil {
				t.Fatal(err)
			}
		}
	}
	if pin.Ino == 0 {
		t.Fatalf("sandbox %s pins no %s namespace: %q", b.id, namespace, pins)
	}
	var names []string
	for _, ns := range must(filepath.Glob("/proc/[0-9]*/ns/" + namespace))(t) {
		var has syscall.Stat_t
		if syscall.Stat(ns, &has) == nil && has.Ino == pin.Ino {
			name, _ := os.ReadFile(filepath.Join(filepath.Dir(filepath.Dir(ns)), "comm")) // it may have ended
			names = append(names, strings.TrimSpace(string(name)))
		}
	}
	return names
}

// TestNoPauseContainer holds that a sandbox has no process of its own, but for the init of a
// shared PID namespace, and needs no image.
func TestNoPauseContainer(t *testing.T) {
	n := startNode(t, harness.GantryOptions{})
	b := n.pod(t, "empty")
	for _, namespace := range []string{"net", "ipc", "uts"} {
		if got := b.inside(t, namespace); len(got) != 0 {
			t.Errorf("in its %s namespace: %q", namespace, got)
		}
	}
	id := b.start(t, "c", "exec sleep 1000")
	if got := b.inside(t, "net"); len(got) != 1 || got[0] != "sleep" {
		t.Errorf("beside its container: %q", got)
	}
	n.stop(t, id, 0)
	c := sandboxConfig(t, "shared")
	c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	if got := n.run(t, c).inside(t, "net"); len(got) != 1 || got[0] != "catatonit" {
		t.Errorf("in a sandbox with a PID namespace: %q", got)
	}
	if images := must(n.ListImages(callContext(t, callTimeout), &runtimeapi.ListImagesRequest{}))(t).Images; len(images) != 1 {
		t.Errorf("images: %v", images)
	}
}
