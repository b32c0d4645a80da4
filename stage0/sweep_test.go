package stage0

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantry-cri/gantry/stage0/disktest"
	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/manifest"
	"github.com/gantry-cri/gantry/stage0/pod"
	"github.com/gantry-cri/gantry/stage0/store"
	"github.com/gantry-cri/gantry/stage0/tree"
	"github.com/gantry-cri/gantry/stage0/usage"
)

// filled commits a layer with a file of some bytes.
func filled(t *testing.T, p *Pipeline, name string, size int) store.Layer {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	body := bytes.Repeat([]byte(name), size/len(name))
	h := tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(body))}
	err := w.WriteHeader(&h)
	if err == nil {
		_, err = w.Write(body)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	id := digest.FromBytes(buf.Bytes())
	l := tree.Layer{Digest: id, DiffID: id, Size: int64(buf.Len()), MediaType: ocispec.MediaTypeImageLayer}
	pending, err := p.Trees.Extract(t.Context(), l, &buf)
	if err == nil {
		err = p.Trees.Commit(t.Context(), pending)
	}
	if err != nil {
		t.Fatal(err)
	}
	return store.Layer{Digest: id, DiffID: id, MediaType: l.MediaType, Size: l.Size, Tree: pending.Name()}
}

// recorded commits the record of an image of these layers, pulled some time ago.
func recorded(t *testing.T, p *Pipeline, name string, age time.Duration, layers ...store.Layer) store.Image {
	t.Helper()
	config, man := fmt.Appendf(nil, `{"author":%q}`, name), fmt.Appendf(nil, `{"of":%q}`, name)
	at := time.Now().Add(-age)
	img := store.Image{ID: digest.FromBytes(config), ManifestDigest: digest.FromBytes(man), Layers: layers, PulledAt: at}
	ref := store.Ref{Name: "example.org/" + name + ":1", Digest: img.ManifestDigest, UpdatedAt: at}
	if err := p.Images.Commit(t.Context(), img, man, config, ref); err != nil {
		t.Fatal(err)
	}
	return img
}

