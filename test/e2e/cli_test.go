package e2e

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
)

// listed is a pod of gantry list --format=json, as far as checks from outside
// rely on it.
type listed struct {
	UUID, ID, Owner, State, Kind string
	Apps                         []struct {
		Name, Image, State string
		ExitCode           *int
	}
	CreatedAt string
	StartedAt *string
}

// list is what the command line says of all pods, by the CRI id.
func (n *node) list(t *testing.T) map[string]listed {
	t.Helper()
	var all []listed
	if err := json.Unmarshal([]byte(n.CLI(t, "list", "--format=json")), &all); err != nil {
		t.Fatal(err)
	}
	byID := map[string]listed{}
	for _, p := range all {
		byID[p.ID] = p
	}
	return byID
}

func TestCommandLineSeesTheSame(t *testing.T) {
	n := startNode(t, harness.GantryOptions{})
	b := n.pod(t, "seen")
	id := b.create(t, "a--b", "exit 4")
	p := n.list(t)[id]
	if p.State != "prepared" || p.Kind != "container" || p.Owner != "cri" || len(p.Apps) != 1 || p.Apps[0].State != "created" || p.Apps[0].Image != n.busybox || p.StartedAt != nil {
		t.Errorf("a container that is created: %+v", p)
	}
	for _, name := range []string{id, p.UUID, id[:13]} {
		var m struct {
			ACKind string
			Apps   []struct{ App struct{ Exec []string } }
		}
		if err := json.Unmarshal([]byte(n.CLI(t, "cat-manifest", name)), &m); err != nil {
			t.Fatalf("manifest by %s: %v", name, err)
		}
		if m.ACKind != "PodManifest" || len(m.Apps) != 1 || !slices.Equal(m.Apps[0].App.Exec, []string{"sh", "-c", "exit 4"}) {
			t.Errorf("manifest by %s: %+v", name, m)
		}
	}
	if box := n.list(t)[b.id]; box.Kind != "sandbox" || box.State != "running" || len(box.Apps) != 0 || box.StartedAt == nil {
		t.Errorf("its sandbox: %+v", box)
	}
	n.startID(t, id)
	n.waitExited(t, id)
	p = n.list(t)[id]
	if p.State != "exited" || p.Apps[0].ExitCode == nil || *p.Apps[0].ExitCode != 4 {
		t.Errorf("after its end: %+v", p)
	}
	if got := n.CLI(t, "status", p.UUID); !strings.Contains(got, "exited") || !strings.Contains(got, "4") {
		t.Errorf("status:\n%s", got)
	}
	before := n.CLI(t, "list", "--format=json")
	n.Kill(t)
	if down := n.CLI(t, "list", "--format=json"); down != before {
		t.Errorf("while the daemon is down:\n%s\nbefore:\n%s", down, before)
	}
	n.Start(t)
}

func TestOwner(t *testing.T) {
	n := startNode(t, harness.GantryOptions{})
	uuid := strings.TrimSpace(n.CLI(t, "prepare", "--quiet", "docker://"+n.busybox, "--exec", "/bin/sleep", "--", "1000"))
	b := n.pod(t, "kubelets")
	id := b.start(t, "c", "exec sleep 1000")
	if boxes, containers := n.sandboxes(t), n.containers(t); len(boxes) != 1 || boxes[0].Id != b.id || len(containers) != 1 || containers[0].Id != id {
		t.Errorf("CRI lists %v and %v", boxes, containers)
	}
	ctx := callContext(t, callTimeout)
	if _, err := n.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: uuid}); err != nil {
		t.Errorf("remove what CRI does not know: %v", err)
	}
	if _, err := n.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: uuid}); err != nil {
		t.Errorf("remove what CRI does not know: %v", err)
	}
	if got := strings.TrimSpace(n.CLI(t, "status", uuid)); !strings.Contains(got, "prepared") {
		t.Errorf("CRI touched a pod of the command line:\n%s", got)
	}
	// The index hears of the new pod by inotify.
	harness.Eventually(t, patience, func() string {
		if img := n.image(t, n.busybox); !img.Pinned {
			return "the image of a pod of the command line is not pinned"
		}
		return ""
	})
	for _, argv := range [][]string{{"stop", id}, {"rm", id}, {"rm", b.id}} {
		out, err := n.Command(t, argv[0], argv[1:]...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "--force") {
			t.Errorf("gantry %q: %v\n%s", argv, err, out)
		}
	}
	n.exec(t, id, "true")
	n.CLI(t, "stop", "--force", id)
	if st := n.waitExited(t, id); st.FinishedAt == 0 {
		t.Errorf("stopped by force: %v", st)
	}
	n.CLI(t, "rm", uuid)
	harness.Eventually(t, patience, func() string {
		if img := n.image(t, n.busybox); img.Pinned {
			return "still pinned"
		}
		return ""
	})
}
