package contract

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
)

// finding is a line of gantry doctor.
type finding struct {
	Kind, Name, Pod, Error string
	Fixed                  bool
}

// doctor examines, and says whether the command was content.
func (n *node) doctor(t *testing.T, args ...string) (found []finding, content bool) {
	t.Helper()
	out, err := n.Command(t, "doctor", append([]string{"--format=json"}, args...)...).Output()
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 1) {
		t.Fatal(err)
	}
	if err := json.Unmarshal(out, &found); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return found, err == nil
}

// TestDoctor takes a running pod's intents away, so that nothing claims what it
// has; a second pod is not touched, nor either by the doctor of another data directory.
func TestDoctor(t *testing.T) {
	n := newNode(t)
	b := n.sandbox(t, "healthy")
	bystander := b.start(t, "bystander", forever)
	was := n.processes(t, bystander)
	u := n.sleeper(t)
	n.CLI(t, "run-prepared", "--detach", u)
	if found, content := n.doctor(t); len(found) > 0 || !content {
		t.Fatalf("on a healthy node the doctor finds %v", found)
	}
	if found, content := n.doctor(t, "--fix", "--dir", t.TempDir()); len(found) > 0 || !content {
		t.Fatalf("with another data directory the doctor removes %v", found)
	}
	intents := filepath.Join(n.Dir, "pods/by-id", u, "intents.json")
	kept, err := os.ReadFile(intents)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(intents); err != nil {
		t.Fatal(err)
	}
	found, content := n.doctor(t)
	for _, kind := range []string{"process", "namespace", "mount", "runtime state", "network"} {
		if content || !slices.ContainsFunc(found, func(f finding) bool { return f.Kind == kind && f.Pod == u }) {
			t.Errorf("no %s is found among %v", kind, found)
		}
	}
	n.treat(t)
	if err := os.WriteFile(intents, kept, 0o600); err != nil {
		t.Fatal(err)
	}
	n.CLI(t, "rm", "--force", u)
	if found, content := n.doctor(t); len(found) > 0 || !content {
		t.Errorf("the doctor still finds %v", found)
	}
	n.wantState(t, bystander, "RUNNING")
	if is := n.processes(t, bystander); is != was {
		t.Errorf("the bystander was %v and is %v", was, is)
	}
}

// treat has the doctor remove what it finds: one run is enough, and the only address that
// is left is the bystander's.
func (n *node) treat(t *testing.T) {
	t.Helper()
	if found, content := n.doctor(t, "--fix"); !content {
		t.Errorf("the doctor could not remove all: %v", found)
	}
	if found, content := n.doctor(t); len(found) > 0 || !content {
		t.Errorf("after one treatment the doctor finds %v", found)
	}
	if a := n.Network.Addresses(t); len(a) != 1 {
		t.Errorf("addresses %v, want the bystander's", a)
	}
}

// TestDoctorLostDirectory deletes the directories of a sandbox with an init of its own,
// of its container, of a pod of the command line and of a container beside another in a
// kubelet's cgroup, while all run.
func TestDoctorLostDirectory(t *testing.T) {
	parent := harness.MakeCgroup(t)
	n := newNode(t)
	config := sandboxConfig(t, "healthy", runtimeapi.NamespaceMode_CONTAINER)
	config.Linux.CgroupParent = parent
	healthy := n.sandboxOf(t, config)
	bystander, lone := healthy.start(t, "bystander", forever), healthy.start(t, "lone", forever)
	b := n.sandboxOf(t, sandboxConfig(t, "lost", runtimeapi.NamespaceMode_POD))
	c := b.start(t, "c", forever)
	u := n.sleeper(t)
	n.CLI(t, "run-prepared", "--detach", u)
	for _, lost := range []string{uuid(b.id), uuid(c), u, uuid(lone)} {
		if err := os.RemoveAll(filepath.Join(n.Dir, "pods/by-id", lost)); err != nil {
			t.Fatal(err)
		}
	}
	n.treat(t)
	groups, err := harness.CgroupsBelow(parent)
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range groups {
		if strings.Contains(g, lone) {
			t.Errorf("%s is still there", g)
		}
	}
	n.wantState(t, bystander, "RUNNING")
	n.Restart(t) // forgets the pods whose directories are gone
}
