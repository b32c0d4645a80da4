package stage0

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/appc/spec/schema"
	"github.com/appc/spec/schema/types"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/disktest"
	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/idmap"
	"github.com/gantry-cri/gantry/stage0/manifest"
	"github.com/gantry-cri/gantry/stage0/overlay"
	"github.com/gantry-cri/gantry/stage0/pod"
	"github.com/gantry-cri/gantry/stage0/store"
	"github.com/gantry-cri/gantry/stage0/tree"
)

func TestMain(m *testing.M) {
	manifest.RegisterIsolators()
	os.Exit(m.Run())
}

// stageLog is an Observer that remembers.
type stageLog struct {
	mu     sync.Mutex
	stages []Stage
	failed []Stage
	copied []string // reasons why overlay was disabled
}

func (l *stageLog) StageDone(s Stage, _ time.Duration, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stages = append(l.stages, s)
	if err != nil {
		l.failed = append(l.failed, s)
	}
}

func (l *stageLog) BytesFetched(int64) {}

func (l *stageLog) LayerProgress(LayerProgress) {}

func (l *stageLog) SpoolLost(digest.Digest, error) {}

func (l *stageLog) OverlayDisabled(reason string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.copied = append(l.copied, reason)
}

func newPreparer(t *testing.T) (*Pipeline, *stageLog) {
	t.Helper()
	return newPreparerIn(t, t.TempDir())
}

func newPreparerIn(t *testing.T, dir string) (*Pipeline, *stageLog) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("layers keep their owners: needs root")
	}
	images, err := store.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	trees, err := tree.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	pods, err := pod.Open(dir, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	log := &stageLog{}
	site := overlay.Site{Dir: dir, Known: filepath.Join(t.TempDir(), "overlay")}
	users := idmap.Pool{Dir: filepath.Join(dir, "ids")}
	return &Pipeline{Images: images, Trees: trees, Pods: pods, Overlay: site, Users: users, Observer: log}, log
}

// extracted commits a layer whose root directory has a mode and an owner.
func extracted(t *testing.T, p *Pipeline, root tar.Header) store.Layer {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	root.Name, root.Typeflag = "./", tar.TypeDir
	if err := errors.Join(w.WriteHeader(&root), w.Close()); err != nil {
		t.Fatal(err)
	}
	id := digest.FromBytes(buf.Bytes())
	l := tree.Layer{Digest: id, DiffID: id, Size: int64(buf.Len()), MediaType: ocispec.MediaTypeImageLayer}
	pending, err := p.Trees.Extract(t.Context(), l, &buf)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Trees.Commit(t.Context(), pending); err != nil {
		t.Fatal(err)
	}
	return store.Layer{Digest: id, DiffID: id, Size: l.Size, Tree: tree.Name(id)}
}

func manifestOf(apps ...string) *schema.PodManifest {
	pm := schema.BlankPodManifest()
	for _, a := range apps {
		pm.Apps = append(pm.Apps, schema.RuntimeApp{
			Name:  types.ACName(a),
			Image: schema.RuntimeImage{ID: *types.NewHashSHA512([]byte(a))},
			App:   &types.App{Exec: types.Exec{"/x"}, User: "0", Group: "0"},
		})
	}
	return pm
}

