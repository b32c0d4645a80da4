package contract

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
)

// TestRows brings real pods into each row of the state table of
// docs/pod-lifecycle.md, which names these tests.
func TestRows(t *testing.T) {
	n := newNode(t)
	b := n.sandbox(t, "rows")
	bystander := b.start(t, "bystander", forever)
	was := n.processes(t, bystander)
	for _, row := range []struct {
		name string
		test func(*testing.T, *box)
	}{
		{"nowhere", rowNowhere},
		{"prepare", rowPrepare},
		{"prepare-sandbox", rowPrepareSandbox},
		{"prepared", rowPrepared},
		{"refused", rowRefused},
		{"ended", rowEnded},
		{"starting", rowStarting},
		{"running", rowRunning},
		{"unmonitored", rowUnmonitored},
		{"draining", rowDraining},
		{"lost", rowLost},
		{"sandbox", rowSandbox},
		{"garbage", rowGarbage},
		{"garbage-sandbox", rowGarbageSandbox},
	} {
		t.Run(row.name, func(t *testing.T) { row.test(t, b) })
	}
	n.wantState(t, bystander, "RUNNING")
	if is := n.processes(t, bystander); is != was {
		t.Errorf("the bystander was %v and is %v", was, is)
	}
	harness.Unbroken(t, filepath.Join(b.config.LogDirectory, "bystander.log"))
}

// rowNowhere is a directory without a link: swept, but not while it is locked.
func rowNowhere(t *testing.T, b *box) {
	const u = "00000000-0000-4000-8000-000000000001"
	dir := filepath.Join(b.Dir, "pods/by-id", u)
	if err := os.Mkdir(dir, 0o750); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	b.CLI(t, "gc")
	if _, err := os.Stat(dir); err != nil || b.listed(t, u) {
		t.Errorf("a pod in the making was swept or listed: %v", err)
	}
	f.Close()
	b.CLI(t, "gc")
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("nobody holds the directory and it stays: %v", err)
	}
}

// stopped starts a command that stops itself at a point, and waits until it has.
func stopped(t *testing.T, b *box, point string, args ...string) *exec.Cmd {
	t.Helper()
	hits := filepath.Join(t.TempDir(), "hits")
	cmd := b.Command(t, args[0], args[1:]...)
	cmd.Env = append(cmd.Env, "GANTRY_FAILPOINT="+point+"=stop", "GANTRY_FAILPOINT_HITS="+hits)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kill(cmd) })
	harness.Eventually(t, patience, func() string {
		raw, _ := os.ReadFile(hits)
		if strings.Contains(string(raw), point+"\n") {
			return ""
		}
		return "not at " + point
	})
	return cmd
}

