package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/format"
	"github.com/gantry-cri/gantry/stage0/imageref"
)

type sample struct {
	image            Image
	manifest, config []byte
}

// newSample makes an image that differs from others by n.
func newSample(t testing.TB, n int) sample {
	t.Helper()
	config, err := json.Marshal(ocispec.Image{Author: fmt.Sprint(n), Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}})
	if err != nil {
		t.Fatal(err)
	}
	manifest := []byte(fmt.Sprintf(`{"schemaVersion":2,"n":%d}`, n))
	return sample{
		image: Image{
			ID:             digest.FromBytes(config),
			ManifestDigest: digest.FromBytes(manifest),
			AppcID:         "sha512-" + digest.SHA512.FromBytes(manifest).Encoded(),
			Layers:         []Layer{{Digest: digest.FromString("b"), DiffID: digest.FromString("d"), Tree: "aaaaaaaaaaaa"}},
			Size:           int64(n),
			PulledAt:       time.Unix(int64(n), 0).UTC(),
		},
		manifest: manifest, config: config,
	}
}

func (x sample) put(t testing.TB, s *Store, names ...string) {
	t.Helper()
	var refs []Ref
	for _, n := range names {
		refs = append(refs, Ref{Name: n, Digest: x.image.ManifestDigest})
	}
	if err := s.Commit(context.Background(), x.image, x.manifest, x.config, refs...); err != nil {
		t.Fatal(err)
	}
}

func open(t testing.TB) (*Store, string) {
	t.Helper()
	dir := t.TempDir()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s, dir
}

func wantEmptyTmp(t *testing.T, dir string) {
	t.Helper()
	left, err := os.ReadDir(filepath.Join(dir, tmpDir))
	if err != nil || len(left) != 0 {
		t.Errorf("tmp holds %v, %v; want nothing", left, err)
	}
}

func TestCommitAndRead(t *testing.T) {
	s, dir := open(t)
	x := newSample(t, 1)
	tag, dig := "docker.io/library/a:1", "docker.io/library/a@"+x.image.ManifestDigest.String()
	x.put(t, s, tag, dig)
	x.put(t, s, tag, dig) // idempotent
	wantEmptyTmp(t, dir)
	again, err := Open(dir) // another process
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*Store{s, again, again} {
		img, err := s.Get(x.image.ID)
		if err != nil {
			t.Fatal(err)
		}
		want := x.image
		want.Schema = format.Image.Current
		if !reflect.DeepEqual(img, want) {
			t.Errorf("Get = %+v, want %+v", img, want)
		}
		if c, err := s.Config(x.image.ID); err != nil || c.Author != "1" {
			t.Errorf("Config = %+v, %v", c, err)
		}
		if m, err := s.Manifest(x.image.ID); err != nil || string(m) != string(x.manifest) {
			t.Errorf("Manifest = %s, %v", m, err)
		}
		es, err := s.List()
		if err == nil && len(es) == 1 {
			if since := time.Since(es[0].NamedAt); since < 0 || since > time.Minute {
				t.Errorf("named %v ago", since)
			}
			es[0].NamedAt = time.Time{}
		}
		if err != nil || len(es) != 1 || !reflect.DeepEqual(es[0], Entry{Image: want, Tags: []string{tag}, Digests: []string{dig}}) {
			t.Errorf("List = %+v, %v", es, err)
		}
	}
}

func TestCommitRefuses(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*sample)
		want   error
	}{
		{"config of another digest", func(x *sample) { x.config = []byte("{}") }, errdefs.ErrUnverified},
		{"manifest of another digest", func(x *sample) { x.manifest = []byte("{}") }, errdefs.ErrUnverified},
		{"id that is no digest", func(x *sample) { x.image.ID = "sha256:../../x" }, errdefs.ErrInvalid},
		{"id of another algorithm", func(x *sample) { x.image.ID = digest.SHA512.FromBytes(x.config) }, errdefs.ErrInvalid},
		{"no manifest digest", func(x *sample) { x.image.ManifestDigest = "" }, errdefs.ErrInvalid},
		{"tree that is a path", func(x *sample) { x.image.Layers[0].Tree = "../x" }, errdefs.ErrInvalid},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, dir := open(t)
			x := newSample(t, 1)
			tc.change(&x)
			if err := s.Put(context.Background(), x.image, x.manifest, x.config); !errors.Is(err, tc.want) {
				t.Errorf("Put: %v, want %v", err, tc.want)
			}
			if es, err := s.List(); err != nil || len(es) != 0 {
				t.Errorf("List = %v, %v, want nothing", es, err)
			}
			wantEmptyTmp(t, dir)
		})
	}
}

