//go:build node

package guest

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/images"
)

// expected is what the last boot was told to be done before the power was cut.
type expected struct {
	Prepared []string // UUIDs
	Present  bool     // the image of layers
}

// registryDir keeps what the registry serves, the same in every boot.
const registryDir = keepDir + "/registry"

// TestBeforePowerCuts makes what is pulled and prepared while the power is cut.
func TestBeforePowerCuts(t *testing.T) {
	n := connect(t)
	n.serve(t)
	small, err := images.Busybox(images.Options{})
	if err != nil {
		t.Fatal(err)
	}
	n.push(t, "small:1", small)
	layers, err := images.Big(t.TempDir(), images.BigSpec{MB: 16, Files: 600, Layers: 4, Seed: 6}, images.Options{})
	if err != nil {
		t.Fatal(err)
	}
	n.push(t, "layers:1", layers)
	sh(t, "mkdir -p "+keepDir+" && cp -a "+n.registry.Data+" "+registryDir+" && gantry gc && sync")
}

// serveKept starts a registry with what TestBeforePowerCuts made.
func (n *node) serveKept(t *testing.T) {
	t.Helper()
	n.serve(t)
	sh(t, "mkdir -p "+n.registry.Data+" && cp -a "+registryDir+"/. "+n.registry.Data)
}

// TestCut pulls and prepares, and says so, until the power is cut.
func TestCut(t *testing.T) {
	n := connect(t)
	n.serveKept(t)
	layers, small := n.registry.Ref("layers:1"), n.registry.Ref("small:1")
	sh(t, "gantry fetch --quiet docker://"+small+" && sync")
	say("begin")
	go func() {
		for {
			uuid := sh(t, "gantry prepare --quiet docker://"+small+" -- echo prepared ran")
			say("prepared " + uuid)
		}
	}()
	for {
		resp, err := n.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: layers}})
		if err != nil {
			t.Fatal(err)
		}
		say("pulled")
		time.Sleep(rand.N(2 * time.Second))
		say("removing")
		if _, err := n.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: resp.ImageRef}}); err != nil {
			t.Fatal(err)
		}
		sh(t, "gantry gc")
	}
}

// say tells the driver outside; it reads as far as the power was there.
func say(what string) { fmt.Println("cut: " + what) }

// TestWhole finds, after the power was cut, everything that was said to be done,
// and nothing half done.
func TestWhole(t *testing.T) {
	var want expected
	data, err := os.ReadFile("../expected.json")
	if err == nil {
		err = json.Unmarshal(data, &want)
	}
	if err != nil {
		t.Fatal(err)
	}
	n := connect(t)
	n.serveKept(t)
	compareWithReference(t, n)
	if present := checkImages(t, n); want.Present && !present {
		t.Error("the image that was pulled is not there")
	}
	pods := list(t)
	for _, uuid := range want.Prepared {
		if !slices.ContainsFunc(pods, func(v podView) bool { return v.UUID == uuid && v.State == "prepared" }) {
			t.Errorf("pod %s was prepared and is not: %s", uuid, sh(t, "gantry list --full"))
		}
	}
	for _, v := range pods {
		if v.State != "prepared" {
			t.Errorf("pod %v", v)
			continue
		}
		if out := sh(t, "gantry run-prepared "+v.UUID+" 2>&1"); !strings.Contains(out, "prepared ran") {
			t.Errorf("pod %s says %q", v.UUID, out)
		}
		sh(t, "gantry rm "+v.UUID)
	}
	sh(t, "gantry gc")
	checkNothingLeft(t)
	t.Logf("%d pods, %d of them promised", len(pods), len(want.Prepared))
}

// checkImages runs a pod of every image that is listed, and reports whether the
// image of layers is.
func checkImages(t *testing.T, n *node) (layers bool) {
	t.Helper()
	resp, err := n.ListImages(t.Context(), &runtimeapi.ListImagesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range resp.Images {
		if out := sh(t, "gantry prepare --pull-policy=never --quiet "+img.Id+" -- echo prepared ran"); out == "" {
			t.Errorf("prepare of %s says nothing", img.Id)
		}
		layers = layers || slices.ContainsFunc(img.RepoTags, func(s string) bool { return strings.HasSuffix(s, "/layers:1") })
	}
	return layers
}

// compareWithReference extracts the images again, elsewhere, and compares every
// tree of the store with the one that comes out there.
func compareWithReference(t *testing.T, n *node) {
	t.Helper()
	ref := harness.Dir(t)
	sh(t, fmt.Sprintf("gantry fetch --quiet --dir %s/lib --run-dir %s/run docker://%s docker://%s", ref, ref, n.registry.Ref("layers:1"), n.registry.Ref("small:1")))
	trees, err := os.ReadDir(filepath.Join(dataDir, "trees"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tree := range trees {
		got, want := filepath.Join(dataDir, "trees", tree.Name()), filepath.Join(ref, "lib", "trees", tree.Name())
		if differences := compare(got+"/rootfs", want+"/rootfs"); len(differences) > 0 {
			t.Errorf("tree %s is not whole: %d differences:\n  %s", tree.Name(), len(differences), strings.Join(differences[:min(5, len(differences))], "\n  "))
		}
		if diff, ref := diffID(got), diffID(want); diff != ref {
			t.Errorf("tree %s claims %s, want %s", tree.Name(), diff, ref)
		}
	}
	t.Logf("%d trees are whole", len(trees))
}

// diffID is what a tree says of which layer it is.
func diffID(tree string) string {
	var meta struct{ DiffID string }
	data, err := os.ReadFile(filepath.Join(tree, "meta.json"))
	if err == nil {
		err = json.Unmarshal(data, &meta)
	}
	if err != nil {
		return err.Error()
	}
	return meta.DiffID
}