func TestPrepare(t *testing.T) {
	p, log := newPreparer(t)
	layer := extracted(t, p, tar.Header{Mode: 0o2750, Uid: 12, Gid: 34})
	img := store.Image{ID: "sha256:x", Layers: []store.Layer{layer}}
	u, err := p.Prepare(t.Context(), PodSpec{
		Owner: pod.OwnerCLI, Kind: pod.KindPod, Manifest: manifestOf("a", "b"),
		Images: []AppImage{{Name: "a:1", Ref: "a@d", Image: img}, {Name: "b:1", Image: img}},
	})
	if err != nil {
		t.Fatal(err)
	}
	got, err := p.Pods.Load(u)
	if err != nil || got.State() != pod.Prepared || len(got.Record.Apps) != 2 {
		t.Fatalf("pod %+v, %v", got, err)
	}
	if a := got.Record.Apps[0]; a.Name != "a" || a.ImageName != "a:1" || a.ImageRef != "a@d" || !slices.Equal(a.Layers, []string{layer.Tree}) {
		t.Errorf("record of app a: %+v", a)
	}
	st, err := os.Stat(p.Pods.Path(u, "upper", "b"))
	if err != nil || st.Mode() != os.ModeDir|os.ModeSetgid|0o750 {
		t.Errorf("the upper directory has not the mode of the image's root: %v, %v", st.Mode(), err)
	}
	if !slices.Equal(log.stages, []Stage{StageAllocate, StageRootfs, StageCommit}) || len(log.failed) != 0 {
		t.Errorf("stages %v, failed %v", log.stages, log.failed)
	}
	if retired, err := p.CollectTrees(t.Context()); err != nil || len(retired) != 0 {
		t.Errorf("a collection took a tree of a prepared pod: %v, %v", retired, err)
	}
}

// TestPrepareCopies holds when root filesystems are copied, and what is told of it.
func TestPrepareCopies(t *testing.T) {
	untyped := disktest.New(t, "ext4 -O ^filetype").Dir
	for _, tc := range []struct {
		name   string
		dir    string // of the data; empty: where overlay works
		rootfs Rootfs
		copies bool
		told   []string
	}{
		{"overlay works", "", RootfsAuto, false, nil},
		{"overlay is not wanted", "", RootfsCopy, true, nil},
		{"overlay does not work", untyped, RootfsAuto, true, []string{"unsupported filesystem: missing d_type support"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, log := newPreparerIn(t, cmp.Or(tc.dir, t.TempDir()))
			layer := extracted(t, p, tar.Header{Mode: 0o2750, Uid: 12, Gid: 34})
			inTree := filepath.Join(p.Trees.Path(layer.Tree), "rootfs", "f")
			if err := os.WriteFile(inTree, []byte("of the image"), 0o640); err != nil {
				t.Fatal(err)
			}
			img := store.Image{ID: "sha256:x", Layers: []store.Layer{layer}}
			u, err := p.Prepare(t.Context(), PodSpec{
				Owner: pod.OwnerCLI, Kind: pod.KindPod, Manifest: manifestOf("a"), Rootfs: tc.rootfs, Images: []AppImage{{Image: img}},
			})
			if err != nil {
				t.Fatal(err)
			}
			got, err := p.Pods.Load(u)
			if err != nil || (len(got.Record.Apps[0].Layers) == 0) != tc.copies {
				t.Errorf("record %+v, %v", got.Record, err)
			}
			b, err := os.ReadFile(p.Pods.Path(u, "upper", "a", "f"))
			if copied := string(b) == "of the image"; copied != tc.copies || copied != (err == nil) {
				t.Errorf("upper has %q, %v", b, err)
			}
			var st unix.Stat_t
			if err := unix.Stat(p.Pods.Path(u, "upper", "a"), &st); err != nil || st.Mode != unix.S_IFDIR|0o2750 || st.Uid != 12 || st.Gid != 34 {
				t.Errorf("upper is %o %d:%d, %v", st.Mode, st.Uid, st.Gid, err)
			}
			if !slices.Equal(log.copied, tc.told) {
				t.Errorf("told %q, want %q", log.copied, tc.told)
			}
		})
	}
}

