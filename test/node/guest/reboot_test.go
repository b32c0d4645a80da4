//go:build node

package guest

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// kept is what TestBeforeReboot leaves running, for TestAfterReboot.
type kept struct {
	Sandbox, Running, Done string // ids
	Prepared, Started      string // UUIDs of the command line
	Boot                   string
}

func bootID(t *testing.T) string {
	t.Helper()
	return sh(t, "cat /proc/sys/kernel/random/boot_id")
}

// TestBeforeReboot leaves pods behind in every state.
func TestBeforeReboot(t *testing.T) {
	n := connect(t)
	ref := n.busybox(t)
	// Not the harness's, which would remove the bridge.
	sh(t, "mkdir -p /etc/cni/net.d "+keepDir)
	b := n.run(t, "reboots", ref, "")
	k := kept{
		Sandbox: b.id, Boot: bootID(t),
		Running: b.start(t, "running", "while :; do sleep 1; done", 0),
		Done:    b.start(t, "done", "exit 3", 0),
	}
	n.waitExited(t, k.Done)
	k.Prepared = sh(t, "gantry prepare --quiet docker://"+ref+" --exec=/bin/echo -- prepared ran")
	k.Started = sh(t, "gantry run-prepared --detach $(gantry prepare --quiet docker://"+ref+" --exec=/bin/sleep -- 1000)")
	data, err := json.Marshal(k)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(keepDir, "kept.json"), data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestAfterReboot finds them: nothing runs, nothing is forgotten, nothing leaks.
func TestAfterReboot(t *testing.T) {
	n := connect(t)
	var k kept
	data, err := os.ReadFile(filepath.Join(keepDir, "kept.json"))
	if err == nil {
		err = json.Unmarshal(data, &k)
	}
	if err != nil || k.Boot == bootID(t) {
		t.Fatalf("no reboot: %v", err)
	}
	resp, err := n.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
	if err != nil || len(resp.Items) != 1 || resp.Items[0].Id != k.Sandbox || resp.Items[0].State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("sandboxes: %v, %v", resp, err)
	}
	if st := n.state(t, k.Done); st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode != 3 {
		t.Errorf("the container that had ended: %v", st)
	}
	if st := n.state(t, k.Running); st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode == 0 {
		t.Errorf("the container that ran: %v", st)
	}
	for _, v := range list(t) {
		if v.State == "running" {
			t.Errorf("listed as running: %v", v)
		}
	}
	if out := sh(t, "gantry run-prepared "+k.Prepared); !strings.Contains(out, "prepared ran") {
		t.Errorf("the prepared pod says %q", out)
	}
	n.remove(t, k.Sandbox)
	sh(t, "gantry rm "+k.Prepared+" "+k.Started+" && gantry gc")
	checkNothingLeft(t)
	if addresses, _ := filepath.Glob("/etc/cni/ipam/*/10.*"); len(addresses) > 0 {
		t.Errorf("addresses are still leased: %v", addresses)
	}
}
