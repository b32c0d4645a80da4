package contract

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestLeases deletes directories of pods by hand, and their intents with them. The next
// sweep gives back what CNI plugins keep for them, and what is another's stays.
func TestLeases(t *testing.T) {
	sweeps := map[string]func(t *testing.T, n *node){
		"daemon starts": func(t *testing.T, n *node) { n.Restart(t) },
		"gc":            func(t *testing.T, n *node) { n.CLI(t, "gc") },
		"killed before DEL": func(t *testing.T, n *node) {
			n.killedAt(t, "network-undoing", "gc")
			n.CLI(t, "gc")
		},
		"killed after DEL": func(t *testing.T, n *node) {
			n.killedAt(t, "network-undone", "gc")
			n.CLI(t, "gc")
		},
	}
	n := newNode(t)
	n.sandbox(t, "bystander")
	for name, sweep := range sweeps {
		t.Run(name, func(t *testing.T) {
			before := n.Network.Addresses(t)
			b := n.sandbox(t, "victim")
			foreign := n.foreignCache(t, b.id)
			n.loseDir(t, b.id)
			sweep(t, n)
			if now := n.Network.Addresses(t); !slices.Equal(now, before) {
				t.Errorf("addresses %v, want %v", now, before)
			}
			if left := n.cache(t, b.id); left != nil {
				t.Errorf("the cache still holds %v", left)
			}
			for _, f := range foreign {
				if _, err := os.Stat(f); err != nil {
					t.Errorf("what is another's: %v", err)
				}
			}
			if found, content := n.doctor(t, "--fix"); !content || len(found) == 0 {
				t.Errorf("the doctor could not remove all: %v", found)
			}
		})
	}
}

// TestLeaseInUse keeps the address of a container whose sandbox's directory is gone.
func TestLeaseInUse(t *testing.T) {
	n := newNode(t)
	b := n.sandbox(t, "victim")
	c := b.start(t, "c", forever)
	held := n.Network.Addresses(t)
	n.loseDir(t, b.id)
	out, err := n.Command(t, "gc").CombinedOutput()
	if err == nil || !bytes.Contains(out, []byte("pod "+uuid(b.id)+" is gone: release network")) || !bytes.Contains(out, []byte("a process lives in")) {
		t.Errorf("gc: %v: %s", err, out)
	}
	if found, content := n.doctor(t, "--fix"); content || !slices.ContainsFunc(found, func(f finding) bool { return f.Kind == "network" && !f.Fixed }) {
		t.Errorf("the doctor finds %v", found)
	}
	if now := n.Network.Addresses(t); !slices.Equal(now, held) {
		t.Errorf("addresses %v, want %v", now, held)
	}
	n.wantState(t, c, "RUNNING")
	n.CLI(t, "rm", "--force", c)
	n.CLI(t, "gc")
	if now := n.Network.Addresses(t); len(now) > 0 {
		t.Errorf("addresses that nobody gave back: %v", now)
	}
	if found, content := n.doctor(t, "--fix"); !content {
		t.Errorf("the doctor could not remove all: %v", found)
	}
}

// loseDir deletes a pod's directory, as a person does who wants to be rid of it.
func (n *node) loseDir(t *testing.T, id string) {
	t.Helper()
	if n.cache(t, id) == nil {
		t.Fatalf("there is no CNI cache of %s", id)
	}
	if err := os.RemoveAll(filepath.Join(n.Dir, "pods/by-id", uuid(id))); err != nil {
		t.Fatal(err)
	}
}

// cache is what libcni remembers of a pod's attachment.
func (n *node) cache(t *testing.T, id string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(n.Dir, "cni", id, "results", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// foreignCache plants two copies of a pod's cache: one in the cache directory of another
// data directory, and one that names a network namespace of another run directory.
func (n *node) foreignCache(t *testing.T, id string) []string {
	t.Helper()
	files := n.cache(t, id)
	if len(files) != 1 {
		t.Fatalf("CNI cache of %s: %v", id, files)
	}
	own := filepath.Dir(filepath.Dir(filepath.Dir(files[0])))
	raw, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	other := strings.Repeat("f", 64)
	copies := map[string]string{
		filepath.Join(n.Base, "another", "cni", other, "results", "x"): strings.ReplaceAll(string(raw), id, other),
		filepath.Join(own, other, "results", "x"):                      strings.NewReplacer(n.RunDir, n.RunDir+"2", id, other).Replace(string(raw)),
	}
	var planted []string
	for file, text := range copies {
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		planted = append(planted, file)
	}
	return planted
}

// killedAt runs a command that kills itself at a point.
func (n *node) killedAt(t *testing.T, point, command string) {
	t.Helper()
	cmd := n.Command(t, command)
	cmd.Env = append(cmd.Env, "GANTRY_FAILPOINT="+point)
	err := cmd.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Exited() {
		t.Fatalf("%s was not killed at %s: %v", command, point, err)
	}
}