func userNamespace(t *testing.T, ids idmap.Map) types.Isolator {
	t.Helper()
	i, err := manifest.Isolator(manifest.UserNamespaceName, manifest.UserNamespace{IDs: ids})
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// TestPreparePrivateUsers holds that pods that live at once have ids of their own, and
// that the manifest that was handed in is not changed.
func TestPreparePrivateUsers(t *testing.T) {
	p, _ := newPreparer(t)
	layer := extracted(t, p, tar.Header{Mode: 0o755, Uid: 12, Gid: 34})
	pm := manifestOf("a")
	spec := PodSpec{
		Owner: pod.OwnerCLI, Kind: pod.KindPod, Manifest: pm, PrivateUsers: true,
		Images: []AppImage{{Image: store.Image{ID: "sha256:x", Layers: []store.Layer{layer}}}},
	}
	seen := map[uint32]bool{}
	for range 3 {
		u, err := p.Prepare(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		got, err := p.Pods.Manifest(u)
		if err != nil {
			t.Fatal(err)
		}
		ids := manifest.UserNamespaceOf(got.Isolators)
		if ids == nil || ids.Check() != nil || len(ids.UIDs) != 1 || ids.UIDs[0].Size != 65536 || seen[ids.UIDs[0].HostID] {
			t.Fatalf("ids %+v, after %v", ids, seen)
		}
		first := ids.UIDs[0].HostID
		seen[first] = true
		var st unix.Stat_t
		if err := unix.Lstat(p.Pods.Path(u, "upper", "a"), &st); err != nil || st.Uid != first+12 || st.Gid != first+34 {
			t.Errorf("upper is owned by %d:%d, %v; the first id is %d", st.Uid, st.Gid, err, first)
		}
	}
	if len(pm.Isolators) != 0 {
		t.Errorf("the manifest that was given now has %v", pm.Isolators)
	}
	pm.Isolators = types.Isolators{userNamespace(t, idmap.Map{UIDs: ranges, GIDs: ranges})}
	if _, err := p.Prepare(t.Context(), spec); !errors.Is(err, errdefs.ErrInvalid) {
		t.Errorf("two user namespaces: %v", err)
	}
	spec.PrivateUsers, spec.Kind, spec.Sandbox = false, pod.KindContainer, "11111111-1111-4111-8111-111111111111"
	if _, err := p.Prepare(t.Context(), spec); !errors.Is(err, errdefs.ErrUnsupported) {
		t.Errorf("a container: %v", err)
	}
}

var ranges = []specs.LinuxIDMapping{{HostID: 100000, Size: 1000}}

// TestPrepareWithMappedOwners holds that a pod in a user namespace gets files of its own
// ids: by the overlay where the kernel has id-mapped layers, else by a copy, which is told.
func TestPrepareWithMappedOwners(t *testing.T) {
	unmappable := t.TempDir()
	if os.Geteuid() == 0 {
		if err := unix.Mount("ramfs", unmappable, "ramfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = unix.Unmount(unmappable, 0) }()
	}
	ids := func(size uint32) *idmap.Map {
		return &idmap.Map{
			UIDs: []specs.LinuxIDMapping{{HostID: 100000, Size: size}},
			GIDs: []specs.LinuxIDMapping{{HostID: 200000, Size: size}},
		}
	}
	for _, tc := range []struct {
		name   string
		dir    string // of the data; empty: where layers can be id-mapped
		rootfs Rootfs
		ids    *idmap.Map
		copies bool
		told   string // begins so
		is     error
	}{
		{"overlay works", "", RootfsAuto, ids(1000), false, "", nil},
		{"overlay is not wanted", "", RootfsCopy, ids(1000), true, "", nil},
		{"layers cannot be id-mapped", unmappable, RootfsAuto, ids(1000), true, "trial mount of id-mapped layers: tree tree: mount_setattr id map ", nil},
		{"an owner is not there", "", RootfsCopy, ids(13), true, "", errdefs.ErrInvalid},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, log := newPreparerIn(t, cmp.Or(tc.dir, t.TempDir()))
			layer := extracted(t, p, tar.Header{Mode: 0o2750, Uid: 12, Gid: 34})
			inTree := filepath.Join(p.Trees.Path(layer.Tree), "rootfs", "f")
			if err := errors.Join(os.WriteFile(inTree, nil, 0o640), os.Lchown(inTree, 5, 6)); err != nil {
				t.Fatal(err)
			}
			pm := manifestOf("a")
			pm.Isolators = types.Isolators{userNamespace(t, *tc.ids)}
			u, err := p.Prepare(t.Context(), PodSpec{
				Owner: pod.OwnerCLI, Kind: pod.KindPod, Manifest: pm, Rootfs: tc.rootfs,
				Images: []AppImage{{Image: store.Image{ID: "sha256:x", Layers: []store.Layer{layer}}}},
			})
			if tc.is != nil {
				pods, lerr := p.Pods.List()
				if !errors.Is(err, tc.is) || len(pods) != 0 || lerr != nil {
					t.Errorf("Prepare: %v, want %v; pods %v, %v", err, tc.is, pods, lerr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := map[string]string{".": "2750 100012:200034"}
			if tc.copies {
				want["f"] = "640 100005:200006"
			}
			for name, w := range want {
				var st unix.Stat_t
				err := unix.Lstat(p.Pods.Path(u, "upper", "a", name), &st)
				if got := fmt.Sprintf("%o %d:%d", st.Mode&0o7777, st.Uid, st.Gid); err != nil || got != w {
					t.Errorf("upper %s is %s, %v; want %s", name, got, err, w)
				}
			}
			if got := strings.Join(log.copied, ""); !strings.HasPrefix(got, tc.told) || (got == "") != (tc.told == "") {
				t.Errorf("told %q, want %q", got, tc.told)
			}
			if _, err := os.Lstat(p.Pods.Path(u, "upper", "a", "f")); (err == nil) != tc.copies {
				t.Errorf("copied: %v, want %t", err, tc.copies)
			}
		})
	}
}

func TestPrepareThatFailsLeavesNothing(t *testing.T) {
	p, log := newPreparer(t)
	img := store.Image{ID: "sha256:x", Layers: []store.Layer{{Tree: "notthere1234"}}}
	spec := PodSpec{Owner: pod.OwnerCLI, Kind: pod.KindPod, Manifest: manifestOf("a"), Images: []AppImage{{Name: "a:1", Image: img}}}
	if _, err := p.Prepare(t.Context(), spec); !errors.Is(err, errdefs.ErrNotFound) {
		t.Fatalf("missing tree: %v", err)
	}
	if !slices.Equal(log.failed, []Stage{StageRootfs}) {
		t.Errorf("failed stages %v", log.failed)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	unlock, err := p.Images.TryLockExclusive()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Prepare(ctx, spec); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled while a collection runs: %v", err)
	}
	unlock()
	if left, err := p.Pods.List(); err != nil || len(left) != 0 {
		t.Errorf("left %v, %v", left, err)
	}
}

func TestPrepareRefuses(t *testing.T) {
	p := &Pipeline{}
	one := []AppImage{{}}
	for _, tc := range []struct {
		name string
		spec PodSpec
	}{
		{"no manifest", PodSpec{Kind: pod.KindPod}},
		{"an app without an image", PodSpec{Kind: pod.KindPod, Manifest: manifestOf("a")}},
		{"a sandbox with an app", PodSpec{Kind: pod.KindSandbox, Manifest: manifestOf("a"), Images: one}},
		{"a container without a sandbox", PodSpec{Kind: pod.KindContainer, Manifest: manifestOf("a"), Images: one}},
		{"a pod without apps", PodSpec{Kind: pod.KindPod, Manifest: manifestOf()}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := p.Prepare(t.Context(), tc.spec); !errors.Is(err, errdefs.ErrInvalid) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestCollectTakesWhatNobodyNames(t *testing.T) {
	p, _ := newPreparer(t)
	used := extracted(t, p, tar.Header{Mode: 0o755})
	unused := extracted(t, p, tar.Header{Mode: 0o700})
	img := store.Image{ID: "sha256:x", Layers: []store.Layer{used}}
	if _, err := p.Prepare(t.Context(), PodSpec{Owner: pod.OwnerCRI, Kind: pod.KindPod, Manifest: manifestOf("a"), Images: []AppImage{{Image: img}}}); err != nil {
		t.Fatal(err)
	}
	pulling, err := p.Images.LockShared(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if retired, err := p.CollectTrees(t.Context()); !errors.Is(err, errdefs.ErrBusy) || len(retired) != 0 {
		t.Fatalf("beside a pull: retired %v, %v; want ErrBusy", retired, err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.CollectTrees(ended); !errors.Is(err, context.Canceled) {
		t.Fatalf("cancelled beside a pull: %v", err)
	}
	pulling()
	retired, err := p.CollectTrees(t.Context())
	if err != nil || !slices.Equal(NamesOf(retired), []string{unused.Tree}) {
		t.Fatalf("retired %v, %v; want %s", retired, err, unused.Tree)
	}
	names, err := p.Trees.List()
	if err != nil || !slices.Equal(names, []string{used.Tree}) {
		t.Errorf("trees left: %v, %v", names, err)
	}
}

// TestCollectKeepsTreesOfLaterImages holds that a downgrade costs no layer: an image
// record of a later version may name any.
func TestCollectKeepsTreesOfLaterImages(t *testing.T) {
	p, _ := newPreparer(t)
	layer := extracted(t, p, tar.Header{Mode: 0o755})
	record := filepath.Join(p.Images.TempDir(), "..", "images", digest.FromString("config").Encoded())
	if err := errors.Join(os.Mkdir(record, 0o755), os.WriteFile(filepath.Join(record, "image.json"), []byte(`{"schema":99}`), 0o644)); err != nil {
		t.Fatal(err)
	}
	if retired, err := p.CollectTrees(t.Context()); !errors.Is(err, errdefs.ErrUnsupported) || len(retired) != 0 {
		t.Errorf("retired %v, %v; want ErrUnsupported", retired, err)
	}
	if names, err := p.Trees.List(); err != nil || !slices.Equal(names, []string{layer.Tree}) {
		t.Errorf("trees left: %v, %v", names, err)
	}
}

// TestPrepareOfMoreLayersThanOverlayStacks has an image of one layer more than the
// kernel stacks: it is copied, says so, and has the files of all layers.
func TestPrepareOfMoreLayersThanOverlayStacks(t *testing.T) {
	p, log := newPreparer(t)
	var img store.Image
	var all []*tree.Pending
	for i := range overlay.MaxStack + 1 {
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		err := errors.Join(
			w.WriteHeader(&tar.Header{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o755}),
			w.WriteHeader(&tar.Header{Name: fmt.Sprintf("d/%d", i), Typeflag: tar.TypeReg, Mode: 0o644}),
			w.WriteHeader(&tar.Header{Name: "d/top", Typeflag: tar.TypeSymlink, Linkname: fmt.Sprint(i)}),
			w.Close(),
		)
		if err != nil {
			t.Fatal(err)
		}
		id := digest.FromBytes(buf.Bytes())
		pending, err := p.Trees.Extract(t.Context(), tree.Layer{Digest: id, DiffID: id, Size: int64(buf.Len()), MediaType: ocispec.MediaTypeImageLayer}, &buf)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, pending)
		img.Layers = append(img.Layers, store.Layer{Digest: id, DiffID: id, Tree: pending.Name()})
	}
	if err := p.Trees.Commit(t.Context(), all...); err != nil {
		t.Fatal(err)
	}
	u, err := p.Prepare(t.Context(), PodSpec{Owner: pod.OwnerCRI, Kind: pod.KindPod, Manifest: manifestOf("a"), Images: []AppImage{{Name: "many:1", Image: img}}})
	if err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(p.Pods.Path(u, "upper", "a", "d"))
	if err != nil || len(files) != overlay.MaxStack+2 {
		t.Errorf("%d files, %v; want one of each layer and a link", len(files), err)
	}
	if to, err := os.Readlink(p.Pods.Path(u, "upper", "a", "d", "top")); err != nil || to != fmt.Sprint(overlay.MaxStack) {
		t.Errorf("what all layers have is that of layer %s, %v", to, err)
	}
	if want := "501 layers of image many:1, the kernel stacks 500"; !slices.Equal(log.copied, []string{want}) {
		t.Errorf("told %q, want %q", log.copied, want)
	}
	found, err := p.Pods.Load(u)
	if err != nil || len(found.Record.Apps[0].Layers) != 0 {
		t.Errorf("the pod stacks trees: %+v, %v", found, err)
	}
}
