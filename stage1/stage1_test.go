package stage1_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/appc/spec/schema"
	"github.com/appc/spec/schema/types"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0"
	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/idmap"
	"github.com/gantry-cri/gantry/stage0/manifest"
	"github.com/gantry-cri/gantry/stage0/overlay"
	"github.com/gantry-cri/gantry/stage0/pod"
	"github.com/gantry-cri/gantry/stage0/store"
	"github.com/gantry-cri/gantry/stage0/tree"
	"github.com/gantry-cri/gantry/stage1"
	"github.com/gantry-cri/gantry/stage1/network"
	"github.com/gantry-cri/gantry/translate"
)

func TestMain(m *testing.M) {
	manifest.RegisterIsolators()
	os.Exit(m.Run())
}

// node is a data directory with one image in it, made of Debian's busybox.
type node struct {
	pipeline *stage0.Pipeline
	runner   *stage1.Runner
	image    store.Image
	config   ocispec.Image
	rootfs   stage0.Rootfs
	private  bool // pods get user namespaces
	reports  chan string
}

func newNode(t *testing.T) *node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("runs containers: needs root")
	}
	dir, run := t.TempDir(), t.TempDir()
	for d := run; d != os.TempDir(); d = filepath.Dir(d) { // as /run is for everybody
		if err := os.Chmod(d, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	images, err := store.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	trees, err := tree.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	pods, err := pod.Open(dir, run)
	if err != nil {
		t.Fatal(err)
	}
	site := overlay.Site{Dir: dir, Known: filepath.Join(run, "overlay")}
	n := &node{pipeline: &stage0.Pipeline{Images: images, Trees: trees, Pods: pods, Overlay: site, Users: idmap.Pool{Dir: filepath.Join(dir, "ids")}}, reports: make(chan string, 100)}
	n.runner, err = stage1.New(stage1.Config{
		Pods:    pods,
		Trees:   trees,
		RunDir:  run,
		Network: network.Config{ConfDir: filepath.Join(dir, "none")},
		Report:  func(u manifest.UUID, what string, err error) { n.reports <- fmt.Sprintf("%s: %s: %v", u, what, err) },
	})
	if err != nil {
		t.Fatal(err)
	}
	n.addImage(t)
	t.Cleanup(func() { n.removeAll(t) })
	return n
}

// removeAll also shows that nothing is left: a mount below the temporary
// directory would make its removal fail.
func (n *node) removeAll(t *testing.T) {
	uuids, err := n.pipeline.Pods.List()
	if err != nil {
		t.Error(err)
	}
	for _, u := range uuids {
		if err := n.runner.Remove(context.Background(), u); err != nil {
			t.Errorf("remove: %v", err)
		}
	}
	for len(n.reports) > 0 {
		t.Errorf("reported: %s", <-n.reports)
	}
}

func (n *node) addImage(t *testing.T) {
	t.Helper()
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skipf("needs Debian's busybox-static: %v", err)
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range []*tar.Header{
		{Name: "bin/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(busybox))},
		{Name: "bin/sh", Typeflag: tar.TypeSymlink, Linkname: "busybox"},
	} {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := w.Write(busybox); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	diffID := digest.FromBytes(buf.Bytes())
	layer := tree.Layer{Digest: diffID, DiffID: diffID, Size: int64(buf.Len()), MediaType: ocispec.MediaTypeImageLayer}
	p, err := n.pipeline.Trees.Extract(t.Context(), layer, &buf)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.pipeline.Trees.Commit(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	n.config = ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}}
	n.config.Config.Cmd = []string{"/bin/sh"}
	raw, err := json.Marshal(n.config)
	if err != nil {
		t.Fatal(err)
	}
	n.image = store.Image{ID: digest.FromBytes(raw), Layers: []store.Layer{{Digest: diffID, DiffID: diffID, Size: layer.Size, Tree: tree.Name(diffID)}}}
}

// prepare makes a pod of the command line with one app a script.
func (n *node) prepare(t *testing.T, scripts ...string) manifest.UUID {
	t.Helper()
	pm := schema.BlankPodManifest()
	spec := stage0.PodSpec{Owner: pod.OwnerCLI, Kind: pod.KindPod, Manifest: pm, Rootfs: n.rootfs, PrivateUsers: n.private}
	for i, s := range scripts {
		name := types.ACName(fmt.Sprintf("app%d", i))
		app, err := translate.ImageApp(name, translate.Image{
			ID: string(n.image.ID), AppcID: "sha512-" + strings.Repeat("0", 128), Name: "example.com/busybox:1", Config: n.config,
		})
		if err != nil {
			t.Fatal(err)
		}
		app.App.Exec = types.Exec{"/bin/sh", "-c", s}
		pm.Apps = append(pm.Apps, app)
		spec.Images = append(spec.Images, stage0.AppImage{Name: "busybox", Ref: string(n.image.ID), Image: n.image})
	}
	raw, err := json.Marshal(pm)
	if err != nil {
		t.Fatal(err)
	}
	spec.Request = sha256.Sum256(raw)
	u, err := n.pipeline.Prepare(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func (n *node) run(t *testing.T, u manifest.UUID) {
	t.Helper()
	if err := n.runner.RunWith(t.Context(), u, stage1.Options{Network: stage1.NetworkNone}); err != nil {
		t.Fatal(err)
	}
}

func (n *node) wait(t *testing.T, u manifest.UUID, app string) pod.Exit {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	ch, err := n.runner.Watch(ctx, u, app)
	if err != nil {
		t.Fatal(err)
	}
	exit, ok := <-ch
	if !ok {
		t.Fatalf("app %s of %s did not end in time", app, u)
	}
	return exit
}

func (n *node) load(t *testing.T, u manifest.UUID) *pod.Pod {
	t.Helper()
	p, err := n.pipeline.Pods.Load(u)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (n *node) log(t *testing.T, u manifest.UUID, app string) string {
	t.Helper()
	raw, err := os.ReadFile(n.pipeline.Pods.Path(u, "log", app+".log"))
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func TestPodRunsToItsEnd(t *testing.T) {
	n := newNode(t)
	u := n.prepare(t, "echo hello; echo $HOSTNAME >&2; exit 3", "sleep 0.3; echo second")
	n.run(t, u)
	if exit := n.wait(t, u, "app0"); exit.Code != 3 || exit.Reason != "Error" {
		t.Errorf("app0 ended with %+v", exit)
	}
	if exit := n.wait(t, u, "app1"); exit.Code != 0 || exit.Reason != "Completed" {
		t.Errorf("app1 ended with %+v", exit)
	}
	if got := n.log(t, u, "app0"); !strings.Contains(got, " stdout F hello\n") {
		t.Errorf("log of app0 is %q", got)
	}
	if p := n.load(t, u); p.State() != pod.Exited || len(p.Exits) != 2 {
		t.Errorf("state %q, exits %v", p.State(), p.Exits)
	}
	if left, err := n.pipeline.Pods.Intents(u); err != nil || len(left) != 0 {
		t.Errorf("intents left: %v, %v", left, err)
	}
	for _, pattern := range []string{"gantry.slice/gantry-" + u.Hex() + ".slice", "gantry/" + string(u), "*/gantry/" + string(u)} {
		if left, err := filepath.Glob("/sys/fs/cgroup/" + pattern); err != nil || len(left) > 0 {
			t.Errorf("cgroups left: %v, %v", left, err)
		}
	}
	if err := n.runner.RunWith(t.Context(), u, stage1.Options{}); !errors.Is(err, errdefs.ErrState) {
		t.Errorf("running an ended pod: %v", err)
	}
}

// TestCopiedPodNeedsNoTrees runs a pod whose root filesystem was copied when the
// image's trees are gone.
func TestCopiedPodNeedsNoTrees(t *testing.T) {
	n := newNode(t)
	n.rootfs = stage0.RootfsCopy
	u := n.prepare(t, "echo hello >/bin/new && read x </bin/new && echo $x again")
	if gone, err := n.pipeline.CollectTrees(t.Context()); err != nil || len(gone) != 1 {
		t.Fatalf("collected %v, %v", gone, err)
	}
	n.run(t, u)
	if exit := n.wait(t, u, "app0"); exit.Code != 0 {
		t.Errorf("app0 ended with %+v", exit)
	}
	if got := n.log(t, u, "app0"); !strings.Contains(got, " stdout F hello again\n") {
		t.Errorf("log is %q", got)
	}
}

// TestUserNamespace runs two apps in one: root inside, and nobody's root outside.
func TestUserNamespace(t *testing.T) {
	for _, rootfs := range []stage0.Rootfs{stage0.RootfsOverlay, stage0.RootfsCopy} {
		t.Run(fmt.Sprint(rootfs), func(t *testing.T) {
			n := newNode(t)
			n.private, n.rootfs = true, rootfs
			u := n.prepare(t, `bb() { busybox "$@"; }
				bb id -u; bb cat /proc/self/uid_map; bb stat -c %u:%g /bin/busybox /etc/hosts /dev/shm
				echo new >/new && bb touch /bin/busybox && echo x >>/etc/hosts && echo written
				bb chown 7:8 /new && bb mkdir /tmp && bb mount -t tmpfs none /tmp 2>/dev/null && echo mounted
				bb hostname; bb ifconfig lo | bb grep -o UP; echo shared >/dev/shm/f; exec sleep 1000`,
				"until read x </dev/shm/f; do busybox sleep 0.1; done 2>/dev/null; echo got $x")
			pm, err := n.pipeline.Pods.Manifest(u)
			if err != nil {
				t.Fatal(err)
			}
			first := manifest.UserNamespaceOf(pm.Isolators).UIDs[0].HostID
			if err := n.runner.RunWith(t.Context(), u, stage1.Options{Network: stage1.NetworkHost}); !errors.Is(err, errdefs.ErrUnsupported) {
				t.Errorf("in the node's network: %v", err)
			}
			n.run(t, u)
			if exit := n.wait(t, u, "app1"); exit.Code != 0 || !strings.Contains(n.log(t, u, "app1"), "got shared\n") {
				t.Errorf("app1 ended with %+v: %s", exit, n.log(t, u, "app1"))
			}
			for _, want := range []string{
				" F 0\n", fmt.Sprintf(" 0 %10d      65536\n", first), " F written\n", " F UP\n", " F gantry-" + string(u) + "\n",
			} {
				if got := n.log(t, u, "app0"); !strings.Contains(got, want) {
					t.Errorf("app0 does not say %q:\n%s", want, got)
				}
			}
			if got := n.log(t, u, "app0"); strings.Count(got, " F 0:0\n") != 3 || strings.Contains(got, "mounted") {
				t.Errorf("app0 says:\n%s", got)
			}
			n.ownedBy(t, u, first)
			res, err := n.runner.ExecSync(t.Context(), u, "app0", []string{"/bin/busybox", "cat", "/proc/self/gid_map"}, 10*time.Second)
			if err != nil || !strings.Contains(string(res.Stdout), fmt.Sprint(first)) {
				t.Errorf("exec: %s %s, %v", res.Stdout, res.Stderr, err)
			}
			if err := n.runner.Stop(t.Context(), u, 0); err != nil {
				t.Error(err)
			}
			if left, err := n.pipeline.Pods.Intents(u); err != nil || len(left) != 0 {
				t.Errorf("intents left: %v, %v", left, err)
			}
		})
	}
}

// ownedBy looks from the node at what a pod of TestUserNamespace did.
func (n *node) ownedBy(t *testing.T, u manifest.UUID, first uint32) {
	t.Helper()
	for name, want := range map[string]uint32{".": first, "new": first + 7, "bin/busybox": first} {
		var st unix.Stat_t
		if err := unix.Lstat(n.pipeline.Pods.Path(u, "upper", "app0", name), &st); err != nil || st.Uid != want {
			t.Errorf("upper %s is owned by %d, %v; want %d", name, st.Uid, err, want)
		}
	}
	started := n.load(t, u).Started["app0"]
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", started.Init.PID))
	if want := fmt.Sprintf("Uid:\t%d\t", first); err != nil || !strings.Contains(string(status), want) {
		t.Errorf("app0's process has not %q, %v:\n%s", want, err, status)
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(n.pipeline.Trees.Path(n.image.Trees()[0]), "rootfs", "bin", "busybox"), &st); err != nil || st.Uid != 0 {
		t.Errorf("the tree's file is owned by %d, %v", st.Uid, err)
	}
}

func TestStopEndsWhoIgnoresIt(t *testing.T) {
	n := newNode(t)
	u := n.prepare(t, "trap '' TERM; echo up; while :; do sleep 1; done")
	n.run(t, u)
	if p := n.load(t, u); p.AppPhase("app0") != pod.Up || p.State() != pod.Running {
		t.Fatalf("phase %s, state %s", p.AppPhase("app0"), p.State())
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := n.runner.Stop(ctx, u, time.Hour); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("stop with a caller that leaves: %v", err)
	}
	if err := n.runner.Stop(t.Context(), u, 300*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if p := n.load(t, u); p.Exits["app0"].Code != 137 {
		t.Errorf("exit %+v", p.Exits)
	}
	for range 2 {
		if err := errors.Join(n.runner.Stop(t.Context(), u, 0), n.runner.Remove(t.Context(), u)); err != nil {
			t.Errorf("stop and remove again: %v", err)
		}
	}
	if _, err := n.pipeline.Pods.Load(u); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("after remove: %v", err)
	}
}

func TestFailedStartGoesBackToPrepared(t *testing.T) {
	n := newNode(t)
	u := n.prepare(t, "true")
	// The default network needs a CNI configuration, and this node has none.
	if err := n.runner.RunWith(t.Context(), u, stage1.Options{}); err == nil || !strings.Contains(err.Error(), "network") {
		t.Fatalf("run without a network: %v", err)
	}
	if p := n.load(t, u); p.State() != pod.Prepared {
		t.Fatalf("after a failed check: %s", p.State())
	}
	// The image's root filesystem becomes one that cannot be mounted: fails after the first effect.
	work := n.pipeline.Pods.Path(u, "work", "app0")
	if err := errors.Join(os.RemoveAll(work), os.WriteFile(work, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := n.runner.RunWith(t.Context(), u, stage1.Options{Network: stage1.NetworkNone}); err == nil {
		t.Fatal("ran without a work directory")
	}
	p := n.load(t, u)
	if _, err := os.Stat(n.pipeline.Pods.RunPath(u)); p.State() != pod.Prepared || !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("after an undone start: %s, run directory: %v", p.State(), err)
	}
	if err := errors.Join(os.Remove(work), os.Mkdir(work, 0o755)); err != nil {
		t.Fatal(err)
	}
	n.run(t, u)
	if exit := n.wait(t, u, "app0"); exit.Code != 0 {
		t.Errorf("exit %+v", exit)
	}
}

func TestBadCommandGoesBackToPrepared(t *testing.T) {
	n := newNode(t)
	u := n.prepare(t, "true")
	pm, err := n.pipeline.Pods.Manifest(u)
	if err != nil {
		t.Fatal(err)
	}
	pm.Apps[0].App.Exec = types.Exec{"/no/such/program"}
	raw, err := json.Marshal(pm)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(n.pipeline.Pods.Path(u, "manifest"), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	err = n.runner.RunWith(t.Context(), u, stage1.Options{Network: stage1.NetworkNone})
	if err == nil || !strings.Contains(err.Error(), "/no/such/program") {
		t.Fatalf("the cause is hidden: %v", err)
	}
	if p := n.load(t, u); p.State() != pod.Prepared {
		t.Errorf("state %s", p.State())
	}
}

func TestMonitorKilledWhileTheAppLives(t *testing.T) {
	n := newNode(t)
	u := n.prepare(t, "sleep 1000")
	n.run(t, u)
	s := n.load(t, u).Started["app0"]
	if err := exec.Command("kill", "-9", fmt.Sprint(s.Monitor.PID)).Run(); err != nil {
		t.Fatal(err)
	}
	for n.load(t, u).AppPhase("app0") != pod.Unmonitored {
		if t.Context().Err() != nil {
			t.Fatal(t.Context().Err())
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := n.runner.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !s.Init.Alive() {
		t.Fatal("a sweep stopped a running app")
	}
	if err := n.runner.Stop(t.Context(), u, time.Second); err != nil {
		t.Fatal(err)
	}
	if e := n.load(t, u).Exits["app0"]; e.Code != 255 || e.Reason != "Unknown" {
		t.Errorf("exit %+v", e)
	}
}

func TestExecSync(t *testing.T) {
	n := newNode(t)
	u := n.prepare(t, "sleep 1000")
	n.run(t, u)
	got, err := n.runner.ExecSync(t.Context(), u, "app0", []string{"/bin/sh", "-c", "echo out; echo err >&2; exit 7"}, 10*time.Second)
	if err != nil || got.ExitCode != 7 || string(got.Stdout) != "out\n" || string(got.Stderr) != "err\n" {
		t.Fatalf("exec: %+v, %v", got, err)
	}
	if _, err := n.runner.ExecSync(t.Context(), u, "app0", []string{"/bin/sh", "-c", "sleep 1000"}, 300*time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("exec beyond its time: %v", err)
	}
	if _, err := n.runner.ExecSync(t.Context(), u, "app0", nil, 0); !errors.Is(err, errdefs.ErrInvalid) {
		t.Errorf("exec of nothing: %v", err)
	}
	if _, err := n.runner.Stats(u, "app0"); err != nil {
		t.Errorf("stats: %v", err)
	}
	if err := n.runner.ReopenLog(t.Context(), u, "app0"); err != nil {
		t.Errorf("reopen log: %v", err)
	}
}
