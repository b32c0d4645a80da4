package contract

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
)

// delTime is how long a CNI plugin may take to give a pod's network back.
const delTime = 30 * time.Second

// TestPluginHangs ends pods whose CNI plugin hangs, after another that has taken an
// address. TestStruck has what else hangs.
func TestPluginHangs(t *testing.T) {
	h := newHang(t, filepath.Join(harness.CNIBinDir, "portmap"))
	n := newNode(t, "--cni-bin-dir", h.dir)
	conf := filepath.Join(n.Network.ConfDir, "10-gantry.conflist")
	raw, err := os.ReadFile(conf)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(raw), `"portmap"`, `"hang"`, 1)
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	// Alone, because it needs another daemon.
	t.Run("ADD daemon killed", func(t *testing.T) { hangsInAddOfKilled(t, h, n) })
	t.Run("beside one another", func(t *testing.T) {
		for name, test := range map[string]func(*testing.T, *hang, *node){
			"DEL": hangsInDel, "DEL remove": hangsInRemove, "ADD": hangsInAdd, "ADD and DEL": hangsInBoth, "ADD of a command": hangsInCommand,
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				test(t, h, n)
			})
		}
	})
	n.CLI(t, "gc")
	if a := n.Network.Addresses(t); len(a) > 0 {
		t.Errorf("the sweep gave no address back: %v", a)
	}
	if found, content := n.doctor(t); !content {
		t.Errorf("the doctor finds %v", found)
	}
}

func hangsInDel(t *testing.T, h *hang, n *node) {
	b := n.sandbox(t, "del")
	id := b.start(t, "c", forever)
	h.hang(t, "del", "DEL")
	within(t, harness.Slowly(delTime+stopTime), func() { b.stop(t) })
	n.exited(t, id, 137, "Error")
	if b.ready(t) {
		t.Error("a stopped sandbox is ready")
	}
}

// hangsInRemove has the plugin be asked twice: for the stop, and when the files go.
func hangsInRemove(t *testing.T, h *hang, n *node) {
	b := n.sandbox(t, "remove")
	b.start(t, "c", forever)
	h.hang(t, "remove", "DEL")
	within(t, harness.Slowly(2*delTime+stopTime), func() {
		if _, err := n.RemovePodSandbox(call(t), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: b.id}); err != nil {
			t.Errorf("remove sandbox: %v", err)
		}
	})
	if n.listed(t, uuid(b.id)) {
		t.Error("a removed sandbox is listed")
	}
}

// hangsInAdd also asks for the same sandbox once more, which runs then.
func hangsInAdd(t *testing.T, h *hang, n *node) {
	b, ran := h.sandbox(t, n, "add", "ADD")
	within(t, harness.Slowly(stopTime), func() { b.stop(t) })
	h.stopped(t, ran)
	h.set(t, "add")
	again := n.sandboxOf(t, b.config)
	if !again.ready(t) {
		t.Error("the sandbox that was asked for again is not ready")
	}
	again.stop(t)
}

func hangsInBoth(t *testing.T, h *hang, n *node) {
	b, ran := h.sandbox(t, n, "both", "ADD", "DEL")
	within(t, harness.Slowly(delTime+stopTime), func() { b.stop(t) })
	h.stopped(t, ran)
	if n.listed(t, uuid(b.id)) {
		t.Error("a sandbox is still listed that nobody waits for")
	}
}

// hangsInAddOfKilled has another daemon stop the sandbox.
func hangsInAddOfKilled(t *testing.T, h *hang, n *node) {
	b, ran := h.sandbox(t, n, "killed", "ADD")
	n.Restart(t)
	within(t, harness.Slowly(stopTime), func() { b.stop(t) })
	h.stopped(t, ran)
	if b.ready(t) {
		t.Error("a stopped sandbox is ready")
	}
}

