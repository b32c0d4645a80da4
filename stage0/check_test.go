package stage0_test

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/appc/spec/schema"
	"github.com/appc/spec/schema/types"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"

	"github.com/gantry-cri/gantry/stage0"
	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/fetch/registrytest"
	"github.com/gantry-cri/gantry/stage0/imageref"
	"github.com/gantry-cri/gantry/stage0/manifest"
	"github.com/gantry-cri/gantry/stage0/overlay"
	"github.com/gantry-cri/gantry/stage0/pod"
	"github.com/gantry-cri/gantry/stage0/store"
	"github.com/gantry-cri/gantry/stage0/verify"
)

// checked is a fetched image of two layers and a fix-up tree: the upper one implies
// a directory of the lower.
type checked struct {
	*stage0.Pipeline
	dir    string
	proxy  *registrytest.Proxy
	entry  store.Entry
	layers []v1.Layer // bottom first
	denied bool       // the registry gives nothing
}

func newChecked(t *testing.T) *checked {
	t.Helper()
	needRoot(t)
	reg := registrytest.Start(t)
	c := &checked{dir: t.TempDir()}
	for _, files := range [][]string{{"d/", "", "d/f", "content"}, {"d/g", "2"}} {
		c.layers = append(c.layers, registrytest.Layer(t, false, registrytest.Tar(t, files...)))
	}
	reg.Push(t, "i:1", registrytest.Image(t, registrytest.Spec{Platform: linux, Layers: c.layers}))
	c.proxy = reg.Proxy(t, func(w http.ResponseWriter, q *http.Request, next http.Handler) {
		if c.denied {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		next.ServeHTTP(w, q)
	})
	c.Pipeline, _ = newPipeline(t, c.dir)
	run := t.TempDir()
	var err error
	if c.Pods, err = pod.Open(c.dir, run); err != nil {
		t.Fatal(err)
	}
	c.Overlay = overlay.Site{Dir: c.dir, Known: filepath.Join(run, "overlay")}
	if c.entry, err = c.Fetch(t.Context(), request(t, c.proxy.Host+"/i:1")); err != nil {
		t.Fatal(err)
	}
	if c.entry.Image.Fixup == "" {
		t.Fatal("the image has no fix-up tree")
	}
	return c
}

// file is a path in a layer's tree.
func (c *checked) file(layer int, path string) string {
	return filepath.Join(c.Trees.Root(c.entry.Image.Layers[layer].Tree), path)
}

func (c *checked) prepare(t *testing.T) manifest.UUID {
	t.Helper()
	pm := schema.BlankPodManifest()
	pm.Apps = append(pm.Apps, schema.RuntimeApp{
		Name: "a", Image: schema.RuntimeImage{ID: *types.NewHashSHA512([]byte("a"))},
		App: &types.App{Exec: types.Exec{"/x"}, User: "0", Group: "0"},
	})
	u, err := c.Prepare(t.Context(), stage0.PodSpec{
		Owner: pod.OwnerCLI, Kind: pod.KindPod, Manifest: pm, Rootfs: stage0.RootfsOverlay,
		Images: []stage0.AppImage{{Image: c.entry.Image}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func (c *checked) check(t *testing.T) stage0.Check {
	t.Helper()
	found, err := c.CheckStore(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	wantEmpty(t, c.dir, "tmp")
	return found
}

// bad are the trees that are not good, and what is found of them.
func bad(c stage0.Check) map[string][]string {
	all := map[string][]string{}
	for _, t := range c.Trees {
		for _, f := range t.Findings {
			all[t.Tree] = append(all[t.Tree], f.Path+" "+string(f.What))
		}
	}
	return all
}

func wantGood(t *testing.T, c *checked) {
	t.Helper()
	found := c.check(t)
	if !found.Good() || len(found.Trees) != 3 || slices.ContainsFunc(found.Trees, func(x stage0.CheckedTree) bool { return !x.Proven() }) {
		t.Errorf("check: %+v", found)
	}
	again, err := c.VerifyImages(t.Context(), []store.Entry{c.entry})
	if err != nil || !again.Good() || len(again.Trees) != 3 {
		t.Errorf("verify: %+v, %v", again, err)
	}
}

// TestRepair damages a layer and the fix-up tree: the layer alone is fetched again, and
// a pod that is not started is in nobody's way.
func TestRepair(t *testing.T) {
	c := newChecked(t)
	wantGood(t, c)
	u := c.prepare(t)
	img := c.entry.Image
	err := errors.Join(os.WriteFile(c.file(0, "d/f"), []byte("CONTENT"), 0), os.Chmod(filepath.Join(c.Trees.Root(img.Fixup), "d"), 0o777))
	if err != nil {
		t.Fatal(err)
	}
	found := c.check(t)
	got := bad(found)
	if len(got) != 1 || !slices.Contains(got[img.Layers[0].Tree], "d/f content") || found.Good() {
		t.Errorf("found %v", got)
	}
	for _, x := range found.Trees {
		if len(x.Pods) != 1 || x.Pods[0] != (stage0.TreeUser{UUID: u, State: pod.Prepared}) || !slices.Equal(x.Images, []digest.Digest{img.ID}) {
			t.Errorf("tree %s is used by %v and of %v", x.Tree, x.Pods, x.Images)
		}
		if x.Fixup != (x.Unverifiable != "") {
			t.Errorf("tree %s: %q", x.Tree, x.Unverifiable)
		}
	}
	if err := c.RepairStore(t.Context(), &found); err != nil || !found.Good() {
		t.Fatalf("repair: %+v, %v", found, err)
	}
	for i, want := range []int{2, 1} {
		if n := c.proxy.Count("GET", digestOf(t, c.layers[i])); n != want {
			t.Errorf("layer %d was downloaded %d times", i, n)
		}
	}
	for _, x := range found.Trees {
		if (x.Tree == img.Layers[1].Tree) != (x.Repair == nil) {
			t.Errorf("tree %s: repair %+v", x.Tree, x.Repair)
		}
	}
	wantGood(t, c)
}

// TestRepairMissing removes trees altogether.
func TestRepairMissing(t *testing.T) {
	c := newChecked(t)
	for _, name := range c.entry.Image.Trees() {
		if err := os.RemoveAll(c.Trees.Path(name)); err != nil {
			t.Fatal(err)
		}
	}
	found := c.check(t)
	if len(bad(found)) != 2 { // the fix-up tree goes by the layers
		t.Errorf("found %v", bad(found))
	}
	if err := c.RepairStore(t.Context(), &found); err != nil || !found.Good() {
		t.Fatalf("repair: %+v, %v", found, err)
	}
	wantGood(t, c)
}

// TestRepairMounted holds that a tree stays under a pod that has it mounted.
func TestRepairMounted(t *testing.T) {
	c := newChecked(t)
	u := c.prepare(t)
	d, err := c.Pods.Lock(t.Context(), u)
	if err == nil {
		err = errors.Join(d.Intend(pod.Intent{Kind: "mount", App: "a"}), d.MakeRunDir(), d.MoveTo(pod.InRun), d.Close())
	}
	if err = errors.Join(err, os.WriteFile(c.file(0, "d/f"), []byte("CONTENT"), 0)); err != nil {
		t.Fatal(err)
	}
	found := c.check(t)
	if err := c.RepairStore(t.Context(), &found); err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(found.Trees, func(x stage0.CheckedTree) bool { return x.Repair != nil })
	if i < 0 || found.Good() || found.Trees[i].Repair.Done || !strings.Contains(found.Trees[i].Repair.Problem, "pod "+string(u)+" (running) has it mounted: stop") {
		t.Errorf("repair: %+v", found)
	}
	if text, err := os.ReadFile(c.file(0, "d/f")); err != nil || string(text) != "CONTENT" {
		t.Errorf("the tree has changed: %q, %v", text, err)
	}
	if n := c.proxy.Count("GET", digestOf(t, c.layers[0])); n != 1 {
		t.Errorf("the layer was downloaded %d times", n)
	}
	// One that is started while the layer comes is seen too.
	for j := range found.Trees {
		found.Trees[j].Pods, found.Trees[j].Repair = nil, nil
	}
	if err := c.RepairStore(t.Context(), &found); err != nil || !strings.Contains(found.Trees[i].Repair.Problem, "has it mounted") {
		t.Errorf("repair: %+v, %v", found.Trees[i].Repair, err)
	}
	if text, err := os.ReadFile(c.file(0, "d/f")); err != nil || string(text) != "CONTENT" {
		t.Errorf("the tree has changed: %q, %v", text, err)
	}
	wantEmpty(t, c.dir, "tmp")
	if d, err = c.Pods.Lock(t.Context(), u); err == nil {
		err = errors.Join(d.Undone(nil), d.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	found = c.check(t)
	if err := c.RepairStore(t.Context(), &found); err != nil || !found.Good() {
		t.Fatalf("repair: %+v, %v", found, err)
	}
	wantGood(t, c)
}

// TestRepairFails holds that a bad tree stays until there is a better one, and that the
// reason is told.
func TestRepairFails(t *testing.T) {
	for _, tc := range []struct {
		name string
		do   func(*testing.T, *checked) error
		want string
	}{
		{"registry has it no more", func(_ *testing.T, c *checked) error {
			c.denied = true
			return nil
		}, "not found"},
		{"no names", func(t *testing.T, c *checked) error {
			return errors.Join(c.Images.RemoveRef(t.Context(), c.entry.Tags[0]), c.Images.RemoveRef(t.Context(), c.entry.Digests[0]))
		}, "load them again"},
		{"tag moved", func(t *testing.T, c *checked) error {
			ref := store.Ref{Name: strings.Replace(c.entry.Tags[0], "i:1", "i:2", 1), Digest: c.entry.Image.ManifestDigest, Image: c.entry.Image.ID}
			return errors.Join(c.Images.SetRef(t.Context(), ref), c.Images.RemoveRef(t.Context(), c.entry.Tags[0]), c.Images.RemoveRef(t.Context(), c.entry.Digests[0]))
		}, "not found"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newChecked(t)
			if err := errors.Join(tc.do(t, c), os.Chmod(c.file(0, "d/f"), 0o777)); err != nil {
				t.Fatal(err)
			}
			found := c.check(t)
			if err := c.RepairStore(t.Context(), &found); err != nil || found.Good() {
				t.Fatalf("repair: %+v, %v", found, err)
			}
			r := found.Trees[slices.IndexFunc(found.Trees, func(x stage0.CheckedTree) bool { return x.Repair != nil })].Repair
			if r.Done || !strings.Contains(r.Problem, tc.want) {
				t.Errorf("repair: %+v", r)
			}
			if _, err := os.Stat(c.file(0, "d/f")); err != nil {
				t.Error(err)
			}
			wantEmpty(t, c.dir, "tmp")
		})
	}
}

// TestCheckRecords finds what is wrong with the records of images.
func TestCheckRecords(t *testing.T) {
	for name, damage := range map[string]func(dir string) error{
		"manifest.json": func(d string) error { return os.WriteFile(d+"/manifest.json", []byte("{}"), 0o644) },
		"config.json":   func(d string) error { return os.WriteFile(d+"/config.json", []byte("{}"), 0o644) },
		"image.json":    func(d string) error { return os.Truncate(d+"/image.json", 10) },
		"another tree": func(d string) error {
			b, err := os.ReadFile(d + "/image.json")
			text := strings.Replace(string(b), `"tree": "`, `"tree": "x`, 1)
			return errors.Join(err, os.WriteFile(d+"/image.json", []byte(text), 0o644))
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newChecked(t)
			if err := damage(filepath.Join(c.dir, "images", c.entry.Image.ID.Encoded())); err != nil {
				t.Fatal(err)
			}
			p, _ := newPipeline(t, c.dir) // records are kept in memory
			p.Pods = c.Pods
			found, err := p.CheckStore(t.Context())
			if err != nil || found.Good() || len(found.Records) != 1 {
				t.Errorf("check: %+v, %v", found, err)
			}
		})
	}
}

// TestCheckOthers looks at trees that no image has.
func TestCheckOthers(t *testing.T) {
	c := newChecked(t)
	layer := c.entry.Image.Layers[0].Tree
	if err := errors.Join(c.Images.Remove(t.Context(), c.entry.Image.ID), os.Chmod(c.file(0, "d"), 0o700)); err != nil {
		t.Fatal(err)
	}
	found := c.check(t)
	if got := bad(found); len(got) != 1 || !slices.Contains(got[layer], "d mode") || len(found.Trees) != 3 {
		t.Errorf("found %v of %+v", got, found)
	}
	// And at what is no tree.
	if err := os.Mkdir(c.Trees.Path("nothing"), 0o700); err != nil {
		t.Fatal(err)
	}
	if got := bad(c.check(t))["nothing"]; !slices.Equal(got, []string{"meta.json " + string(verify.Record)}) {
		t.Errorf("found %v", got)
	}
}

// TestCheckTogether collects and fetches while the store is checked.
func TestCheckTogether(t *testing.T) {
	c := newChecked(t)
	done := make(chan error, 1)
	go func() {
		var errs []error
		for range 5 {
			_, err := c.Fetch(context.Background(), request(t, c.proxy.Host+"/i:1"))
			errs = append(errs, err, c.Images.Remove(context.Background(), c.entry.Image.ID))
			if _, err = c.CollectTrees(context.Background()); !errors.Is(err, errdefs.ErrBusy) {
				errs = append(errs, err) // else it is put off
			}
		}
		done <- errors.Join(errs...)
	}()
	for {
		found, err := c.CheckStore(t.Context())
		if err != nil || !found.Good() {
			t.Errorf("check: %+v, %v", found, err)
		}
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
			return
		default:
		}
	}
}

// TestCheckLoaded names no registry for what came from a file.
func TestCheckLoaded(t *testing.T) {
	c := newChecked(t)
	if _, err := c.VerifyImages(t.Context(), []store.Entry{{Image: store.Image{ID: digest.FromString("x")}}}); err != nil {
		t.Errorf("an image that is removed meanwhile: %v", err)
	}
	if _, err := imageref.Parse(c.entry.Digests[0]); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.CheckStore(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestCheckACI proves an appc image and what it lies on; a tree that a pathWhitelist
// was rendered into cannot be.
func TestCheckACI(t *testing.T) {
	p := newHouse(t)
	base := load(t, p, aci(t, "example.com/base", "", "d/", "d/f", "e/g"))
	top := load(t, p, aci(t, "example.com/top", ","+dependsOn("example.com/base"), "e/h"))
	listed := load(t, p, aci(t, "example.com/listed", ","+dependsOn("example.com/base")+`,"pathWhitelist":["/d/f"]`, "x"))
	found, err := p.CheckStore(t.Context())
	if err != nil || !found.Good() {
		t.Fatalf("check: %+v, %v", found, err)
	}
	for _, x := range found.Trees {
		if rendered := x.Tree == listed.Image.Layers[0].Tree; rendered != strings.Contains(x.Unverifiable, "pathWhitelist") {
			t.Errorf("tree %s: %q", x.Tree, x.Unverifiable)
		}
	}
	if err := os.Chmod(filepath.Join(p.Trees.Root(base.Image.Layers[0].Tree), "d/f"), 0o777); err != nil {
		t.Fatal(err)
	}
	found, err = p.VerifyImages(t.Context(), []store.Entry{top})
	if got := bad(found); err != nil || !slices.Contains(got[base.Image.Layers[0].Tree], "d/f mode") || len(got) != 1 {
		t.Errorf("found %v, %v", got, err)
	}
	if err := p.RepairStore(t.Context(), &found); err != nil || found.Good() {
		t.Errorf("repair: %+v, %v", found, err)
	}
}
