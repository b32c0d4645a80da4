package contract

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/images"
)

// caller asks the daemon as a kubelet does: a call whose answer never came, because
// the daemon died, is made again once it is back.
type caller struct {
	*node
	t     *testing.T
	image string // comes and goes; the bystander has another
	box   *box   // stays, with the bystander in it
	dead  bool   // the killer has struck
	kills int
	tries uint32 // of starts

	scope  harness.LeakScope
	before *harness.Snapshot // of the life that is led; nil: nobody is killed in it
}

// TestDaemonKilledAtEveryPoint kills the daemon at each point that its calls pass,
// and starts it again. A container that runs all the time is not touched.
func TestDaemonKilledAtEveryPoint(t *testing.T) {
	n := newNode(t)
	r := harness.StartRegistry(t)
	img, err := images.Pause(images.Options{})
	if err != nil {
		t.Fatal(err)
	}
	r.Push(t, "pause:1", img)
	harness.WriteHosts(t, n.RegistryDir, r.Addr)
	b := n.sandbox(t, "stays")
	bystander := b.start(t, "bystander", forever)
	was := n.processes(t, bystander)
	c := &caller{node: n, t: t, image: r.Ref("pause:1"), box: b, scope: harness.LeakScope{Dirs: []string{n.Base}, Bridge: n.Network.Bridge}}

	done, moments := map[string]bool{}, 0
	for _, life := range []struct {
		name string
		live func(*caller)
	}{{"image", (*caller).imageLife}, {"sandbox", (*caller).sandboxLife}, {"container", (*caller).containerLife}} {
		hits := filepath.Join(t.TempDir(), "hits")
		c.restart("GANTRY_FAILPOINT_HITS=" + hits)
		c.before = nil
		life.live(c)
		c.restart()
		before, files := c.snapshot(), held(t, n.Gantry)
		c.before = &before
		for _, p := range sample(t, slices.DeleteFunc(passed(t, hits), func(p string) bool { return done[p] })) {
			moments++
			done[p] = !strings.HasPrefix(p, "file-written")
			t.Run(life.name+"/"+p, func(t *testing.T) {
				c.t = t
				c.killedAt(p, life.live)
				c.restored()
				if now := held(t, n.Gantry); !slices.Equal(now, files) {
					t.Errorf("the directories hold %v, and held %v", now, files)
				}
			})
			c.t = t
		}
	}
	n.wantState(t, bystander, "RUNNING")
	if is := n.processes(t, bystander); is != was {
		t.Errorf("the bystander was %v and is %v", was, is)
	}
	harness.Unbroken(t, filepath.Join(b.config.LogDirectory, "bystander.log"))
	t.Logf("%d kills at %d moments", c.kills, moments)
}

// passed is each point once, but the writing of a small file every time that it is passed.
func passed(t *testing.T, hits string) []string {
	t.Helper()
	raw, err := os.ReadFile(hits)
	if err != nil {
		t.Fatal(err)
	}
	points := strings.Fields(string(raw))
	files := 0
	for i, p := range points {
		if p == "file-written" {
			files++
			points[i] = fmt.Sprintf("%s:%d", p, files)
		}
	}
	slices.Sort(points)
	return slices.Compact(points)
}

// killedAt leads a life in which the daemon dies at a point, and then looks that
// nothing of it is listed.
func (c *caller) killedAt(point string, live func(*caller)) {
	c.t.Helper()
	c.dead = false
	c.restart("GANTRY_FAILPOINT=" + point)
	live(c)
	if c.dead {
		c.kills++
	} else {
		c.t.Logf("%s was not passed this time: which points are depends on who finds first that a process has ended", point)
		c.restart()
	}
	if all := c.listAll(); len(all) != 2 {
		c.t.Errorf("besides the bystander and its sandbox are listed: %v", all)
	}
}

func (c *caller) restart(env ...string) {
	c.t.Helper()
	c.Environ(env...)
	c.Restart(c.t)
}

func (c *caller) snapshot() harness.Snapshot {
	c.t.Helper()
	s, err := harness.TakeSnapshot(c.scope)
	if err != nil {
		c.t.Fatal(err)
	}
	return s
}

// restored waits until nothing is there that was not there before. The daemon itself is
// another one after each kill, and the bystander sleeps again and again.
func (c *caller) restored() {
	c.t.Helper()
	harness.Eventually(c.t, patience, func() string {
		left := slices.DeleteFunc(c.snapshot().Since(*c.before), func(s string) bool {
			return strings.HasPrefix(s, "process "+strconv.Itoa(c.PID())+":") || strings.Contains(s, ": "+pause)
		})
		return strings.Join(left, "\n")
	})
}