// kill ends a command, whose error then says nothing new; again is fine.
func kill(cmd *exec.Cmd) {
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

func (n *node) byID(t *testing.T) map[string]bool {
	t.Helper()
	all := map[string]bool{}
	for _, u := range entries(t, filepath.Join(n.Dir, "pods/by-id")) {
		all[u] = true
	}
	return all
}

// added is the one pod that was not there before.
func (n *node) added(t *testing.T, before map[string]bool) string {
	t.Helper()
	for u := range n.byID(t) {
		if !before[u] {
			return u
		}
	}
	t.Fatal("no pod was added")
	return ""
}

func rowPrepare(t *testing.T, b *box) {
	before := b.byID(t)
	cmd := stopped(t, b, "pod-in-prepare", "prepare", "--quiet", "docker://"+b.image)
	u := b.added(t, before)
	b.Restart(t) // sweeps; gc would wait for the trees that the prepare holds
	if p := b.place(t, u); p != "prepare" || b.listed(t, u) {
		t.Errorf("a prepare in progress is in %q", p)
	}
	kill(cmd)
	b.CLI(t, "gc")
	if b.byID(t)[u] {
		t.Error("an aborted prepare was not swept")
	}
	cmd = stopped(t, b, "record-written", "prepare", "--quiet", "docker://"+b.image)
	u = b.added(t, before)
	kill(cmd)
	b.CLI(t, "rm", u)
	if b.place(t, u) != "" || b.byID(t)[u] {
		t.Error("an aborted prepare was not removed")
	}
}

func rowPrepareSandbox(t *testing.T, b *box) {
	u := b.sandboxKilled(t, "pod-in-prepare", sandboxConfig(t, "prepare", runtimeapi.NamespaceMode_POD))
	if p := b.place(t, u); p != "prepare" {
		t.Errorf("a sandbox that is prepared is in %q", p)
	}
	b.Start(t)
	if b.listed(t, u) || b.byID(t)[u] {
		t.Error("an aborted prepare of a sandbox was not swept")
	}
}

func rowPrepared(t *testing.T, b *box) {
	id := b.create(t, "prepared", "exit 0")
	b.wantState(t, id, "CREATED")
	b.Restart(t)
	b.wantState(t, id, "CREATED")
}

// rowRefused is a container whose start finds, before it makes anything, that it cannot be.
func rowRefused(t *testing.T, b *box) {
	id := b.create(t, "refused", "exit 0")
	if err := os.Truncate(filepath.Join(b.Dir, "pods/by-id", uuid(id), "manifest"), 1); err != nil {
		t.Fatal(err)
	}
	if err := b.startID(t, id); err == nil {
		t.Error("a container without a manifest was started")
	}
	b.exited(t, id, 128, "StartError")
}

func rowEnded(t *testing.T, b *box) {
	id := b.start(t, "ended", "exit 3")
	b.exited(t, id, 3, "Error")
	b.Restart(t)
	b.exited(t, id, 3, "Error")
	if err := b.startID(t, id); err == nil {
		t.Error("an ended container was started again")
	}
}

// sleeper is a prepared pod of the command line.
func (n *node) sleeper(t *testing.T) string {
	t.Helper()
	return strings.TrimSpace(n.CLI(t, "prepare", "--quiet", "docker://"+n.image, "--exec", "/bin/sleep", "--", "1000"))
}

func rowStarting(t *testing.T, b *box) {
	u := b.sleeper(t)
	cmd := stopped(t, b, "container-created", "run-prepared", "--detach", u)
	b.CLI(t, "gc") // must not wait for what somebody holds, nor undo it
	if p := b.place(t, u); p != "run" {
		t.Errorf("a pod that starts is in %q", p)
	}
	kill(cmd)
	b.CLI(t, "gc")
	if p := b.place(t, u); p != "prepared" {
		t.Errorf("a start that was cut short left the pod in %q", p)
	}
	b.CLI(t, "rm", u)
}

func rowRunning(t *testing.T, b *box) {
	id := b.start(t, "running", forever)
	b.wantState(t, id, "RUNNING")
	was := b.processes(t, id)
	b.Restart(t)
	b.wantState(t, id, "RUNNING")
	if is := b.processes(t, id); is != was {
		t.Errorf("was %v, is %v", was, is)
	}
	end(t, was.Init.PID)
	dead(t, was.Monitor.PID)
	b.exited(t, id, 137, "Error")
}

func rowUnmonitored(t *testing.T, b *box) {
	id := b.start(t, "unmonitored", "trap 'exit 4' TERM; while :; do "+pause+"; done")
	was := b.processes(t, id)
	end(t, was.Monitor.PID)
	b.wantState(t, id, "RUNNING")
	b.Restart(t)
	b.CLI(t, "gc")
	b.wantState(t, id, "RUNNING")
	if err := b.startID(t, id); err == nil {
		t.Error("an unmonitored container was started again")
	}
	if is := b.processes(t, id); is != was {
		t.Errorf("was %v, is %v", was, is)
	}
	b.stopID(t, id, 5)
	b.exited(t, id, 255, "Unknown")
}

func rowDraining(t *testing.T, b *box) {
	id := b.start(t, "draining", forever)
	p := b.processes(t, id)
	send(t, p.Monitor.PID, syscall.SIGSTOP)
	end(t, p.Init.PID)
	b.wantState(t, id, "RUNNING")
	send(t, p.Monitor.PID, syscall.SIGCONT) // the letter comes late
	b.exited(t, id, 137, "Error")
}

func rowLost(t *testing.T, b *box) {
	id := b.start(t, "lost", forever)
	p := b.processes(t, id)
	b.Kill(t)
	end(t, p.Monitor.PID, p.Init.PID)
	b.Start(t)
	st := b.exited(t, id, 255, "Unknown")
	b.Restart(t)
	if again := b.exited(t, id, 255, "Unknown"); again.FinishedAt != st.FinishedAt {
		t.Errorf("the record was written again: ended at %d, then at %d", st.FinishedAt, again.FinishedAt)
	}
}

// sandboxKilled has the daemon die at a point of a sandbox's life, and returns the sandbox.
func (n *node) sandboxKilled(t *testing.T, point string, config *runtimeapi.PodSandboxConfig) (uuid string) {
	t.Helper()
	before := n.byID(t)
	n.Environ("GANTRY_FAILPOINT=" + point)
	n.Restart(t)
	if _, err := n.RunPodSandbox(call(t), &runtimeapi.RunPodSandboxRequest{Config: config}); err == nil {
		t.Fatalf("the daemon passed %s", point)
	}
	<-n.Exited()
	n.Environ()
	return n.added(t, before)
}

func rowSandbox(t *testing.T, n *box) {
	config := sandboxConfig(t, "ready", runtimeapi.NamespaceMode_POD)
	u := n.sandboxKilled(t, "pod-prepared", config)
	n.Start(t)
	if p := n.place(t, u); p != "prepared" || !n.listed(t, u) {
		t.Errorf("a prepared sandbox is in %q, or not listed", p)
	}
	b := n.sandboxOf(t, config)
	if !b.ready(t) {
		t.Error("a sandbox that runs is not ready")
	}
	b.Restart(t)
	if !b.ready(t) {
		t.Error("the daemon's end took a sandbox's readiness")
	}
	end(t, b.processes(t, b.id).Init.PID)
	harness.Eventually(t, patience, func() string {
		if b.ready(t) {
			return "a sandbox without its init is ready"
		}
		return ""
	})
	b.stop(t)
	b.stop(t)
	b.Restart(t)
	if b.ready(t) {
		t.Error("a stopped sandbox is ready")
	}
}

func rowGarbage(t *testing.T, b *box) {
	for _, place := range garbage {
		u := b.sleeper(t)
		b.toGarbage(t, u, place)
		b.CLI(t, "gc")
		if p := b.place(t, u); p != "" || b.byID(t)[u] {
			t.Errorf("a pod in %s was not deleted: %q", place, p)
		}
	}
}

func rowGarbageSandbox(t *testing.T, b *box) {
	for _, place := range garbage {
		u := b.sandboxKilled(t, "pod-prepared", sandboxConfig(t, place, runtimeapi.NamespaceMode_POD))
		b.toGarbage(t, u, place)
		b.Start(t)
		if p := b.place(t, u); p != "" || b.byID(t)[u] || b.listed(t, u) {
			t.Errorf("a sandbox in %s was not deleted: %q", place, p)
		}
	}
}

// garbage are the places of pods that are being deleted.
var garbage = []string{"garbage", "exited-garbage"}

// toGarbage brings a prepared pod to where a deletion has been cut short: in one of both
// places it took the record first.
func (n *node) toGarbage(t *testing.T, u, place string) {
	t.Helper()
	pods := filepath.Join(n.Dir, "pods")
	if err := os.Rename(filepath.Join(pods, "prepared", u), filepath.Join(pods, place, u)); err != nil {
		t.Fatal(err)
	}
	if place != "garbage" {
		return
	}
	if err := os.Remove(filepath.Join(pods, "by-id", u, "pod.json")); err != nil {
		t.Fatal(err)
	}
}
