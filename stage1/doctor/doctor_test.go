package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/stage0/manifest"
	"github.com/gantry-cri/gantry/stage0/pod"
	"github.com/gantry-cri/gantry/stage1/network"
	"github.com/gantry-cri/gantry/translate"
)

const (
	known = manifest.UUID("11111111-1111-4111-8111-111111111111")
	gone  = manifest.UUID("22222222-2222-4222-8222-222222222222")
)

func TestMain(m *testing.M) {
	manifest.RegisterIsolators()
	os.Exit(m.Run())
}

// newDoctor makes directories with one pod that is there.
func newDoctor(t testing.TB) *Doctor {
	t.Helper()
	dir, runDir := t.TempDir(), t.TempDir()
	pods, err := pod.Open(dir, runDir)
	if err != nil {
		t.Fatal(err)
	}
	n := network.New(network.Config{ConfDir: filepath.Join(dir, "net.d"), CacheDir: filepath.Join(dir, "cni")})
	d, err := New(pods, n, dir, runDir)
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

func TestGroupOf(t *testing.T) {
	id := strings.ReplaceAll(string(gone), "-", "") + strings.Repeat("a", 32)
	kubepods := "/kubepods/burstable/pod1"
	tests := []struct {
		name, parent, child string
		ok                  bool
	}{
		{"pod", "/gantry", string(gone), true},
		{"monitor", "/gantry-monitor", id, true},
		{"slice", "/gantry.slice", "gantry-" + id[:32] + ".slice", true},
		{"scope", "/system.slice", "gantry-monitor-" + id + ".scope", true},
		{"a kubelet's container", kubepods, id, true},
		{"a kubelet's container in a scope", kubepods, "gantry-" + id + ".scope", true},
		{"somebody else's scope", "/system.slice", "cri-containerd-" + id + ".scope", false},
		{"somebody else's container", kubepods, "cri-containerd-" + id + ".scope", false},
		{"the service", "/system.slice", "gantry.service", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			name := groupNames()[tt.parent]
			if tt.parent == kubepods {
				name = containerName()
			}
			f, ok := groupOf(tt.parent, tt.child, name)
			if ok != tt.ok || ok && (f.Pod != gone || f.Name != tt.parent+"/"+tt.child) {
				t.Errorf("%s in %s is %v, %+v, want %v", tt.child, tt.parent, ok, f, tt.ok)
			}
		})
	}
}

