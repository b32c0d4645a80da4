package contract

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/images"
)

// blows are the system calls that the second killer knows: it kills gantry as it
// enters the n-th of one of them. It has never heard of our points.
var blows = []string{"fsync", "renameat", "renameat2", "mount", "unlinkat", "symlinkat"}

// mostBlows ends the count, which a command that never gets by would go on with.
const mostBlows = 100

// TestKilledBlindly kills each command at the n-th of each system call, for every n
// until the command ends by itself, which is at once where it does not make the call. strace
// counts for each thread, so a few moments are met twice and none is left out but those of
// the busiest thread.
func TestKilledBlindly(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("runs containers: needs root")
	}
	if _, err := exec.LookPath("strace"); err != nil {
		t.Skipf("needs strace (hack/deps): %v", err)
	}
	registry := harness.StartRegistry(t)
	img, err := images.Pause(images.Options{})
	if err != nil {
		t.Fatal(err)
	}
	registry.Push(t, "contract/pause:1", img)
	g := harness.NewGantry(t, harness.GantryOptions{Registries: []string{registry.Addr}, Config: spoolAll})
	other, err := images.Stack(images.Options{})
	if err != nil {
		t.Fatal(err)
	}
	b := &blind{g: g, image: "docker://" + registry.Ref("contract/pause:1"), peace: newPeace(t, g, registry, other)}
	for i, c := range b.cases() {
		t.Run(c.name, func(t *testing.T) {
			for j, call := range blows {
				// Of a sample every fifth pair, which are other calls for each command.
				if (i*len(blows)+j)%min(stride(t), 5) == 0 {
					t.Run(call, func(t *testing.T) { b.every(t, c, call) })
				}
			}
			b.empty(t)
		})
	}
	b.peace.unbroken(t)
	t.Logf("%d kills", b.kills)
}

// blind leads many small lives, each with one blow.
type blind struct {
	g     *harness.Gantry
	image string
	peace *peace
	kills int
}

// blow is a command that is killed, what comes before it and what must hold after.
type blow struct {
	name  string
	setUp func(t *testing.T) (args []string)
	again func(t *testing.T, args []string)
}

func (b *blind) cases() []blow {
	return []blow{
		{"fetch", b.noImage, b.fetchAgain},
		{"prepare", b.withImage, b.prepareAgain},
		{"run-prepared", b.prepared, b.runAgain},
		{"stop", b.stoppable, b.stopAgain},
		{"rm of a running pod", b.running, b.rmAgain},
		{"rm of a prepared pod", b.removable, b.rmAgain},
		{"image rm", b.removableImage, b.imageRmAgain},
		{"gc", b.garbage, b.gcAgain},
	}
}

// every kills at the first, the second … call (every stride-th) until the command gets by.
func (b *blind) every(t *testing.T, c blow, call string) {
	t.Helper()
	already := b.kills
	for n := 1; n <= mostBlows; n += stride(t) {
		args := c.setUp(t)
		killed := b.strike(t, call, n, args)
		c.again(t, args)
		b.peace.undone(t, "")
		if t.Failed() {
			t.Fatalf("after gantry %q was killed at %s number %d", args, call, n)
		}
		if !killed {
			t.Logf("%d kills", b.kills-already)
			return
		}
		b.kills++
	}
	t.Fatalf("%s still meets %s after %d blows", c.name, call, mostBlows)
}

// strike runs a command below strace and says whether it was killed. Programs that
// it starts are let go at their execve.
func (b *blind) strike(t *testing.T, call string, n int, args []string) bool {
	t.Helper()
	cmd := b.g.Command(t, args[0], args[1:]...)
	trace := []string{
		"strace", "-f", "-qq", "-b", "execve", "-o", "/dev/null", "-e", "trace=" + call, "-e", "signal=none",
		"-e", fmt.Sprintf("inject=%s:signal=SIGKILL:when=%d", call, n),
	}
	path, err := exec.LookPath(trace[0])
	if err != nil {
		t.Fatal(err)
	}
	cmd.Args, cmd.Path = append(trace, cmd.Args...), path
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	l := &life{}
	if err := cmd.Run(); err != nil && !l.wasKilled(err) {
		t.Fatalf("strace %q: %v\n%s", cmd.Args, err, stderr.Bytes())
	}
	return l.killed
}

func (b *blind) cli(t *testing.T, args ...string) string {
	t.Helper()
	return strings.TrimSpace(b.g.CLI(t, args[0], args[1:]...))
}

// empty removes all pods and images but the bystander's, and looks whether nothing else is left.
func (b *blind) empty(t *testing.T) {
	t.Helper()
	b.clearPods(t)
	if _, err := (&life{t: t, g: b.g}).try("image", "rm", strings.TrimPrefix(b.image, "docker://")); err != nil && !strings.Contains(err.Error(), "not found") {
		t.Error(err)
	}
	b.cli(t, "gc", "--grace-period=0s", "--expire-prepared=0s")
	b.peace.restored(t)
}

func (b *blind) clearPods(t *testing.T) {
	t.Helper()
	b.cli(t, "gc", "--grace-period=0s", "--expire-prepared=0s")
	for _, u := range b.pods(t) {
		b.cli(t, "rm", "--force", u)
	}
}

