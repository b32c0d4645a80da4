package contract

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/gantry-cri/gantry/test/harness"
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

// newPeace runs the bystander, whose image has no layer of another pod's.
func newPeace(t *testing.T, g *harness.Gantry, registry *harness.Registry, img v1.Image) *peace {
	t.Helper()
	registry.Push(t, "contract/bystander:1", img)
	p := &peace{g: g, scope: harness.LeakScope{Dirs: []string{g.Base}, Bridge: g.Network.Bridge}}
	p.bystander = strings.TrimSpace(g.CLI(t, "prepare", "--quiet", "docker://"+registry.Ref("contract/bystander:1")))
	g.CLI(t, "run-prepared", "--detach", p.bystander)
	t.Cleanup(func() { g.CLI(t, "rm", "--force", p.bystander) })
	p.was = processesOf(t, g, p.bystander)
	var err error
	if p.before, err = harness.TakeSnapshot(p.scope); err != nil {
		t.Fatal(err)
	}
	p.files = held(t, g)
	return p
}

// restored fails the test unless there is nothing more than in peace.
func (p *peace) restored(t *testing.T) {
	t.Helper()
	p.undone(t, "")
	p.nothingNew(t, func(name string) bool { return !strings.HasPrefix(name, onNode) })
}

// undone fails the test unless nothing more is there than in peace beside files of the data
// directory. A pod that has run may have what bears its name.
func (p *peace) undone(t *testing.T, ran string) {
	t.Helper()
	if _, left := harness.Leaks(t, p.scope, p.before); len(left) > 0 {
		t.Errorf("left behind:\n  %s", strings.Join(left, "\n  "))
	}
	p.nothingNew(t, func(name string) bool {
		return strings.HasPrefix(name, onNode) && (ran == "" || !strings.Contains(name, ran))
	})
}

func (p *peace) nothingNew(t *testing.T, meant func(name string) bool) {
	t.Helper()
	for _, name := range held(t, p.g) {
		if meant(name) && !slices.Contains(p.files, name) {
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

// onNode begins what must not outlive a start that was undone.
const onNode = "node: "

// held is what pods, images and commands have in the directories, and what of CNI and of
// the OCI runtime.
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
	add(onNode, g.Dir, "cni/*/*")
	add(onNode, g.RunDir, "pods/*")
	add(onNode, g.RunDir, "runtime/*/*")
	for _, a := range g.Network.Addresses(t) {
		all = append(all, onNode+"address "+a)
	}
	return all
}