func prepared(t *testing.T, p *Pipeline, img store.Image) manifest.UUID {
	t.Helper()
	u, err := p.Prepare(t.Context(), PodSpec{Owner: pod.OwnerCLI, Kind: pod.KindPod, Manifest: manifestOf("a"), Images: []AppImage{{Image: img}}})
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// TestCollectImages holds that pods, pins, leases and a pull of late keep an image,
// that what goes is what was announced, and that du agrees with the bytes.
func TestCollectImages(t *testing.T) {
	p, _ := newPreparer(t)
	dir := filepath.Dir(p.Trees.Dir())
	const old = 48 * time.Hour
	shared := filled(t, p, "shared", 100_000)
	free := recorded(t, p, "free", old, shared, filled(t, p, "free", 3_000_000))
	over := recorded(t, p, "over", old, filled(t, p, "over", 50_000))
	keep := map[string]store.Image{}
	for _, name := range []string{"pod", "pin", "lease", "late"} {
		age := old
		if name == "late" {
			age = 0
		}
		keep[name] = recorded(t, p, name, age, shared, filled(t, p, name, 10_000))
	}
	prepared(t, p, keep["pod"])
	for id, until := range map[digest.Digest]time.Time{
		keep["pin"].ID: {}, keep["lease"].ID: time.Now().Add(time.Hour), over.ID: time.Now().Add(-time.Second),
	} {
		if err := p.Images.Pin(t.Context(), id, until); err != nil {
			t.Fatal(err)
		}
	}
	before := time.Now().Add(-24 * time.Hour)
	images, trees, err := p.UnusedImages(t.Context(), before)
	wantImages := []string{string(free.ID), string(over.ID)}
	wantTrees := []string{free.Layers[1].Tree, over.Layers[0].Tree}
	slices.Sort(wantImages)
	slices.Sort(wantTrees)
	if err != nil || !slices.Equal(NamesOf(images), wantImages) || !slices.Equal(NamesOf(trees), wantTrees) {
		t.Fatalf("would collect images %v and trees %v, %v; want %v and %v", images, trees, err, wantImages, wantTrees)
	}
	used, err := p.DiskUsage(t.Context())
	anyImages, anyTrees, anyErr := p.UnusedImages(t.Context(), time.Now().Add(time.Minute)) // the late one too
	if err = errors.Join(err, anyErr); err != nil || len(anyImages) != 3 || used.Pods.Reclaimable != 0 ||
		used.Images.Reclaimable != BytesOf(anyImages) || used.Trees.Reclaimable != BytesOf(anyTrees) {
		t.Errorf("reclaimable: %+v, %v; without a grace period images %v and trees %v go", used, err, anyImages, anyTrees)
	}
	was := disktest.DU(t, "--block-size=1", dir)
	self, err := usage.Single(dir)
	if got := used.Total().Bytes + self.Bytes; err != nil || got != was {
		t.Errorf("du says that the data directory takes %d bytes, DiskUsage %d, %v", was, got, err)
	}
	ofImages, err := p.ImageUsage(t.Context())
	if want := used.Images.Plus(used.Trees.Usage); err != nil || ofImages != want {
		t.Errorf("ImageUsage = %+v, %v; want %+v", ofImages, err, want)
	}
	gotImages, gotTrees, err := p.CollectImages(t.Context(), before)
	if err != nil || !slices.Equal(gotImages, images) || !slices.Equal(gotTrees, trees) {
		t.Fatalf("collected images %v and trees %v, %v; announced were %v and %v", gotImages, gotTrees, err, images, trees)
	}
	if freed, said := was-disktest.DU(t, "--block-size=1", dir), BytesOf(gotImages)+BytesOf(gotTrees); freed != said || said < 3_050_000 {
		t.Errorf("du says that %d bytes are free, the collection %d", freed, said)
	}
	left, err := p.Images.List()
	if err != nil || len(left) != len(keep) {
		t.Errorf("%d images are left, %v", len(left), err)
	}
	// What pins and leases hold cannot be removed, and names them.
	for _, name := range []string{"pin", "lease"} {
		if err := p.Images.Remove(t.Context(), keep[name].ID); !errors.Is(err, errdefs.ErrState) || !strings.Contains(err.Error(), "pinned") {
			t.Errorf("remove the image that a %s holds: %v", name, err)
		}
		if err := errors.Join(p.Images.Unpin(t.Context(), keep[name].ID), p.Images.Remove(t.Context(), keep[name].ID)); err != nil {
			t.Error(err)
		}
	}
}

// TestPodGarbage holds that what a sweep of pods frees is announced as du counts it.
func TestPodGarbage(t *testing.T) {
	p, _ := newPreparer(t)
	img := recorded(t, p, "a", 0, filled(t, p, "a", 10))
	u, stays := prepared(t, p, img), prepared(t, p, img)
	if err := os.WriteFile(p.Pods.Path(u, "upper", "a", "big"), make([]byte, 1_000_000), 0o600); err != nil {
		t.Fatal(err)
	}
	if found, err := p.PodGarbage(t.Context()); err != nil || len(found) != 0 {
		t.Errorf("before it is garbage: %v, %v", found, err)
	}
	later := time.Now().Add(time.Minute)
	if found, err := p.Pods.Expired(pod.OwnerCRI, later); err != nil || len(found) != 0 {
		t.Errorf("of another owner: %v, %v", found, err)
	}
	found, err := p.Pods.Expired(pod.OwnerCLI, later)
	slices.Sort(found)
	want := []manifest.UUID{u, stays}
	slices.Sort(want)
	if err != nil || !slices.Equal(found, want) {
		t.Errorf("expired: %v, %v", found, err)
	}
	d, err := p.Pods.Lock(t.Context(), u)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.MoveTo(pod.InGarbage), d.Close()); err != nil {
		t.Fatal(err)
	}
	garbage, err := p.PodGarbage(t.Context())
	if err != nil || len(garbage) != 1 || garbage[0].Name != string(u) || garbage[0].Bytes != disktest.DU(t, "--block-size=1", p.Pods.Path(u)) || garbage[0].Bytes < 1_000_000 {
		t.Errorf("garbage: %+v, %v; du says %d", garbage, err, disktest.DU(t, "--block-size=1", p.Pods.Path(u)))
	}
}