// pods are the UUIDs of all pods that are listed but the bystander. Each must be whole, or
// be said to be in the making.
func (b *blind) pods(t *testing.T) []string {
	t.Helper()
	var list []struct{ UUID, State string }
	if err := json.Unmarshal([]byte(b.cli(t, "list", "--format=json")), &list); err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, p := range list {
		if p.UUID == b.peace.bystander {
			continue
		}
		if p.State != "embryo" && p.State != "preparing" {
			b.cli(t, "cat-manifest", p.UUID)
		}
		all = append(all, p.UUID)
	}
	return all
}

func (b *blind) noImage(t *testing.T) []string {
	t.Helper()
	b.empty(t)
	return []string{"fetch", "--quiet", b.image}
}

func (b *blind) fetchAgain(t *testing.T, args []string) {
	t.Helper()
	whole(t, b.g.Dir)
	b.cli(t, args...)
	whole(t, b.g.Dir)
}

func (b *blind) withImage(t *testing.T) []string {
	t.Helper()
	b.cli(t, "fetch", "--quiet", b.image)
	return []string{"prepare", "--quiet", b.image}
}

func (b *blind) prepareAgain(t *testing.T, args []string) {
	t.Helper()
	b.pods(t)
	b.cli(t, args...)
	b.clearPods(t)
}

func (b *blind) prepared(t *testing.T) []string {
	t.Helper()
	return []string{"run-prepared", "--detach", b.cli(t, b.withImage(t)...)}
}

// runAgain finds the pod prepared or running, after one sweep at the latest.
func (b *blind) runAgain(t *testing.T, args []string) {
	t.Helper()
	b.cli(t, "gc")
	l := &life{t: t, g: b.g, uuid: args[len(args)-1]}
	if l.state() == "prepared" {
		b.peace.undone(t, "")
		b.cli(t, args...)
	}
	if state := l.state(); state != "running" {
		t.Errorf("the pod is %s, not running", state)
	}
	b.clearPods(t)
}

func (b *blind) runs(t *testing.T) (uuid string) {
	t.Helper()
	args := b.prepared(t)
	b.cli(t, args...)
	return args[len(args)-1]
}

func (b *blind) stoppable(t *testing.T) []string {
	t.Helper()
	return []string{"stop", b.runs(t)}
}

// stopAgain finds the pod running or ended.
func (b *blind) stopAgain(t *testing.T, args []string) {
	t.Helper()
	b.cli(t, args...)
	b.peace.undone(t, args[len(args)-1])
	if state := (&life{t: t, g: b.g, uuid: args[len(args)-1]}).state(); state != "exited" {
		t.Errorf("the pod is %s, not exited", state)
	}
	b.clearPods(t)
}

func (b *blind) running(t *testing.T) []string {
	t.Helper()
	return []string{"rm", "--force", b.runs(t)}
}

func (b *blind) removable(t *testing.T) []string {
	t.Helper()
	return []string{"rm", b.cli(t, b.withImage(t)...)}
}

// rmAgain removes the pod, which may be gone already.
func (b *blind) rmAgain(t *testing.T, args []string) {
	t.Helper()
	b.goneOr(t, args)
	b.clearPods(t)
}

func (b *blind) removableImage(t *testing.T) []string {
	t.Helper()
	b.cli(t, "fetch", "--quiet", b.image)
	return []string{"image", "rm", strings.TrimPrefix(b.image, "docker://")}
}

// imageRmAgain removes the image, which may be gone already, and fetches it again.
func (b *blind) imageRmAgain(t *testing.T, args []string) {
	t.Helper()
	whole(t, b.g.Dir)
	b.goneOr(t, args)
	b.prepareAgain(t, b.withImage(t))
	b.empty(t)
}

// goneOr runs a command again, and is content when what it removes is gone.
func (b *blind) goneOr(t *testing.T, args []string) {
	t.Helper()
	if _, err := (&life{t: t, g: b.g}).try(args...); err != nil && !strings.Contains(err.Error(), "not found") && !strings.Contains(err.Error(), "no matches found") {
		t.Error(err)
	}
}

// garbage is all that a gc has to do: a pod that was never run, and trees that
// nobody uses then.
func (b *blind) garbage(t *testing.T) []string {
	t.Helper()
	b.cli(t, b.withImage(t)...)
	b.cli(t, "image", "rm", strings.TrimPrefix(b.image, "docker://"))
	return []string{"gc", "--grace-period=0s", "--expire-prepared=0s"}
}

func (b *blind) gcAgain(t *testing.T, args []string) {
	t.Helper()
	b.cli(t, args...)
	b.empty(t)
}

// whole compares what trees say of themselves with what they hold.
func whole(t *testing.T, dir string) {
	t.Helper()
	for _, name := range entries(t, filepath.Join(dir, "trees")) {
		tree := filepath.Join(dir, "trees", name)
		raw, err := os.ReadFile(filepath.Join(tree, "meta.json"))
		if err != nil {
			t.Errorf("tree %s: %v", name, err)
			continue
		}
		var meta struct {
			Inodes int `json:"inodes"`
		}
		if err := json.Unmarshal(raw, &meta); err != nil {
			t.Errorf("tree %s: %v", name, err)
			continue
		}
		seen, err := inodes(filepath.Join(tree, "rootfs"))
		if err != nil || seen != meta.Inodes {
			t.Errorf("tree %s has %d inodes and says %d: %v", name, seen, meta.Inodes, err)
		}
	}
}

func inodes(dir string) (int, error) {
	seen := map[uint64]bool{}
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			seen[st.Ino] = true
		}
		return nil
	})
	return len(seen), err
}
