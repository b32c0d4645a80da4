package contract

import (
	"context"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
)

// TestUpgrade replaces the daemon by one of another version as systemd does, while
// containers run and commands are in flight in one of them. TestUpgrade of
// test/node/guest does the same with packages.
func TestUpgrade(t *testing.T) {
	const version = "99.0.0+next"
	next := harness.BuildVersion(t, version)
	n := newNode(t)
	b := n.sandbox(t, "upgraded")
	counts := b.start(t, "counts", forever)
	flown, dir := b.startMounted(t, "flown")
	ended := b.start(t, "ended", "exit 3")
	n.exited(t, ended, 3, "Error")
	created := b.create(t, "created", "exit 0")
	was := []started{n.processes(t, counts), n.processes(t, flown)}
	flight := harness.StartInFlight(t, n.Raw, flown, dir)

	ctx, stopped := context.WithCancel(t.Context())
	go flight.ReleaseAnswered(ctx, t, strings.TrimPrefix(n.Endpoint, "unix://"))
	n.Stop(t)
	stopped()
	n.Binary = next
	n.Start(t)

	v, err := n.Version(call(t), &runtimeapi.VersionRequest{})
	if err != nil || v.RuntimeVersion != version {
		t.Errorf("the daemon's version is %v, %v", v, err)
	}
	if got := n.CLI(t, "version"); !strings.HasPrefix(got, "gantry "+version+" ") {
		t.Errorf("gantry version: %s", got)
	}
	flight.Check(t)
	for id, want := range map[string]string{counts: "RUNNING", flown: "RUNNING", ended: "EXITED", created: "CREATED"} {
		n.wantState(t, id, want)
	}
	if !b.ready(t) {
		t.Error("the sandbox is not ready")
	}
	if is := []started{n.processes(t, counts), n.processes(t, flown)}; !slices.Equal(is, was) {
		t.Errorf("the processes were %v and are %v", was, is)
	}
	if err := n.startID(t, created); err != nil {
		t.Errorf("start what the daemon before created: %v", err)
	}
	carriesVersions(t, n.Dir, n.RunDir)
	n.stopID(t, counts, 1)
	harness.Unbroken(t, filepath.Join(b.config.LogDirectory, "counts.log"))
	b.stop(t)
}

// TestDaemonKilledInFlight kills the daemon while commands run in a container: they
// go on without their clients, the container with them, and nothing of them is left when
// they have ended.
func TestDaemonKilledInFlight(t *testing.T) {
	n := newNode(t)
	b := n.sandbox(t, "killed")
	flown, dir := b.startMounted(t, "flown")
	was := n.processes(t, flown)
	flight := harness.StartInFlight(t, n.Raw, flown, dir)
	n.Kill(t)
	n.Start(t)
	flight.CheckKilled(t)
	n.wantState(t, flown, "RUNNING")
	if is := n.processes(t, flown); is != was {
		t.Errorf("the processes were %v and are %v", was, is)
	}
	ps, err := n.ExecSync(call(t), &runtimeapi.ExecSyncRequest{ContainerId: flown, Cmd: []string{"ps", "-o", "args"}})
	if err != nil || strings.Contains(string(ps.GetStdout()), "/flight/") {
		t.Errorf("of the commands is left: %v, %v", ps, err)
	}
	b.stop(t)
}

// startMounted starts a container that does nothing and has a directory of the node
// where commands in flight write.
func (b *box) startMounted(t *testing.T, name string) (id, dir string) {
	t.Helper()
	dir = t.TempDir()
	config := b.containerConfig(name, "exec sleep 100000")
	config.Mounts = []*runtimeapi.Mount{{HostPath: dir, ContainerPath: harness.InFlightMount}}
	resp, err := b.CreateContainer(call(t), &runtimeapi.CreateContainerRequest{PodSandboxId: b.id, Config: config, SandboxConfig: b.config})
	if err != nil {
		t.Fatalf("create container: %v", err)
	}
	if err := b.startID(t, resp.ContainerId); err != nil {
		t.Fatalf("start container: %v", err)
	}
	return resp.ContainerId, dir
}

// foreign are the JSON files whose layout is another's.
var foreign = []string{"config.json", "manifest.json", "process.json", "state.json"}

// carriesVersions fails unless each file of Gantry's own carries the version of its
// layout.
func carriesVersions(t *testing.T, dirs ...string) {
	t.Helper()
	seen := map[string]bool{}
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if os.IsNotExist(err) {
				return nil // a process that goes meanwhile
			}
			if err != nil {
				return err
			}
			if d.IsDir() && (d.Name() == "rootfs" || d.Name() == "upper" || d.Name() == "runtime") {
				return fs.SkipDir
			}
			ref := filepath.Base(filepath.Dir(path)) == "refs"
			if !d.Type().IsRegular() || slices.Contains(foreign, d.Name()) || filepath.Ext(path) != ".json" && !ref {
				return nil
			}
			seen[d.Name()] = true
			raw, err := os.ReadFile(path)
			var carrier struct{ Schema int }
			if err != nil || json.Unmarshal(raw, &carrier) != nil || carrier.Schema < 1 {
				t.Errorf("%s carries no version: %s, %v", path, raw, err)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"pod.json", "intents.json", "exit.json", "started.json", "network.json", "image.json", "meta.json"} {
		if !seen[name] {
			t.Errorf("there is no %s: the test saw %v", name, seen)
		}
	}
}
