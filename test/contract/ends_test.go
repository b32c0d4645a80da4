package contract

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestMailbox delivers letters torn, twice and never; TestRows/draining has one
// that comes late.
func TestMailbox(t *testing.T) {
	n := newNode(t)
	b := n.sandbox(t, "mail")
	for name, letter := range map[string]string{"torn": "1x", "empty": "", "long": strings.Repeat("9", 40)} {
		t.Run(name, func(t *testing.T) {
			id := b.start(t, name, forever)
			p := b.processes(t, id)
			n.Kill(t)
			end(t, p.Monitor.PID, p.Init.PID)
			n.write(t, id, letter)
			n.Start(t)
			n.exited(t, id, 255, "Unknown")
		})
	}
	t.Run("dated before the start", func(t *testing.T) {
		id := b.start(t, "early", forever)
		p := b.processes(t, id)
		n.Kill(t)
		end(t, p.Monitor.PID, p.Init.PID)
		past := time.Now().Add(-time.Hour)
		if err := os.Chtimes(n.write(t, id, "5"), past, past); err != nil {
			t.Fatal(err)
		}
		n.Start(t)
		if st := n.exited(t, id, 5, "Error"); st.FinishedAt < st.StartedAt {
			t.Errorf("it ended at %d, before its start at %d", st.FinishedAt, st.StartedAt)
		}
	})
	t.Run("twice", func(t *testing.T) {
		id := b.start(t, "twice", "exit 5")
		n.exited(t, id, 5, "Error")
		n.write(t, id, "6")
		n.Restart(t)
		n.exited(t, id, 5, "Error")
	})
}

// write puts a letter into a container's mailbox and returns its file.
func (n *node) write(t *testing.T, id, letter string) string {
	t.Helper()
	apps, err := filepath.Glob(filepath.Join(n.RunDir, "pods", uuid(id), "apps", "*"))
	if err != nil || len(apps) != 1 {
		t.Fatalf("run directory of %s: %v, err %v", id, apps, err)
	}
	file := filepath.Join(apps[0], "exit", id)
	if err := os.WriteFile(file, []byte(letter), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestReboot takes away what a boot takes: processes, mounts and the run
// directory, whose marker then is of another boot.
func TestReboot(t *testing.T) {
	n := newNode(t)
	b := n.sandbox(t, "reboot")
	done := b.start(t, "done", "exit 0")
	n.exited(t, done, 0, "Completed")
	running := b.start(t, "running", forever)
	created := b.create(t, "created", "exit 0")
	cli := n.sleeper(t)
	torn := b.create(t, "torn", "exit 0")
	n.Kill(t)
	n.tear(t, torn)
	n.reboot(t, running)
	n.Start(t)
	if b.ready(t) {
		t.Error("a sandbox of another boot is ready")
	}
	n.exited(t, done, 0, "Completed")
	n.exited(t, running, 255, "Unknown")
	if err := n.startID(t, created); err == nil {
		t.Error("a container was started in a sandbox of another boot")
	}
	if a := n.Network.Addresses(t); len(a) > 0 {
		t.Errorf("addresses that nobody gave back: %v", a)
	}
	if n.byID(t)[uuid(torn)] {
		t.Error("a pod of another boot that cannot be read is still there")
	}
	n.CLI(t, "run-prepared", "--detach", cli)
	n.CLI(t, "stop", "--force", cli)
	n.CLI(t, "rm", cli)
}

// tear moves a pod to run and leaves half of its record, as a power cut may.
func (n *node) tear(t *testing.T, id string) {
	t.Helper()
	u := uuid(id)
	pods := filepath.Join(n.Dir, "pods")
	if err := os.Rename(filepath.Join(pods, "prepared", u), filepath.Join(pods, "run", u)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(pods, "by-id", u, "pod.json"), []byte(`{"schema":1,"uu`), 0o600); err != nil {
		t.Fatal(err)
	}
}

// reboot ends the processes of containers and empties the run directory.
func (n *node) reboot(t *testing.T, containers ...string) {
	t.Helper()
	for _, id := range containers {
		p := n.processes(t, id)
		end(t, p.Monitor.PID, p.Init.PID)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if point := strings.Fields(line)[1]; strings.HasPrefix(point, n.RunDir+"/") {
			if err := syscall.Unmount(point, syscall.MNT_DETACH); err != nil {
				t.Errorf("unmount %s: %v", point, err)
			}
		}
	}
	if err := os.WriteFile(filepath.Join(n.RunDir, "pods", "boot"), []byte("another boot"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestGrandchild ends a container whose child holds its output open in a PID
// namespace that goes on: the exit code is not lost.
func TestGrandchild(t *testing.T) {
	n := newNode(t)
	b := n.sandboxOf(t, sandboxConfig(t, "grandchild", runtimeapi.NamespaceMode_POD))
	id := b.start(t, "parent", "sleep 1000 & exit 7")
	n.exited(t, id, 7, "Error")
}

// ociRuntime is one that works on every node: crun refuses some cgroup hierarchies.
func ociRuntime(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("runc")
	if err != nil {
		t.Skipf("needs runc (hack/deps): %v", err)
	}
	return path
}