// TestKubeletsCgroup has what containers left in the cgroup that a kubelet made for
// their sandbox, which is there still: only what bears our mark is removed, and never the
// kubelet's own.
func TestKubeletsCgroup(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("cgroups: needs root")
	}
	d := newDoctor(t)
	parent := fmt.Sprintf("/gantry-test-%d", os.Getpid())
	pm, err := translate.Sandbox(&runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "a", Namespace: "default", Uid: "a"},
		Linux:    &runtimeapi.LinuxPodSandboxConfig{CgroupParent: parent},
	}, "")
	if err != nil {
		t.Fatal(err)
	}
	sandbox, err := d.pods.New(t.Context(), pod.Record{Owner: pod.OwnerCRI, Kind: pod.KindSandbox}, manifest.Request{})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(sandbox.Commit(pm), sandbox.Close()); err != nil {
		t.Fatal(err)
	}
	id := func(digit string) string { return parent + "/" + gone.Hex() + strings.Repeat(digit, 32) }
	ours, theirs, nobodys := id("0"), id("1"), id("2")
	err = errors.Join(d.cgroups.Create(ours), d.cgroups.SetOwner(ours, d.pods.RunDir()), d.cgroups.Create(nobodys),
		d.cgroups.Create(theirs), d.cgroups.SetOwner(theirs, d.pods.RunDir()+"2"))
	t.Cleanup(func() {
		if err := d.cgroups.Remove(context.Background(), parent); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	fixed, err := d.Fix(t.Context())
	if err != nil || len(fixed) != 1 || fixed[0].Name != ours || fixed[0].Pod != gone || !fixed[0].Fixed {
		t.Errorf("removed %+v, %v; want %s", fixed, err, ours)
	}
	if d.cgroups.Exists(ours) || !d.cgroups.Exists(theirs) || !d.cgroups.Exists(nobodys) {
		t.Errorf("our cgroup is there: %t, theirs: %t, nobody's: %t", d.cgroups.Exists(ours), d.cgroups.Exists(theirs), d.cgroups.Exists(nobodys))
	}
	if err := errors.Join(d.cgroups.Remove(t.Context(), theirs), d.cgroups.Remove(t.Context(), nobodys), d.cgroups.Create(ours),
		d.cgroups.SetOwner(ours, d.pods.RunDir())); err != nil {
		t.Fatal(err)
	}
	if fixed, err := d.Fix(t.Context()); err != nil || len(fixed) != 1 || !d.cgroups.Exists(parent) {
		t.Errorf("removed %+v, %v; the kubelet's cgroup is there: %t", fixed, err, d.cgroups.Exists(parent))
	}
}

// TestFix needs several rounds: what is mounted on a run directory of a pod that is gone,
// the directory, and a cgroup of each owner.
func TestFix(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts: needs root")
	}
	d := newDoctor(t)
	hex := gone.Hex()
	state := filepath.Join(d.runDir, "runtime", "runc", hex+strings.Repeat("0", 32))
	mount := d.pods.RunPath(gone, "shm")
	for _, dir := range []string{d.pods.RunPath(known), mount, state} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // one on the other
		if err := unix.Mount("tmpfs", mount, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(mount, unix.MNT_DETACH) })
	}
	ours, theirs := "/gantry-monitor/"+hex+strings.Repeat("0", 32), "/gantry-monitor/"+hex+strings.Repeat("1", 32)
	for group, owner := range map[string]string{ours: d.pods.RunDir(), theirs: d.pods.RunDir() + "2"} {
		if err := errors.Join(d.cgroups.Create(group), d.cgroups.SetOwner(group, owner)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := d.cgroups.Remove(context.Background(), group); err != nil {
				t.Error(err)
			}
			d.cgroups.RemoveEmpty("/gantry-monitor")
		})
	}
	fixed, err := d.Fix(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range fixed {
		if !f.Fixed || f.Error != "" || f.Pod != gone {
			t.Errorf("%+v was not removed", f)
		}
		names = append(names, f.Name)
	}
	if want := []string{ours, mount, state, d.pods.RunPath(gone)}; !slices.Equal(names, want) {
		t.Errorf("found %v, want %v", names, want)
	}
	for dir, want := range map[string]bool{state: false, d.pods.RunPath(gone): false, d.pods.RunPath(known): true} {
		if _, err := os.Stat(dir); (err == nil) != want {
			t.Errorf("%s: %v, want it there: %v", dir, err, want)
		}
	}
	if d.cgroups.Exists(ours) || !d.cgroups.Exists(theirs) {
		t.Errorf("our cgroup is there: %t, theirs: %t", d.cgroups.Exists(ours), d.cgroups.Exists(theirs))
	}
	if again, err := d.Fix(t.Context()); len(again) > 0 || err != nil {
		t.Errorf("a second run finds %v, %v", again, err)
	}
}

// TestFixTellsWhatIsLeft has something that does not go.
func TestFixTellsWhatIsLeft(t *testing.T) {
	d := newDoctor(t)
	id := gone.Hex() + strings.Repeat("0", 32)
	if err := os.MkdirAll(d.network.CachePath(id), 0o700); err != nil {
		t.Fatal(err)
	}
	// Neither a result of ADD nor a configuration tells what to give back.
	fixed, err := d.Fix(t.Context())
	if err != nil || len(fixed) != 1 {
		t.Fatalf("%v, %v", fixed, err)
	}
	if f := fixed[0]; f.Kind != Network || f.Fixed || f.Pod != gone || !strings.Contains(f.Error, "no CNI configuration") {
		t.Errorf("%+v", f)
	}
	if _, err := os.Stat(d.network.CachePath(id)); err != nil {
		t.Error(err)
	}
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

// TestOtherDataDirectory shares the run directory with another data directory: its
// pods' things are no leaks as long as it has them.
func TestOtherDataDirectory(t *testing.T) {
	d := newDoctor(t)
	other := filepath.Join(t.TempDir(), "pods", "by-id", string(gone))
	err := errors.Join(os.MkdirAll(other, 0o750), os.MkdirAll(d.pods.RunPath(gone, "ns"), 0o750),
		os.Symlink(other, d.pods.RunPath(gone, "pod")))
	if err != nil {
		t.Fatal(err)
	}
	if fixed, err := d.Fix(t.Context()); err != nil || len(fixed) > 0 {
		t.Errorf("removed of another data directory: %v, %v", fixed, err)
	}
	if err := os.Remove(other); err != nil {
		t.Fatal(err)
	}
	if fixed, err := d.Fix(t.Context()); err != nil || len(fixed) != 1 || !fixed[0].Fixed {
		t.Errorf("what nobody has any more: %v, %v", fixed, err)
	}
}
