package contract

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gantry-cri/gantry/test/harness"
)

// TestACIKilled kills the fetch of an appc image, which lies on another and has a path
// white list, at every hit of every point that it passes. The next one finishes, one sweep
// later there is what a fetch in peace leaves and no more, and all of it can be removed.
func TestACIKilled(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("extraction needs root")
	}
	g := harness.NewGantry(t, harness.GantryOptions{NoNetwork: true})
	dir := harness.Dir(t)
	base, app := filepath.Join(dir, "base.aci"), filepath.Join(dir, "app.aci")
	writeACI(t, base, "base", "", "etc/kept", "etc/left-out")
	writeACI(t, app, "app", `,"app":{"exec":["/bin/app"],"user":"0","group":"0"},"pathWhitelist":["/etc/kept","/bin/app"],
		"dependencies":[{"imageName":"example.com/base"}]`, "bin/app")
	hits := filepath.Join(dir, "hits")
	written := time.Now()
	harness.Eventually(t, time.Minute, func() string { // the store remembers no file that is younger
		if age := time.Since(written); age < 3*time.Second {
			return fmt.Sprintf("the images are %v old", age)
		}
		return ""
	})
	must := func(t *testing.T, env, file string) string {
		t.Helper()
		id, err := fetch(t, g, env, file)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	baseID := must(t, "", base)
	appID := must(t, "GANTRY_FAILPOINT_HITS="+hits, app)
	g.CLI(t, "gc") // what the white list was rendered of
	files := kept(t, g)
	clear := func(t *testing.T) {
		t.Helper()
		for _, id := range []string{appID, baseID} {
			g.CLI(t, "image", "rm", id)
		}
		g.CLI(t, "gc", "--grace-period=0s", "--expire-prepared=0s")
		if left := kept(t, g); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
	}
	clear(t)
	kills := 0
	for _, point := range sample(t, pointsOf(t, hits)) {
		t.Run(point, func(t *testing.T) {
			must(t, "", base)
			if _, err := fetch(t, g, "GANTRY_FAILPOINT="+point, app); !(&life{}).wasKilled(err) {
				t.Fatalf("not killed: %v", err)
			}
			kills++
			whole(t, g.Dir)
			if id := must(t, "", app); id != appID {
				t.Errorf("it became image %s, not %s", id, appID)
			}
			g.CLI(t, "rm", strings.TrimSpace(g.CLI(t, "prepare", "--quiet", app)))
			g.CLI(t, "gc")
			g.CLI(t, "fsck")
			if now := kept(t, g); !slices.Equal(now, files) {
				t.Errorf("there is\n%q\nnot\n%q", now, files)
			}
			clear(t)
		})
	}
	t.Logf("%d kills", kills)
}

// fetch fetches an image, with a variable in the environment, and returns its id.
func fetch(t *testing.T, g *harness.Gantry, env, file string) (string, error) {
	t.Helper()
	out, err := outputOf(t, g, env, "fetch", "--quiet", file)
	return strings.TrimSpace(string(out)), err
}

// writeACI makes an appc image example.com/NAME of files, with more in its manifest.
func writeACI(t *testing.T, path, name, more string, files ...string) {
	t.Helper()
	arch := runtime.GOARCH
	if arch == "arm64" {
		arch = "aarch64"
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	write := func(name, text string) {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o755, Size: int64(len(text))}
		if strings.HasSuffix(name, "/") {
			h.Typeflag = tar.TypeDir
		}
		err := w.WriteHeader(h)
		if err == nil {
			_, err = w.Write([]byte(text))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	write("manifest", fmt.Sprintf(`{"acKind":"ImageManifest","acVersion":"0.8.11","name":"example.com/%s",
		"labels":[{"name":"os","value":"linux"},{"name":"arch","value":"%s"}]%s}`, name, arch, more))
	write("rootfs/", "")
	for _, f := range files {
		write("rootfs/"+f, f)
	}
	if err := errors.Join(w.Close(), os.WriteFile(path, b.Bytes(), 0o644)); err != nil {
		t.Fatal(err)
	}
}

// kept is what images have in the data directory.
func kept(t *testing.T, g *harness.Gantry) []string {
	t.Helper()
	var all []string
	for _, folder := range []string{"trees", "tmp", "images", "refs", "files"} {
		for _, name := range entries(t, filepath.Join(g.Dir, folder)) {
			all = append(all, folder+"/"+name)
		}
	}
	return all
}