// hangsInCommand has a command stop the start of another one, which it waits for.
func hangsInCommand(t *testing.T, h *hang, n *node) {
	u := n.sleeper(t)
	h.hang(t, "", "ADD")
	run := n.Command(t, "run-prepared", "--cni-bin-dir", h.dir, "--detach", u)
	if err := run.Start(); err != nil {
		t.Fatal(err)
	}
	plugin := h.hangs(t, "")
	within(t, harness.Slowly(stopTime+5*time.Second), func() {
		if out, err := n.Command(t, "stop", "--force", u).CombinedOutput(); err == nil {
			t.Errorf("gantry stop says of a start that hangs that it has ended: %s", out)
		}
	})
	if err := run.Wait(); err == nil {
		t.Error("a pod has started whose plugin hung")
	}
	dead(t, plugin)
	if p := n.place(t, u); p != "prepared" {
		t.Errorf("after a start that failed the pod is in %q", p)
	}
	n.CLI(t, "rm", u)
}

func within(t *testing.T, most time.Duration, do func()) {
	t.Helper()
	start := time.Now()
	do()
	if took := time.Since(start); took > most {
		t.Errorf("took %v, more than %v", took, most)
	}
}

// hang is a CNI plugin before another that hangs in those commands for a pod that are
// set. A pod of the command line has no name.
type hang struct{ dir string }

func newHang(t *testing.T, real string) *hang {
	t.Helper()
	h := &hang{harness.Dir(t)}
	script := `#!/bin/sh
pod=$(echo "$CNI_ARGS" | sed -n 's/.*K8S_POD_NAME=\([^;]*\).*/\1/p')
if [ -e "` + h.dir + `/$CNI_COMMAND-$pod" ]; then
	echo $$ >"` + h.dir + `/pid-$pod"
	exec sleep 1000
fi
exec ` + real + "\n"
	if err := os.WriteFile(filepath.Join(h.dir, "hang"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return h
}

// hang has it hang in some commands until the end of the test.
func (h *hang) hang(t *testing.T, pod string, commands ...string) {
	t.Helper()
	h.set(t, pod, commands...)
	t.Cleanup(func() { h.set(t, pod) })
}

// set says in which commands it hangs from now on: no others.
func (h *hang) set(t *testing.T, pod string, commands ...string) {
	t.Helper()
	for _, c := range []string{"ADD", "DEL"} {
		if err := os.RemoveAll(filepath.Join(h.dir, c+"-"+pod)); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range commands {
		if err := os.WriteFile(filepath.Join(h.dir, c+"-"+pod), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// hangs waits until it hangs, and returns its process.
func (h *hang) hangs(t *testing.T, pod string) (pid int) {
	t.Helper()
	harness.Eventually(t, patience, func() string {
		raw, err := os.ReadFile(filepath.Join(h.dir, "pid-"+pod))
		if err != nil {
			return err.Error()
		}
		if _, err := fmt.Sscan(string(raw), &pid); err != nil {
			return err.Error()
		}
		return ""
	})
	return pid
}

// adding is a RunPodSandbox whose plugin hangs.
type adding struct {
	plugin int
	said   chan error
}

// sandbox asks for one and returns when its plugin hangs.
func (h *hang) sandbox(t *testing.T, n *node, name string, commands ...string) (*box, adding) {
	t.Helper()
	h.hang(t, name, commands...)
	b := &box{node: n, config: sandboxConfig(t, name, runtimeapi.NamespaceMode_POD)}
	a := adding{said: make(chan error, 1)}
	ctx, cancel := context.WithTimeout(t.Context(), callTimeout)
	go func() {
		defer cancel()
		_, err := n.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: b.config})
		a.said <- err
	}()
	a.plugin = h.hangs(t, name)
	b.id = n.idOf(t, name)
	return b, a
}

// stopped wants the call to fail and the plugin to be gone.
func (h *hang) stopped(t *testing.T, a adding) {
	t.Helper()
	dead(t, a.plugin)
	select {
	case err := <-a.said:
		if err == nil {
			t.Error("RunPodSandbox says that a sandbox runs that was stopped")
		}
	case <-time.After(callTimeout):
		t.Error("RunPodSandbox does not come to an end")
	}
}
