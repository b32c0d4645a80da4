package contract

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
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
// has; a second pod is not touched.
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
	n.doctor(t, "--fix") // the network's lease is the plugin's to give back
	for range 2 {        // cgroups are empty once their processes are dead
		found, _ = n.doctor(t, "--fix")
	}
	for _, f := range found {
		if f.Kind != "network" {
			t.Errorf("the doctor could not remove %v", f)
		}
	}
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