func TestTrees(t *testing.T) {
	img := Image{Fixup: "fix", Layers: []Layer{{Tree: "a"}, {Tree: "b"}, {Tree: "a"}, {Tree: "c"}}}
	if got := fmt.Sprint(img.Trees()); got != "[fix c a b]" {
		t.Errorf("Trees = %s", got)
	}
}

func TestLookup(t *testing.T) {
	s, _ := open(t)
	a, b := newSample(t, 1), newSample(t, 2)
	a.put(t, s, "docker.io/library/a:latest", "docker.io/library/a:2", "docker.io/library/a@"+a.image.ManifestDigest.String())
	b.put(t, s, "host:5000/b:1")
	hexID := a.image.ID.Encoded()
	// A name that is spelt like a beginning of b's id.
	b.put(t, s, "docker.io/library/"+hexID[:12]+":latest")
	for _, tc := range []struct {
		name, in string
		want     digest.Digest
		err      error
	}{
		{name: "id", in: a.image.ID.String(), want: a.image.ID},
		{name: "bare id", in: hexID, want: a.image.ID},
		{name: "short id", in: hexID[:10], want: a.image.ID},
		{name: "short id with algorithm", in: "sha256:" + hexID[:10], want: a.image.ID},
		{name: "name before short id", in: hexID[:12], want: b.image.ID},
		{name: "appc id", in: a.image.AppcID, want: a.image.ID},
		{name: "short appc id", in: b.image.AppcID[:20], want: b.image.ID},
		{name: "familiar name", in: "a", want: a.image.ID},
		{name: "rkt URL", in: "docker://a:2", want: a.image.ID},
		{name: "full name", in: "docker.io/library/a:latest", want: a.image.ID},
		{name: "port", in: "host:5000/b:1", want: b.image.ID},
		{name: "digest", in: "a@" + a.image.ManifestDigest.String(), want: a.image.ID},
		{name: "tag and digest", in: "a:other@" + a.image.ManifestDigest.String(), want: a.image.ID},
		{name: "digest of another repository", in: "c@" + a.image.ManifestDigest.String(), err: errdefs.ErrNotFound},
		{name: "absent tag", in: "a:3", err: errdefs.ErrNotFound},
		{name: "absent id", in: "sha256:" + strings.Repeat("0", 64), err: errdefs.ErrNotFound},
		{name: "absent bare id", in: strings.Repeat("0", 64), err: errdefs.ErrNotFound},
		{name: "absent short id", in: "sha256:" + strings.Repeat("0", 20), err: errdefs.ErrNotFound},
		{name: "too short", in: "sha256:" + hexID[:2], err: errdefs.ErrInvalid},
		{name: "not hex", in: "sha512-xyz", err: errdefs.ErrInvalid},
		{name: "no name", in: "A B", err: errdefs.ErrInvalid},
		{name: "empty", in: "", err: errdefs.ErrInvalid},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e, err := s.Lookup(tc.in)
			if !errors.Is(err, tc.err) || e.Image.ID != tc.want {
				t.Errorf("Lookup(%q) = %s, %v, want %s, %v", tc.in, e.Image.ID, err, tc.want, tc.err)
			}
		})
	}
	e, err := s.Lookup("a")
	if err != nil || fmt.Sprint(e.Tags) != "[docker.io/library/a:2 docker.io/library/a:latest]" || len(e.Digests) != 1 {
		t.Errorf("Lookup(a) = %+v, %v", e, err)
	}
}

