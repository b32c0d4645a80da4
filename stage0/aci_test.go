package stage0_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha512"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/gantry-cri/gantry/stage0"
	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/imageref"
	"github.com/gantry-cri/gantry/stage0/pod"
	"github.com/gantry-cri/gantry/stage0/render"
	"github.com/gantry-cri/gantry/stage0/store"
	"github.com/gantry-cri/gantry/stage0/tree"
)

// aci writes an appc image whose files say which image they are of: more is what its
// manifest has beside the name, entries are paths, with / at the end of a directory's.
func aci(t *testing.T, name, more string, entries ...string) string {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(kind byte, path, body string, mode int64) {
		h := tar.Header{Typeflag: kind, Name: path, Mode: mode, Size: int64(len(body)), ModTime: time.Unix(1e9, 0)}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(body)); err != nil {
			t.Fatal(err)
		}
	}
	add(tar.TypeReg, "manifest", `{"acKind":"ImageManifest","acVersion":"0.8.11","name":"`+name+`"`+more+`}`, 0o644)
	add(tar.TypeDir, "rootfs/", "", 0o755)
	for _, e := range entries {
		if strings.HasSuffix(e, "/") {
			add(tar.TypeDir, "rootfs/"+e, "", 0o750)
		} else {
			add(tar.TypeReg, "rootfs/"+e, name, 0o644)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), filepath.Base(name)+".aci")
	if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// appcID is the image id of an uncompressed file, as appc has it.
func appcID(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("sha512-%x", sha512.Sum512(data))
}

// newHouse is a pipeline with pods: trees are collected.
func newHouse(t *testing.T) *stage0.Pipeline {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	p, _ := newPipeline(t, dir)
	var err error
	if p.Pods, err = pod.Open(dir, filepath.Join(dir, "run")); err != nil {
		t.Fatal(err)
	}
	return p
}

