package contract

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/images"
)

// peace is what there is on the node while nobody is killed: a pod that runs all the
// time, and what it has.
type peace struct {
	g         *harness.Gantry
	scope     harness.LeakScope
	bystander string // its UUID
	was       started
	before    harness.Snapshot
	files     []string
}

// newPeace runs the bystander, whose image is no other pod's.
func newPeace(t *testing.T, g *harness.Gantry, registry *harness.Registry) *peace {
	t.Helper()
	img, err := images.Pause(images.Options{})
	if err != nil {
		t.Fatal(err)
	}
	registry.Push(t, "contract/bystander:1", img)
	p := &peace{g: g, scope: harness.LeakScope{Dirs: []string{g.Base}, Bridge: g.Network.Bridge}}
	p.bystander = strings.TrimSpace(g.CLI(t, "prepare", "--quiet", "docker://"+registry.Ref("contract/bystander:1")))
	g.CLI(t, "run-prepared", "--detach", p.bystander)
	t.Cleanup(func() { g.CLI(t, "rm", "--force", p.bystander) })
	p.was = processesOf(t, g, p.bystander)
	if p.before, err = harness.TakeSnapshot(p.scope); err != nil {
		t.Fatal(err)
	}
	p.files = held(t, g)
	return p
}

// restored fails the test unless the node has nothing more than in peace, the files of one pod
// left aside.
func (p *peace) restored(t *testing.T, but string) {
	t.Helper()
	if _, left := harness.Leaks(t, p.scope, p.before); len(left) > 0 {
		t.Errorf("left behind:\n  %s", strings.Join(left, "\n  "))
	}
	for _, name := range held(t, p.g) {
		if but != "" && (strings.Contains(name, but) || !strings.HasPrefix(name, "node: ")) {
			continue
		}
		if !slices.Contains(p.files, name) {
			t.Errorf("left behind: %s", name)
		}
	}
}

// unbroken fails the test unless the bystander's processes are the same ones.
func (p *peace) unbroken(t *testing.T) {
	t.Helper()
	if is := processesOf(t, p.g, p.bystander); is != p.was {
		t.Errorf("the bystander was %v and is %v", p.was, is)
	}
	for _, pid := range []int{p.was.Init.PID, p.was.Monitor.PID} {
		if over(pid) {
			t.Errorf("process %d of the bystander has ended", pid)
		}
	}
}

// processesOf are the init and the monitor of a pod of the command line.
func processesOf(t *testing.T, g *harness.Gantry, u string) started {
	t.Helper()
	return (&node{Gantry: g}).processes(t, strings.ReplaceAll(u, "-", ""))
}

// held is what pods, images and commands have in the directories, and what of CNI and of
// the OCI runtime; the last, which must not outlive a start that was undone, begins with "node: ".
func held(t *testing.T, g *harness.Gantry) []string {
	t.Helper()
	var all []string
	add := func(kind, dir, pattern string) {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range found {
			name, err := filepath.Rel(dir, path)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, kind+name)
		}
	}
	for _, pattern := range []string{"trees/*", "tmp/*", "images/*", "refs/*", "pods/*/*"} {
		add("data: ", g.Dir, pattern)
	}
	add("node: ", g.Dir, "cni/*/*")
	add("node: ", g.RunDir, "pods/*")
	add("node: ", g.RunDir, "runtime/*/*")
	for _, a := range g.Network.Addresses(t) {
		all = append(all, "node: address "+a)
	}
	return all
}