func (c *caller) listAll() []string {
	c.t.Helper()
	var all []string
	boxes, err := c.ListPodSandbox(call(c.t), &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		c.t.Fatal(err)
	}
	for _, b := range boxes.Items {
		all = append(all, b.Id)
	}
	list, err := c.ListContainers(call(c.t), &runtimeapi.ListContainersRequest{})
	if err != nil {
		c.t.Fatal(err)
	}
	for _, k := range list.Containers {
		all = append(all, k.Id)
	}
	return all
}

// readyBoxes are the sandboxes that are up, the bystander's among them.
func (c *caller) readyBoxes() []*runtimeapi.PodSandbox {
	c.t.Helper()
	ready := &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}
	resp, err := c.ListPodSandbox(call(c.t), &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{State: ready}})
	if err != nil {
		c.t.Fatal(err)
	}
	return resp.Items
}

// ask makes a call, again if the daemon dies of it, and fails the test unless the
// call succeeds then.
func (c *caller) ask(what string, do func() error) {
	c.t.Helper()
	err := do()
	if status.Code(err) == codes.Unavailable {
		c.revive()
		err = do()
	}
	if err != nil {
		c.t.Fatalf("%s: %v", what, err)
	}
}

// revive starts the daemon that has died.
func (c *caller) revive() {
	c.t.Helper()
	select {
	case <-c.Exited():
	case <-time.After(patience):
		c.t.Fatal("the daemon does not answer and lives")
	}
	c.dead = true
	c.Environ()
	c.Start(c.t)
}

func (c *caller) pullIt() {
	c.t.Helper()
	c.ask("pull", func() error {
		_, err := c.PullImage(call(c.t), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: c.image}})
		return err
	})
	whole(c.t, c.Dir)
}

func (c *caller) imageLife() {
	c.t.Helper()
	c.pullIt()
	c.ask("remove image", func() error {
		_, err := c.RemoveImage(call(c.t), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: c.image}})
		return err
	})
	c.CLI(c.t, "gc")
}

func (c *caller) sandboxLife() {
	c.t.Helper()
	config := sandboxConfig(c.t, "comes-and-goes", runtimeapi.NamespaceMode_POD)
	var id string
	cut := false // short
	c.ask("run sandbox", func() error {
		if cut && len(c.readyBoxes()) == 1 {
			c.restored() // the start's sweep has undone what was made
		}
		cut = true
		resp, err := c.RunPodSandbox(call(c.t), &runtimeapi.RunPodSandboxRequest{Config: config})
		id = resp.GetPodSandboxId()
		return err
	})
	if b := (&box{c.node, id, config}); !b.ready(c.t) {
		c.t.Error("the sandbox is not ready")
	}
	c.ask("stop sandbox", func() error {
		_, err := c.StopPodSandbox(call(c.t), &runtimeapi.StopPodSandboxRequest{PodSandboxId: id})
		return err
	})
	c.ask("remove sandbox", func() error {
		_, err := c.RemovePodSandbox(call(c.t), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})
		return err
	})
}

func (c *caller) containerLife() {
	c.t.Helper()
	id := c.createIt()
	err := c.startID(c.t, id)
	if status.Code(err) == codes.Unavailable {
		c.revive()
		id = c.startAgain(id)
	} else if err != nil {
		c.t.Fatalf("start container: %v", err)
	}
	if got := word(c.status(c.t, id).State); got != "RUNNING" {
		c.t.Errorf("the container is %s", got)
	}
	c.ask("stop container", func() error {
		_, err := c.StopContainer(call(c.t), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 1})
		return err
	})
	c.removeIt(id)
}

// startAgain does what a kubelet does with a container whose start was cut short:
// one that runs is left alone, one that ended is replaced.
func (c *caller) startAgain(id string) string {
	c.t.Helper()
	switch st := c.status(c.t, id); word(st.State) {
	case "RUNNING":
		return id
	case "EXITED":
		c.restored()
		if st.ExitCode != 128 || st.Reason != "StartError" {
			c.t.Errorf("a start that was cut short ended with %d %s %s", st.ExitCode, st.Reason, st.Message)
		}
		c.removeIt(id)
		id = c.createIt()
	}
	if err := c.startID(c.t, id); err != nil {
		c.t.Fatalf("start container after a start that was cut short: %v", err)
	}
	return id
}

func (c *caller) createIt() (id string) {
	c.t.Helper()
	c.tries++
	config := c.box.containerConfig("comes-and-goes", "trap 'exit 0' TERM; while :; do "+pause+"; done")
	config.Metadata.Attempt = c.tries
	c.ask("create container", func() error {
		resp, err := c.CreateContainer(call(c.t), &runtimeapi.CreateContainerRequest{PodSandboxId: c.box.id, Config: config, SandboxConfig: c.box.config})
		id = resp.GetContainerId()
		return err
	})
	return id
}

func (c *caller) removeIt(id string) {
	c.t.Helper()
	c.ask("remove container", func() error {
		_, err := c.RemoveContainer(call(c.t), &runtimeapi.RemoveContainerRequest{ContainerId: id})
		return err
	})
}