func TestFind(t *testing.T) {
	s, _ := open(t)
	a := newSample(t, 1)
	a.put(t, s, "docker.io/library/a:latest", "docker.io/library/a@"+a.image.ManifestDigest.String())
	for name, want := range map[string]error{
		"a": nil, "a:latest": nil, "a@" + a.image.ManifestDigest.String(): nil,
		"a:2": errdefs.ErrNotFound, "b": errdefs.ErrNotFound,
	} {
		ref, err := imageref.Parse(name)
		if err != nil {
			t.Fatal(err)
		}
		if img, err := s.Find(ref); !errors.Is(err, want) || want == nil && img.ID != a.image.ID {
			t.Errorf("%s: %s, %v, want %v", name, img.ID, err, want)
		}
	}
}

func TestLookupAmbiguous(t *testing.T) {
	s, _ := open(t)
	byPrefix := map[string]digest.Digest{}
	for n := 0; ; n++ {
		x := newSample(t, n)
		p := x.image.ID.Encoded()[:3]
		if _, ok := byPrefix[p]; ok {
			x.put(t, s)
			for m := 0; m < n; m++ {
				if y := newSample(t, m); y.image.ID == byPrefix[p] {
					y.put(t, s)
				}
			}
			if e, err := s.Lookup(p); !errors.Is(err, errdefs.ErrInvalid) || !strings.Contains(err.Error(), "ambiguous") {
				t.Errorf("Lookup(%q) = %s, %v, want ErrInvalid", p, e.Image.ID, err)
			}
			return
		}
		byPrefix[p] = x.image.ID
	}
}

func TestRefs(t *testing.T) {
	s, dir := open(t)
	a, b := newSample(t, 1), newSample(t, 2)
	a.put(t, s, "docker.io/library/x:1")
	b.put(t, s)
	ctx := context.Background()
	if err := s.SetRef(ctx, Ref{Name: "docker.io/library/x:1", Image: b.image.ID}); err != nil {
		t.Fatal(err)
	}
	if e, err := s.Lookup("x:1"); err != nil || e.Image.ID != b.image.ID {
		t.Errorf("the name is still of %s, %v", e.Image.ID, err)
	}
	if e, err := s.Lookup(a.image.ID.String()); err != nil || len(e.Tags) != 0 {
		t.Errorf("Lookup = %+v, %v, want the image without a name", e, err)
	}
	err := s.SetRef(ctx, Ref{Name: "docker.io/library/x:2", Image: digest.FromString("gone")})
	if !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("SetRef of an absent image: %v", err)
	}
	for range 2 {
		if err := s.RemoveRef(ctx, "docker.io/library/x:1"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Lookup("x:1"); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("Lookup after RemoveRef: %v", err)
	}
	wantEmptyTmp(t, dir)
}

