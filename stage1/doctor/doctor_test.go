package doctor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gantry-cri/gantry/stage0/manifest"
	"github.com/gantry-cri/gantry/stage0/pod"
)

const (
	known = manifest.UUID("11111111-1111-4111-8111-111111111111")
	gone  = manifest.UUID("22222222-2222-4222-8222-222222222222")
)

// newDoctor makes directories with one pod that is there.
func newDoctor(t *testing.T) *Doctor {
	t.Helper()
	dir, runDir := t.TempDir(), t.TempDir()
	pods, err := pod.Open(dir, runDir)
	if err != nil {
		t.Fatal(err)
	}
	d, err := New(pods, dir, runDir)
	if err != nil {
		t.Skip(err) // no cgroups
	}
	if err := os.MkdirAll(pods.Path(known), 0o750); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestOwnerOf(t *testing.T) {
	d := newDoctor(t)
	tests := []struct {
		name, text string
		want       manifest.UUID
	}{
		{"run directory", d.pods.RunPath(gone, "apps"), gone},
		{"data directory", "upperdir=" + d.pods.Path(known, "upper", "a") + ",workdir=…", known},
		{"another data directory", "/var/lib/other/pods/by-id/" + string(gone), ""},
		{"not a pod", d.pods.RunDir() + "/boot", ""},
		{"nothing", "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := d.ownerOf(tt.text); got != tt.want {
				t.Errorf("owner of %q is %q, want %q", tt.text, got, tt.want)
			}
		})
	}
}

func TestCgroupOf(t *testing.T) {
	id := strings.ReplaceAll(string(gone), "-", "") + strings.Repeat("a", 32)
	tests := []struct {
		name, path string
		ok         bool
	}{
		{"pod", "/gantry/" + string(gone), true},
		{"monitor", "/gantry-monitor/" + id, true},
		{"slice", "/gantry.slice/gantry-" + id[:32] + ".slice", true},
		{"scope", "/system.slice/gantry-monitor-" + id + ".scope", true},
		{"somebody else's scope", "/system.slice/cri-containerd-" + id + ".scope", false},
		{"the service", "/system.slice/gantry.service", false},
		{"the parent", "/gantry", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, ok := cgroupOf(tt.path)
			if ok != tt.ok || ok && f.Pod != gone {
				t.Errorf("%s is %v of pod %s, want %v", tt.path, ok, f.Pod, tt.ok)
			}
		})
	}
}

func TestDirectories(t *testing.T) {
	d := newDoctor(t)
	hex := strings.ReplaceAll(string(gone), "-", "")
	state := filepath.Join(d.runDir, "runtime", "runc", hex+strings.Repeat("0", 32))
	for _, dir := range []string{d.pods.RunPath(known), d.pods.RunPath(gone), state} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	found, err := d.Examine()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range d.Fix(t.Context(), mine(found)) {
		if !f.Fixed || f.Pod != gone {
			t.Errorf("%+v was not removed", f)
		}
		names = append(names, f.Name)
	}
	if want := []string{state, d.pods.RunPath(gone)}; strings.Join(names, " ") != strings.Join(want, " ") {
		t.Errorf("found %v, want %v", names, want)
	}
	for dir, want := range map[string]bool{state: false, d.pods.RunPath(gone): false, d.pods.RunPath(known): true} {
		if _, err := os.Stat(dir); (err == nil) != want {
			t.Errorf("%s: %v, want it there: %v", dir, err, want)
		}
	}
}

// mine leaves out what belongs to other data directories on the machine of the test.
func mine(found []Finding) []Finding {
	var own []Finding
	for _, f := range found {
		if f.Kind != Cgroup {
			own = append(own, f)
		}
	}
	return own
}

// TestTornIntents takes a pod whose intents cannot be read for one that may claim
// anything: what it has is not for the doctor to remove.
func TestTornIntents(t *testing.T) {
	d := newDoctor(t)
	for _, c := range []struct {
		text string
		want bool
	}{{`[{"kind":"mou`, true}, {`[{"kind":"mount","data":{}}]`, true}, {`[]`, false}, {"", false}} {
		file := d.pods.Path(known, "intents.json")
		err := os.WriteFile(file, []byte(c.text), 0o600)
		if c.text == "" {
			err = os.Remove(file)
		}
		if err != nil {
			t.Fatal(err)
		}
		claimed, err := d.claims()
		if err != nil || claimed[known] != c.want {
			t.Errorf("intents %q: claimed %t, %v; want %t", c.text, claimed[known], err, c.want)
		}
	}
}
