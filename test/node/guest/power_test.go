//go:build node

package guest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
)

// expected is what the driver outside tells a boot of the last.
type expected struct {
	Prepared []string // UUIDs that were said to be prepared
	Present  bool     // whether the image of layers was said to be pulled
	Seed     uint64
}

func readExpected(t *testing.T) (e expected) {
	t.Helper()
	data, err := os.ReadFile("../expected.json")
	if err == nil {
		err = json.Unmarshal(data, &e)
	}
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// referenceFile says what every tree has when nothing disturbs its extraction.
const referenceFile = keepDir + "/reference.json"

// serveKept starts a registry with the images that were made outside.
func (n *node) serveKept(t *testing.T) (small, layers string) {
	t.Helper()
	n.serve(t)
	sh(t, "rm -rf "+n.registry.Data+" && ln -s /payload/registry "+n.registry.Data)
	return n.registry.Ref("small:1"), n.registry.Ref("layers:1")
}

// TestBeforePowerCuts extracts the images in peace, elsewhere, for comparison.
func TestBeforePowerCuts(t *testing.T) {
	n := connect(t)
	small, layers := n.serveKept(t)
	dir := harness.Dir(t)
	sh(t, fmt.Sprintf("gantry fetch --quiet --dir %s/lib --run-dir %s/run docker://%s docker://%s", dir, dir, small, layers))
	data, err := json.Marshal(describeTrees(t, filepath.Join(dir, "lib")))
	if err == nil {
		err = os.MkdirAll(keepDir, 0o755)
	}
	if err == nil {
		err = os.WriteFile(referenceFile, data, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	sh(t, "gantry fetch --quiet docker://"+small+" && sync")
}

// TestCut pulls and removes an image, by both doors in turn, and prepares and removes
// pods, and says so, until the power is cut. Which comes first is chance: most cuts come
// before there was much of the second.
func TestCut(t *testing.T) {
	n := connect(t)
	small, layers := n.serveKept(t)
	seed := readExpected(t).Seed
	random := rand.New(rand.NewPCG(seed, seed))
	n.removeLayers(t, layers)
	var pods []string
	for _, v := range list(t) {
		pods = append(pods, v.UUID)
	}
	say("begin")
	for i := random.IntN(4); ; i++ {
		switch i % 4 {
		case 0:
			if _, err := n.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: layers}}); err != nil {
				say("error pull: " + err.Error())
			}
			say("pulled")
		case 2:
			n.removeLayers(t, layers)
			gantry("fetch", "--quiet", "docker://"+layers)
			say("pulled")
		default:
			pods = prepareNext(small, pods)
		}
	}
}

// removeLayers removes the image of layers and its trees. Nobody may count on it from
// when that is said.
func (n *node) removeLayers(t *testing.T, ref string) {
	t.Helper()
	say("removing")
	if _, err := n.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}}); err != nil {
		say("error remove: " + err.Error())
	}
	gantry("gc")
}

// prepareNext prepares a pod, and removes the oldest when there are more than three.
func prepareNext(image string, pods []string) []string {
	uuid := gantry("prepare", "--quiet", "docker://"+image, "--exec=/bin/echo", "--", "prepared ran")
	say("prepared " + uuid)
	if pods = append(pods, uuid); len(pods) > 3 {
		say("dropping " + pods[0])
		gantry("rm", pods[0])
		pods = pods[1:]
	}
	return pods
}

// gantry runs a command; the driver outside counts a failure.
func gantry(args ...string) string {
	cmd := exec.Command("gantry", args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		say(fmt.Sprintf("error gantry %s: %v %q", args, err, stderr.String()))
	}
	return strings.TrimSpace(string(out))
}

// say tells the driver outside; it reads as far as the power was there.
func say(what string) { fmt.Println("cut: " + what) }

// TestWhole finds, after the power was cut, everything that was said to be done,
// and nothing half done. It needs no daemon and no systemd: hack/node/look runs it on
// a copy of the disk.
func TestWhole(t *testing.T) {
	want := readExpected(t)
	compareWithReference(t)
	sh(t, "gantry gc")
	if present := checkImages(t); want.Present && !present {
		t.Error("the image that was pulled is not there")
	}
	pods := list(t)
	for _, uuid := range want.Prepared {
		if !slices.ContainsFunc(pods, func(v podView) bool { return v.UUID == uuid && v.State == "prepared" }) {
			t.Errorf("pod %s was prepared and is not: %s", uuid, sh(t, "gantry list --full"))
		}
	}
	runPrepared(t, pods)
	sh(t, "gantry gc")
	if out := sh(t, "ls "+dataDir+"/tmp"); out != "" {
		t.Errorf("a sweep leaves %s", out)
	}
	t.Logf("%d pods, %d of them promised", len(pods), len(want.Prepared))
}

// TestAfterCuts runs in the node itself the pods that the last cut left, and finds
// nothing else.
func TestAfterCuts(t *testing.T) {
	connect(t)
	runPrepared(t, list(t))
	checkNothingLeft(t)
}

// runPrepared runs pods, and removes them.
func runPrepared(t *testing.T, pods []podView) {
	t.Helper()
	for _, v := range pods {
		if v.State != "prepared" {
			t.Errorf("pod %v", v)
			continue
		}
		if out := sh(t, "gantry run-prepared --net=none "+v.UUID+" 2>&1"); !strings.Contains(out, "prepared ran") {
			t.Errorf("pod %s says %q", v.UUID, out)
		}
		sh(t, "gantry rm "+v.UUID)
	}
}

// checkImages prepares a pod of every image that is listed, and reports whether the
// image of layers is.
func checkImages(t *testing.T) (layers bool) {
	t.Helper()
	var listed []struct {
		ID    string
		Names []string
	}
	if err := json.Unmarshal([]byte(sh(t, "gantry image list --format=json")), &listed); err != nil {
		t.Fatal(err)
	}
	for _, img := range listed {
		uuid := sh(t, "gantry prepare --pull-policy=never --quiet "+img.ID+" --exec=/bin/echo -- prepared ran")
		if slices.ContainsFunc(img.Names, func(s string) bool { return strings.HasSuffix(s, "/layers:1") }) {
			layers = true
			sh(t, "gantry rm "+uuid) // it has no program to run
		}
	}
	return layers
}

// compareWithReference compares every tree of the store with what came out of its
// layer in peace.
func compareWithReference(t *testing.T) {
	t.Helper()
	var reference map[string]map[string]string
	data, err := os.ReadFile(referenceFile)
	if err == nil {
		err = json.Unmarshal(data, &reference)
	}
	if err != nil {
		t.Fatal(err)
	}
	trees := describeTrees(t, dataDir)
	for name, files := range trees {
		if differences := compare(files, reference[name]); len(differences) > 0 {
			t.Errorf("tree %s is not whole: %d differences:\n  %s", name, len(differences), strings.Join(differences[:min(5, len(differences))], "\n  "))
		}
	}
	t.Logf("%d trees are compared", len(trees))
}

// describeTrees describes each tree of a data directory.
func describeTrees(t *testing.T, dir string) map[string]map[string]string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(dir, "trees"))
	if err != nil {
		t.Fatal(err)
	}
	trees := map[string]map[string]string{}
	for _, e := range entries {
		tree := filepath.Join(dir, "trees", e.Name())
		files := describe(filepath.Join(tree, "rootfs"))
		files["meta.json"] = diffID(tree)
		trees[e.Name()] = files
	}
	return trees
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