func TestRemove(t *testing.T) {
	s, dir := open(t)
	other, err := Open(dir) // another process, with everything in memory
	if err != nil {
		t.Fatal(err)
	}
	a, b := newSample(t, 1), newSample(t, 2)
	a.put(t, s, "docker.io/library/x:1", "host:1/y:2")
	b.put(t, s, "docker.io/library/z:1")
	if es, err := other.List(); err != nil || len(es) != 2 {
		t.Fatalf("List = %v, %v", es, err)
	}
	var wg sync.WaitGroup
	for range 5 { // five at once all succeed
		wg.Go(func() {
			if err := s.Remove(context.Background(), a.image.ID); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, s := range []*Store{s, other} {
		for _, name := range []string{a.image.ID.String(), "x:1", "host:1/y:2", a.image.AppcID} {
			if _, err := s.Lookup(name); !errors.Is(err, errdefs.ErrNotFound) {
				t.Errorf("Lookup(%s) after removal: %v", name, err)
			}
		}
		if _, err := s.Get(a.image.ID); !errors.Is(err, errdefs.ErrNotFound) {
			t.Errorf("Get after removal: %v", err)
		}
		if es, err := s.List(); err != nil || len(es) != 1 || es[0].Image.ID != b.image.ID {
			t.Errorf("List after removal = %v, %v", es, err)
		}
	}
	if refs, err := os.ReadDir(filepath.Join(dir, refsDir)); err != nil || len(refs) != 1 {
		t.Errorf("refs holds %v, %v", refs, err)
	}
	wantEmptyTmp(t, dir)
}

// One broken file costs one object, and pulling again heals it.
func TestBroken(t *testing.T) {
	for _, tc := range []struct {
		name, file, data string
	}{
		{"record is empty", imageFile, ""},
		{"record of another image", imageFile, `{"schema":1,"id":"sha256:` + strings.Repeat("1", 64) + `"}`},
		{"record of a newer version", imageFile, `{"schema":99}`},
		{"config was changed", configFile, `{}`},
		{"config is gone", configFile, "-"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, dir := open(t)
			s, err := Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			a, b := newSample(t, 1), newSample(t, 2)
			a.put(t, s, "docker.io/library/a:1")
			b.put(t, s, "docker.io/library/b:1")
			path := filepath.Join(dir, imagesDir, a.image.ID.Encoded(), tc.file)
			if tc.data == "-" {
				err = os.Remove(path)
			} else {
				err = os.WriteFile(path, []byte(tc.data), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			s, err = Open(dir) // nothing in memory
			if err != nil {
				t.Fatal(err)
			}
			if es, err := s.List(); err != nil || len(es) != 1 || es[0].Image.ID != b.image.ID {
				t.Errorf("List = %v, %v, want the good image", es, err)
			}
			if broken, err := s.Broken(); err != nil || len(broken) != 1 || !strings.Contains(broken[0].Path, a.image.ID.Encoded()) {
				t.Errorf("Broken = %v, %v", broken, err)
			}
			if _, err := s.Lookup("a:1"); err == nil {
				t.Error("Lookup of the broken image succeeded")
			}
			a.put(t, s)
			if e, err := s.Lookup("a:1"); err != nil || e.Image.ID != a.image.ID {
				t.Errorf("Lookup after the repair = %v, %v", e, err)
			}
			wantEmptyTmp(t, dir)
		})
	}
}

func TestBrokenReference(t *testing.T) {
	s, dir := open(t)
	a := newSample(t, 1)
	a.put(t, s, "docker.io/library/a:1", "docker.io/library/a:2")
	if err := os.WriteFile(filepath.Join(dir, refsDir, refFile("docker.io/library/a:1")), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if es, err := s.List(); err != nil || len(es) != 1 || fmt.Sprint(es[0].Tags) != "[docker.io/library/a:2]" {
		t.Errorf("List = %v, %v", es, err)
	}
	if broken, err := s.Broken(); err != nil || len(broken) != 1 {
		t.Errorf("Broken = %v, %v", broken, err)
	}
}

func TestDamagedManifest(t *testing.T) {
	s, dir := open(t)
	a := newSample(t, 1)
	a.put(t, s)
	if err := os.WriteFile(filepath.Join(dir, imagesDir, a.image.ID.Encoded(), manifestFile), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Manifest(a.image.ID); !errors.Is(err, errdefs.ErrUnverified) {
		t.Errorf("Manifest: %v, want ErrUnverified", err)
	}
}

func TestSweep(t *testing.T) {
	s, dir := open(t)
	a := newSample(t, 1)
	a.put(t, s, "docker.io/library/a:1")
	unlock, err := s.TryLockLayer("held")
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	tmp := filepath.Join(dir, tmpDir)
	for _, d := range []string{imagePrefix + "1", refPrefix + "1", gonePrefix + "1/x", "somebody-else"} {
		if err := os.MkdirAll(filepath.Join(tmp, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{lockPrefix + "dead", gonePrefix + "1/x/y"} {
		if err := os.WriteFile(filepath.Join(tmp, f), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.RemoveAll(filepath.Join(dir, imagesDir, a.image.ID.Encoded())); err != nil { // a removal, cut short
		t.Fatal(err)
	}
	if err := s.Sweep(context.Background()); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(tmp)
	if err != nil || len(left) != 2 || left[0].Name() != lockPrefix+"held" || left[1].Name() != "somebody-else" {
		t.Errorf("tmp holds %v, %v", left, err)
	}
	if refs, err := os.ReadDir(filepath.Join(dir, refsDir)); err != nil || len(refs) != 0 {
		t.Errorf("refs holds %v, %v, want no name of what is gone", refs, err)
	}
}