func load(t *testing.T, p *stage0.Pipeline, file string) store.Entry {
	t.Helper()
	e, err := p.Load(t.Context(), imageref.Location{Transport: imageref.ACI, Path: file}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func list(t *testing.T, p *stage0.Pipeline) []store.Entry {
	t.Helper()
	all, err := p.Images.List()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// shown are the paths of an image's root filesystem with the image that each file
// is of.
func shown(t *testing.T, p *stage0.Pipeline, img store.Image) string {
	t.Helper()
	job := render.Job{To: filepath.Join(t.TempDir(), "copy")}
	for _, name := range img.Trees() {
		job.Roots = append(job.Roots, filepath.Join(p.Trees.Path(name), "rootfs"))
	}
	if err := job.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	var all []string
	err := filepath.WalkDir(job.To, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == job.To {
			return err
		}
		text := path[len(job.To)+1:] + "/"
		if !d.IsDir() {
			body, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			text = strings.TrimSuffix(text, "/") + "=" + filepath.Base(string(body))
		}
		all = append(all, text)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(all, " ")
}

func TestLoadACI(t *testing.T) {
	needRoot(t)
	p, o := newPipeline(t, t.TempDir())
	file := aci(t, "example.com/app", `,"labels":[{"name":"os","value":"linux"},{"name":"arch","value":"aarch64"}],"app":{"exec":["/a","b"],"user":"0","group":"7","environment":[{"name":"A","value":"b"}]}`, "a", ".wh.b")
	e := load(t, p, file)
	id := appcID(t, file)
	if e.Image.AppcID != id || e.Image.Kind != store.KindACI || len(e.Tags)+len(e.Digests) != 0 || e.Image.Platform.Architecture != "arm64" {
		t.Errorf("image %+v, want %s", e, id)
	}
	if got := shown(t, p, e.Image); got != ".wh.b=app a=app" {
		t.Errorf("it shows %s", got)
	}
	if o.String() != "resolve ok, fetch ok, verify ok, extract ok" {
		t.Errorf("stages: %s", o)
	}
	config, err := p.Images.Config(e.Image.ID)
	if err != nil || !slices.Equal(config.Config.Entrypoint, []string{"/a", "b"}) || config.Config.User != "0:7" || !slices.Equal(config.Config.Env, []string{"A=b"}) {
		t.Errorf("config %+v, %v", config, err)
	}
	im, err := stage0.AppcManifest(p.Images, e.Image)
	if err != nil || im.Name != "example.com/app" {
		t.Errorf("manifest %+v, %v", im, err)
	}
	for _, by := range []string{id, id[:20], string(e.Image.ID)} {
		if found, err := p.Images.Lookup(by); err != nil || found.Image.ID != e.Image.ID {
			t.Errorf("Lookup(%s) = %+v, %v", by, found, err)
		}
	}
	if again := load(t, p, file); again.Image.ID != e.Image.ID {
		t.Errorf("loaded again it is %s, was %s", again.Image.ID, e.Image.ID)
	}
	trees, err := p.Trees.List()
	if err != nil || len(trees) != 1 {
		t.Errorf("trees %q, %v", trees, err)
	}
}

// TestLoadACIRefused holds that nothing of what is refused stays.
func TestLoadACIRefused(t *testing.T) {
	needRoot(t)
	for name, tc := range map[string]struct {
		more  string
		class error
		want  string
	}{
		"no JSON":            {`,,`, errdefs.ErrInvalid, "decode image manifest"},
		"null isolator":      {`,"app":{"exec":["/a"],"user":"0","group":"0","isolators":[{"name":"resource/cpu"}]}`, errdefs.ErrInvalid, "has no value"},
		"no user":            {`,"app":{"exec":["/a"],"group":"0"}`, errdefs.ErrInvalid, "user is required"},
		"relative list":      {`,"pathWhitelist":["a"]`, errdefs.ErrInvalid, `"a" is not an absolute path`},
		"missing dependency": {`,"dependencies":[{"imageName":"example.com/base","labels":[{"name":"version","value":"1"}]}]`, errdefs.ErrNotFound, "it depends on example.com/base,version=1, which is not in the store"},
		"dependency by id":   {`,"dependencies":[{"imageName":"example.com/base","imageID":"sha512-00"}]`, errdefs.ErrNotFound, "it depends on example.com/base (sha512-00)"},
	} {
		t.Run(name, func(t *testing.T) {
			p, _ := newPipeline(t, t.TempDir())
			_, err := p.Load(t.Context(), imageref.Location{Transport: imageref.ACI, Path: aci(t, "example.com/app", tc.more, "a")}, nil)
			if !errors.Is(err, tc.class) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
			trees, _ := p.Trees.List()
			images, _ := p.Images.List()
			if len(trees)+len(images) > 0 {
				t.Errorf("left: %q, %+v", trees, images)
			}
		})
	}
	p, _ := newPipeline(t, t.TempDir())
	for file, class := range map[string]error{t.TempDir(): errdefs.ErrInvalid, "/nowhere.aci": errdefs.ErrNotFound, "/dev/zero": errdefs.ErrInvalid} {
		if _, err := p.Load(t.Context(), imageref.Location{Transport: imageref.ACI, Path: file}, nil); !errors.Is(err, class) {
			t.Errorf("%s: %v", file, err)
		}
	}
}

func dependsOn(names ...string) string {
	var list []string
	for _, n := range names {
		list = append(list, `{"imageName":"`+n+`"}`)
	}
	return `"dependencies":[` + strings.Join(list, ",") + `]`
}

// TestACIDependencies: acceptance cases 38 and 42 of rkt-prepare.md, but for the
// white lists.
func TestACIDependencies(t *testing.T) {
	needRoot(t)
	for name, tc := range map[string]struct {
		images [][]string // name, names of dependencies separated by a blank, entries
		want   string     // of the last
	}{
		"files of the parent":      {[][]string{{"base", "", "a", "d/", "d/b"}, {"top", "base", "c"}}, "a=base c=top d/ d/b=base"},
		"a file over a file":       {[][]string{{"base", "", "a", "b"}, {"top", "base", "b"}}, "a=base b=top"},
		"a file over a directory":  {[][]string{{"base", "", "d/", "d/a"}, {"top", "base", "d"}}, "d=top"},
		"a directory over a file":  {[][]string{{"base", "", "d"}, {"top", "base", "d/", "d/a"}}, "d/ d/a=top"},
		"no files of its own":      {[][]string{{"base", "", "a"}, {"top", "base"}}, "a=base"},
		"the last dependency wins": {[][]string{{"b", "", "a", "b"}, {"c", "", "a"}, {"top", "b c"}}, "a=c b=b"},
		"A over B, C, D; C and D over B, E; E over base": {[][]string{
			{"base", "", "1", "2", "3", "4", "5", "6"},
			{"e", "base", "2", "3", "4", "5", "6"},
			{"b", "", "3", "4", "5", "6"},
			{"c", "b e", "4", "5", "6"},
			{"d", "b e", "5", "6"},
			{"a", "b c d", "6"},
		}, "1=base 2=e 3=e 4=e 5=d 6=a"},
	} {
		t.Run(name, func(t *testing.T) {
			p, _ := newPipeline(t, t.TempDir())
			var e store.Entry
			for _, i := range tc.images {
				var needs []string
				for n := range strings.FieldsSeq(i[1]) {
					needs = append(needs, "example.com/"+n)
				}
				e = load(t, p, aci(t, "example.com/"+i[0], ","+dependsOn(needs...), i[2:]...))
			}
			if got := shown(t, p, e.Image); got != tc.want {
				t.Errorf("it shows %s\n     want %s", got, tc.want)
			}
		})
	}
}

// TestACIWhitelist: acceptance cases 42 and 43.
func TestACIWhitelist(t *testing.T) {
	list := func(paths ...string) string { return `"pathWhitelist":["` + strings.Join(paths, `","`) + `"]` }
	base := []string{"a", "b", "d/", "d/c"}
	top := []string{"b", "d/", "d/x", "e"}
	for name, tc := range map[string]struct {
		top, base string
		want      string
	}{
		"none":                {want: "a=base b=top d/ d/c=base d/x=top e=top"},
		"on top":              {top: list("/a", "/b"), want: "a=base b=top d/"},
		"directories on top":  {top: list("/a", "/d", "/d/c", "/e"), want: "a=base d/ d/c=base e=top"},
		"implied directories": {top: list("/d/c"), want: "d/ d/c=base"},
		"below":               {base: list("/a"), want: "a=base b=top d/ d/x=top e=top"},
		"on both":             {base: list("/b", "/d/c"), top: list("/d/c", "/a"), want: "d/ d/c=base"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newHouse(t)
			more := func(part string) string {
				if part == "" {
					return ""
				}
				return "," + part
			}
			load(t, p, aci(t, "example.com/base", more(tc.base), base...))
			e := load(t, p, aci(t, "example.com/top", ","+dependsOn("example.com/base")+more(tc.top), top...))
			if got := shown(t, p, e.Image); got != tc.want {
				t.Errorf("it shows %s\n     want %s", got, tc.want)
			}
			if again := load(t, p, aci(t, "example.com/top", ","+dependsOn("example.com/base")+more(tc.top), top...)); again.Image.ID != e.Image.ID {
				t.Errorf("again it is %s, was %s", again.Image.ID, e.Image.ID)
			}
			if _, err := p.CollectTrees(t.Context()); err != nil {
				t.Error(err)
			}
			if got := shown(t, p, e.Image); got != tc.want {
				t.Errorf("after a collection it shows %s\n     want %s", got, tc.want)
			}
		})
	}
}

// TestACIDependencyChoice holds that labels and id choose, that the newest is taken
// where several will do, and that the image is another one on another base.
func TestACIDependencyChoice(t *testing.T) {
	p := newHouse(t)
	version := func(v string) string { return `,"labels":[{"name":"version","value":"` + v + `"}]` }
	one := aci(t, "example.com/base", version("1"), "one")
	load(t, p, one)
	app := aci(t, "example.com/app", ","+dependsOn("example.com/base"), "app")
	first := load(t, p, app)
	two := load(t, p, aci(t, "example.com/base", version("2"), "two"))
	second := load(t, p, app)
	if got := shown(t, p, second.Image); got != "app=app two=base" || first.Image.ID == second.Image.ID || first.Image.AppcID != second.Image.AppcID {
		t.Errorf("on the newer base it shows %s; %s, before %s", got, second.Image.ID, first.Image.ID)
	}
	if e, err := p.Images.Lookup(first.Image.AppcID); err != nil || e.Image.ID != second.Image.ID {
		t.Errorf("its appc id means %s, %v, not the latest", e.Image.ID, err)
	}
	labelled := load(t, p, aci(t, "example.com/l", `,"dependencies":[{"imageName":"example.com/base","labels":[{"name":"version","value":"1"}]}]`))
	byID := load(t, p, aci(t, "example.com/i", `,"dependencies":[{"imageName":"example.com/base","imageID":"`+appcID(t, one)+`"}]`))
	for _, e := range []store.Entry{labelled, byID} {
		if got := shown(t, p, e.Image); got != "one=base" {
			t.Errorf("it shows %s", got)
		}
	}
	// What lies on it keeps the tree.
	if err := p.Images.Remove(t.Context(), two.Image.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := p.CollectTrees(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := shown(t, p, second.Image); got != "app=app two=base" {
		t.Errorf("without the base it shows %s", got)
	}
}

// TestACIIsReadOnce holds that a file that has not changed is not read again, that its
// dependencies are looked up all the same, and that it is read again where it must.
func TestACIIsReadOnce(t *testing.T) {
	p := newHouse(t)
	o := p.Observer.(*observer)
	base := `,"labels":[{"name":"version","value":"1"}]`
	load(t, p, aci(t, "example.com/base", base, "one"))
	app := aci(t, "example.com/app", ","+dependsOn("example.com/base"), "app")
	old := time.Now()
	for time.Since(old) < 2100*time.Millisecond {
		<-time.After(100 * time.Millisecond)
	}
	read := func() bool {
		t.Helper()
		before := o.bytes
		load(t, p, app)
		return o.bytes > before
	}
	if !read() || read() {
		t.Error("it was not read once")
	}
	load(t, p, aci(t, "example.com/base", base, "two"))
	before := o.bytes
	if got := shown(t, p, load(t, p, app).Image); got != "app=app two=base" || o.bytes > before {
		t.Errorf("on the newer base it shows %s; %d bytes were read", got, o.bytes-before)
	}
	// The base is no image any more, and this one is whole all the same.
	for _, e := range list(t, p) {
		if e.Image.AppcID != appcID(t, app) {
			if err := p.Images.Remove(t.Context(), e.Image.ID); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := shown(t, p, load(t, p, app).Image); got != "app=app two=base" {
		t.Errorf("without its base it shows %s", got)
	}
	load(t, p, aci(t, "example.com/base", base, "two"))
	// Its tree is gone, as after gantry gc of an image with a white list.
	e := load(t, p, app)
	if err := p.Trees.Remove(t.Context(), e.Image.Trees()[0]); err != nil {
		t.Fatal(err)
	}
	if !read() || read() {
		t.Error("without its tree it was not read once")
	}
	if err := os.Chmod(app, 0o640); err != nil {
		t.Fatal(err)
	}
	if !read() {
		t.Error("changed it was not read")
	}
}

// TestACIBroken holds that a manifest that is damaged costs its own image alone.
func TestACIBroken(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	p, _ := newPipeline(t, dir)
	load(t, p, aci(t, "example.com/base", "", "base"))
	broken := load(t, p, aci(t, "example.com/broken", "", "broken"))
	if err := os.WriteFile(filepath.Join(dir, "images", broken.Image.ID.Encoded(), "manifest.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := stage0.AppcManifest(p.Images, broken.Image); !stage0.IsBroken(err) {
		t.Errorf("its manifest: %v", err)
	}
	if got := shown(t, p, load(t, p, aci(t, "example.com/app", ","+dependsOn("example.com/base"), "app")).Image); got != "app=app base=base" {
		t.Errorf("beside it an image shows %s", got)
	}
	_, err := p.Load(t.Context(), imageref.Location{Transport: imageref.ACI, Path: aci(t, "example.com/app", ","+dependsOn("example.com/broken"))}, nil)
	if !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("on it: %v", err)
	}
}

// TestACICycle: acceptance case 44.
func TestACICycle(t *testing.T) {
	needRoot(t)
	p, _ := newPipeline(t, t.TempDir())
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	for name, on := range map[string]string{"a": "b", "b": "a", "self": "self"} {
		_, err := p.Load(ctx, imageref.Location{Transport: imageref.ACI, Path: aci(t, "example.com/"+name, ","+dependsOn("example.com/"+on))}, nil)
		if !errors.Is(err, errdefs.ErrNotFound) || !strings.Contains(err.Error(), "it depends on example.com/"+on) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestACIIsNoLayer holds that no configuration gets the tree of an appc image by its
// digest.
func TestACIIsNoLayer(t *testing.T) {
	needRoot(t)
	p, _ := newPipeline(t, t.TempDir())
	e := load(t, p, aci(t, "example.com/app", "", "a"))
	id := digest.Digest(strings.Replace(e.Image.AppcID, "-", ":", 1))
	if e.Image.Layers[0].DiffID != id {
		t.Fatalf("layers %+v", e.Image.Layers)
	}
	if _, ok, err := p.Trees.Has(id); ok || err != nil {
		t.Errorf("Has = %v, %v", ok, err)
	}
	if _, ok, err := p.Trees.Has(tree.ACIKey(id)); !ok || err != nil {
		t.Errorf("Has of its key = %v, %v", ok, err)
	}
}
