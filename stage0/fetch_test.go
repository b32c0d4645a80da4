package stage0_test

import (
	"bytes"
	"context"
	"crypto/sha512"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0"
	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/fetch"
	"github.com/gantry-cri/gantry/stage0/fetch/registrytest"
	"github.com/gantry-cri/gantry/stage0/imageref"
	"github.com/gantry-cri/gantry/stage0/store"
	"github.com/gantry-cri/gantry/stage0/tree"
)

var linux = v1.Platform{OS: "linux", Architecture: "amd64"}

// observer records what a pipeline reports.
type observer struct {
	mu     sync.Mutex
	stages []string
	took   map[stage0.Stage]time.Duration
	bytes  int64
	layers []stage0.LayerProgress
	lost   []string // spools, and why
}

func (o *observer) SpoolLost(layer digest.Digest, reason error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.lost = append(o.lost, fmt.Sprintf("%s: %v", layer, reason))
}

func (o *observer) LayerProgress(l stage0.LayerProgress) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.layers = append(o.layers, l)
}

func (o *observer) OverlayDisabled(string) {}

func (o *observer) StageDone(s stage0.Stage, d time.Duration, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	result := "ok"
	if err != nil {
		result = "error"
	}
	if o.took == nil {
		o.took = map[stage0.Stage]time.Duration{}
	}
	o.stages = append(o.stages, string(s)+" "+result)
	o.took[s] += d
}

func (o *observer) BytesFetched(n int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.bytes += n
}

func (o *observer) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return strings.Join(o.stages, ", ")
}

// newPipeline returns a pipeline on dir, as a process of its own would have it.
func newPipeline(t *testing.T, dir string) (*stage0.Pipeline, *observer) {
	t.Helper()
	images, err := store.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	trees, err := tree.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	o := &observer{}
	source := fetch.NewRegistry(fetch.Config{ResolveTimeout: 2 * time.Second, IdleTimeout: 2 * time.Second})
	return &stage0.Pipeline{Images: images, Trees: trees, Source: source, Observer: o}, o
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("extracting layers needs root")
	}
}

func request(t *testing.T, s string) stage0.FetchRequest {
	t.Helper()
	r, err := imageref.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return stage0.FetchRequest{Ref: r, Platform: &ocispec.Platform{OS: "linux", Architecture: "amd64"}}
}

func wantEmpty(t *testing.T, dir ...string) {
	t.Helper()
	left, err := os.ReadDir(filepath.Join(dir...))
	if err != nil || len(left) != 0 {
		t.Errorf("%s holds %v, %v; want nothing", filepath.Join(dir...), left, err)
	}
}

func digestOf(t *testing.T, x interface{ Digest() (v1.Hash, error) }) string {
	t.Helper()
	h, err := x.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return h.String()
}

func rootfsFile(t *testing.T, p *stage0.Pipeline, name, path string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(p.Trees.Path(name), "rootfs", path))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestFetch(t *testing.T) {
	needRoot(t)
	reg := registrytest.Start(t)
	for _, tc := range []struct {
		name   string
		docker bool
		mk     func(testing.TB, bool, []byte) v1.Layer
	}{
		{"oci-gzip", false, registrytest.Layer},
		{"oci-plain", false, registrytest.PlainLayer},
		{"oci-zstd", false, registrytest.ZstdLayer},
		{"docker-gzip", true, registrytest.Layer},
		{"docker-plain", true, registrytest.PlainLayer},
		{"docker-zstd", true, registrytest.ZstdLayer},
	} {
		t.Run(tc.name, func(t *testing.T) {
			mk := tc.mk
			img := registrytest.Image(t, registrytest.Spec{Docker: tc.docker, Platform: linux, Author: tc.name, Layers: []v1.Layer{
				mk(t, tc.docker, registrytest.Tar(t, "low", "1")), mk(t, tc.docker, registrytest.Tar(t, "top", "2")),
			}})
			index := registrytest.Index(t, tc.docker, registrytest.Entry(registrytest.Image(t, registrytest.Spec{Author: "other"}), &v1.Platform{OS: "plan9", Architecture: "mips"}), registrytest.Entry(img, &linux))
			name := reg.Push(t, "a/"+tc.name+":1", index)
			repo := strings.TrimSuffix(name, ":1")
			dir := t.TempDir()
			p, o := newPipeline(t, dir)
			e, err := p.Fetch(context.Background(), request(t, name))
			if err != nil {
				t.Fatal(err)
			}
			checkImage(t, p, e, img)
			if fmt.Sprint(e.Tags) != "["+name+"]" || fmt.Sprint(e.Digests) != "["+repo+"@"+digestOf(t, index)+"]" {
				t.Errorf("names %v, %v; want the tag and the index's digest", e.Tags, e.Digests)
			}
			if got := o.String(); got != "resolve ok, fetch ok, verify ok, extract ok" {
				t.Errorf("stages: %s", got)
			}
			if o.bytes == 0 || o.took[stage0.StageFetch] <= 0 || o.took[stage0.StageExtract] <= 0 {
				t.Errorf("%d bytes, stages took %v", o.bytes, o.took)
			}
			wantEmpty(t, dir, "tmp")
		})
	}
}

// checkImage compares the record, its files and its trees with what was pushed.
func checkImage(t *testing.T, p *stage0.Pipeline, e store.Entry, img v1.Image) {
	t.Helper()
	raw, err := img.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	id, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	got := e.Image
	if got.ID.String() != id.String() || got.ManifestDigest.String() != digestOf(t, img) || got.AppcID != fmt.Sprintf("sha512-%x", sha512.Sum512(raw)) {
		t.Errorf("record %+v", got)
	}
	if got.Size <= int64(len(raw)) || got.Platform.Architecture != "amd64" || got.PulledAt.IsZero() || len(got.Layers) != 2 {
		t.Errorf("record %+v", got)
	}
	stored, err := p.Images.Manifest(got.ID)
	if err != nil || !bytes.Equal(stored, raw) {
		t.Errorf("manifest %s, %v", stored, err)
	}
	if c, err := p.Images.Config(got.ID); err != nil || c.Architecture != "amd64" {
		t.Errorf("config %+v, %v", c, err)
	}
	trees := got.Trees()
	if top := trees[len(trees)-2]; rootfsFile(t, p, top, "top") != "2" {
		t.Error("the top layer has other contents")
	}
	if low := trees[len(trees)-1]; rootfsFile(t, p, low, "low") != "1" {
		t.Error("the lowest layer has other contents")
	}
}

// A foreign layer comes from the registry as any other does, and from nowhere else.
func TestFetchForeignLayers(t *testing.T) {
	needRoot(t)
	reg := registrytest.Start(t)
	var trapped atomic.Int64
	trap := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		trapped.Add(1)
		w.WriteHeader(http.StatusNotFound)
	}))
	defer trap.Close()
	const oci, docker = "application/vnd.oci.image.layer.nondistributable.v1.tar", "application/vnd.docker.image.rootfs.foreign.diff.tar"
	for i, tc := range []struct {
		kind   types.MediaType
		docker bool
		mk     func(testing.TB, bool, []byte) v1.Layer
	}{
		{oci, false, registrytest.PlainLayer},
		{oci + "+gzip", false, registrytest.Layer},
		{oci + "+zstd", false, registrytest.ZstdLayer},
		{docker, true, registrytest.PlainLayer},
		{docker + ".gzip", true, registrytest.Layer},
	} {
		t.Run(string(tc.kind), func(t *testing.T) {
			low, top := tc.mk(t, tc.docker, registrytest.Tar(t, "low", "1")), registrytest.Layer(t, tc.docker, registrytest.Tar(t, "top", "2"))
			url := trap.URL + "/layer"
			img := registrytest.Image(t, registrytest.Spec{Docker: tc.docker, Platform: linux, Layers: []v1.Layer{registrytest.ForeignLayer(low, tc.kind, url, url), top}})
			repo := fmt.Sprintf("foreign/%d", i)
			reg.Push(t, repo+":parts", registrytest.Image(t, registrytest.Spec{Platform: linux, Layers: []v1.Layer{low, top}}))
			name := reg.Push(t, repo+":1", img)
			p, _ := newPipeline(t, t.TempDir())
			e, err := p.Fetch(t.Context(), request(t, name))
			if err != nil {
				t.Fatal(err)
			}
			checkImage(t, p, e, img)
			if got := e.Image.Layers[0].MediaType; got != string(tc.kind) {
				t.Errorf("the layer is recorded as %s", got)
			}

			gone := reg.Proxy(t, func(w http.ResponseWriter, q *http.Request, next http.Handler) {
				if strings.HasSuffix(q.URL.Path, digestOf(t, low)) {
					w.WriteHeader(http.StatusNotFound)
					return
				}
				next.ServeHTTP(w, q)
			})
			dir := t.TempDir()
			p, _ = newPipeline(t, dir)
			_, err = p.Fetch(t.Context(), request(t, gone.Host+"/"+repo+":1"))
			const text = ": it is a foreign layer, and the 2 addresses that its manifest names for it are never asked"
			if !errors.Is(err, errdefs.ErrNotFound) || !strings.Contains(fmt.Sprint(err), text) || !strings.Contains(fmt.Sprint(err), "layer "+digestOf(t, low)) {
				t.Errorf("error %v, want ErrNotFound and %q", err, text)
			}
			wantEmpty(t, dir, "images")
		})
	}
	if n := trapped.Load(); n != 0 {
		t.Errorf("the addresses were asked %d times", n)
	}
}

func TestFetchByDigest(t *testing.T) {
	needRoot(t)
	reg := registrytest.Start(t)
	img := registrytest.Image(t, registrytest.Spec{Platform: linux, Layers: []v1.Layer{registrytest.Layer(t, false, registrytest.Tar(t, "a", "1"))}})
	repo := strings.TrimSuffix(reg.Push(t, "i:1", img), ":1")
	p, _ := newPipeline(t, t.TempDir())
	for _, ref := range []string{repo + "@" + digestOf(t, img), repo + ":9@" + digestOf(t, img)} {
		e, err := p.Fetch(context.Background(), request(t, ref))
		if err != nil {
			t.Fatal(err)
		}
		if len(e.Tags) != 0 || fmt.Sprint(e.Digests) != "["+repo+"@"+digestOf(t, img)+"]" {
			t.Errorf("%s: names %v, %v; want the digest alone", ref, e.Tags, e.Digests)
		}
		if found, err := p.Images.Lookup(ref); err != nil || found.Image.ID != e.Image.ID {
			t.Errorf("Lookup(%s) = %v, %v", ref, found.Image.ID, err)
		}
	}
}

// An image without layers, an empty layer and the same layer twice.
func TestFetchOddLayers(t *testing.T) {
	needRoot(t)
	reg := registrytest.Start(t)
	none := registrytest.Layer(t, false, registrytest.Tar(t))
	one := registrytest.Layer(t, false, registrytest.Tar(t, "a", "1"))
	plain := registrytest.PlainLayer(t, false, registrytest.Tar(t, "a", "1"))
	p, _ := newPipeline(t, t.TempDir())
	for _, tc := range []struct {
		name   string
		layers []v1.Layer
		trees  int
	}{
		{"no-layers", nil, 0},
		{"empty", []v1.Layer{none}, 1},
		{"twice", []v1.Layer{one, none, one}, 2},
		{"compressed-and-not", []v1.Layer{one, plain}, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			name := reg.Push(t, "odd:"+tc.name, registrytest.Image(t, registrytest.Spec{Platform: linux, Author: tc.name, Layers: tc.layers}))
			e, err := p.Fetch(context.Background(), request(t, name))
			if err != nil {
				t.Fatal(err)
			}
			if len(e.Image.Layers) != len(tc.layers) || len(e.Image.Trees()) != tc.trees || e.Image.Size <= 0 {
				t.Errorf("%d layers, trees %v, size %d", len(e.Image.Layers), e.Image.Trees(), e.Image.Size)
			}
		})
	}
}

// Failures are of their class, name what they are about, are reported at the
// right stage, and leave nothing.
func TestFetchFails(t *testing.T) {
	needRoot(t)
	reg := registrytest.Start(t)
	layer := registrytest.Layer(t, false, registrytest.Tar(t, "a", strings.Repeat("1", 5000)))
	good := registrytest.Layer(t, false, registrytest.Tar(t, "b", "2"))
	img := registrytest.Image(t, registrytest.Spec{Platform: linux, Layers: []v1.Layer{layer}})
	reg.Push(t, "i:1", img)
	wrong := []v1.Hash{{Algorithm: "sha256", Hex: strings.Repeat("1", 64)}}
	reg.Push(t, "diffid:1", registrytest.Image(t, registrytest.Spec{Platform: linux, Layers: []v1.Layer{layer}, DiffIDs: wrong}))
	reg.Push(t, "count:1", registrytest.Image(t, registrytest.Spec{Platform: linux, Layers: []v1.Layer{layer, good}, DiffIDs: wrong}))
	reg.Push(t, "garbage:1", registrytest.Image(t, registrytest.Spec{Platform: linux, Layers: []v1.Layer{registrytest.RawLayer(t, []byte("x"), []byte("no gzip"), types.OCILayer)}}))
	blob := "/blobs/" + digestOf(t, layer)
	flip := func(w http.ResponseWriter, q *http.Request, next http.Handler) {
		registrytest.Falsify(w, q, next, func(b []byte) []byte {
			b = bytes.Clone(b)
			b[len(b)/2] ^= 1
			return b
		})
	}
	const atVerify = "resolve ok, fetch ok, verify error"
	for _, tc := range []struct {
		name, ref, path string
		answer          func(w http.ResponseWriter, q *http.Request, next http.Handler)
		want            error
		text, stages    string
	}{
		{name: "no such image", ref: "nothing:1", want: errdefs.ErrNotFound, text: "nothing:1", stages: "resolve error"},
		{name: "layer of another digest", ref: "i:1", path: blob, answer: flip, want: errdefs.ErrUnverified, text: digestOf(t, layer), stages: atVerify},
		{name: "manifest of another digest", ref: "i:1", path: "/manifests/" + digestOf(t, img), answer: flip, want: errdefs.ErrUnverified, text: digestOf(t, img), stages: atVerify},
		{name: "layer of another diff ID", ref: "diffid:1", want: errdefs.ErrUnverified, text: digestOf(t, layer), stages: atVerify},
		{name: "too few diff IDs", ref: "count:1", want: errdefs.ErrInvalid, text: "diff IDs", stages: atVerify},
		{name: "layer is gone", ref: "i:1", path: blob, answer: func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { w.WriteHeader(404) }, want: errdefs.ErrNotFound, text: digestOf(t, layer), stages: "resolve ok, fetch error"},
		{name: "layer hangs", ref: "i:1", path: blob, answer: func(w http.ResponseWriter, q *http.Request, _ http.Handler) { registrytest.Hang(w, q) }, want: errdefs.ErrUnavailable, text: "the idle time-out (pullIdleTimeout), after 0 of ", stages: "resolve ok, fetch error"},
		{name: "layer of no format", ref: "garbage:1", text: "layer sha256", want: errdefs.ErrInvalid},
	} {
		t.Run(tc.name, func(t *testing.T) {
			proxy := reg.Proxy(t, func(w http.ResponseWriter, q *http.Request, next http.Handler) {
				if q.Method == http.MethodGet && tc.path != "" && strings.HasSuffix(q.URL.Path, tc.path) {
					tc.answer(w, q, next)
					return
				}
				next.ServeHTTP(w, q)
			})
			dir := t.TempDir()
			p, o := newPipeline(t, dir)
			_, err := p.Fetch(context.Background(), request(t, proxy.Host+"/"+tc.ref))
			if !errors.Is(err, tc.want) || !strings.Contains(fmt.Sprint(err), tc.text) {
				t.Errorf("error %v, want %v and %q", err, tc.want, tc.text)
			}
			if tc.stages != "" && o.String() != tc.stages {
				t.Errorf("stages: %s, want %s", o, tc.stages)
			}
			for _, d := range []string{"tmp", "images", "refs", "trees"} {
				wantEmpty(t, dir, d)
			}
		})
	}
}

// A registry that sends one byte after another, and is never silent, ends by the
// total time-out, which says how far it got.
func TestFetchTimeout(t *testing.T) {
	needRoot(t)
	reg := registrytest.Start(t)
	there := registrytest.PlainLayer(t, false, registrytest.Tar(t, "a", "1"))
	layer := registrytest.PlainLayer(t, false, registrytest.Tar(t, "b", strings.Repeat("2", 10_000)))
	reg.Push(t, "there:1", registrytest.Image(t, registrytest.Spec{Platform: linux, Layers: []v1.Layer{there}}))
	reg.Push(t, "i:1", registrytest.Image(t, registrytest.Spec{Platform: linux, Layers: []v1.Layer{there, layer}}))
	size, err := layer.Size()
	if err != nil {
		t.Fatal(err)
	}
	proxy := reg.Proxy(t, func(w http.ResponseWriter, q *http.Request, next http.Handler) {
		if strings.HasSuffix(q.URL.Path, digestOf(t, layer)) {
			w = dripping{w}
		}
		next.ServeHTTP(w, q)
	})
	dir := t.TempDir()
	p, o := newPipeline(t, dir)
	if _, err := p.Fetch(t.Context(), request(t, proxy.Host+"/there:1")); err != nil {
		t.Fatal(err)
	}
	p.FetchTimeout = time.Second
	before := o.bytes
	began := time.Now()
	_, err = p.Fetch(t.Context(), request(t, proxy.Host+"/i:1"))
	var got, of int64
	text := fmt.Sprint(err)
	_, _ = fmt.Sscanf(text[strings.LastIndex(text, "; ")+2:], "%d of the %d bytes", &got, &of) // 0 if it does not say so
	if !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(text, "not done within 1s, the total time-out (pullTimeout)") || got == 0 || of != size {
		t.Errorf("%d of %d bytes: %v", got, of, err)
	}
	if took := time.Since(began); took < time.Second || took > 5*time.Second {
		t.Errorf("it took %s", took)
	}
	if came := o.bytes - before; came < got {
		t.Errorf("%d bytes came, the error tells of %d", came, got)
	}
	wantEmpty(t, dir, "tmp")
	p.FetchTimeout = 10 * time.Second
	if _, err := p.Fetch(t.Context(), request(t, reg.Host+"/i:1")); err != nil {
		t.Errorf("within the time: %v", err)
	}
}

// dripping sends byte by byte.
type dripping struct{ http.ResponseWriter }

func (d dripping) Write(p []byte) (int, error) {
	for i := range p {
		if _, err := d.ResponseWriter.Write(p[i : i+1]); err != nil {
			return i, err
		}
		d.ResponseWriter.(http.Flusher).Flush()
		time.Sleep(10 * time.Millisecond)
	}
	return len(p), nil
}

// Layers are extracted while they download, and side by side: what has come of two is in
// their trees before the registry sends the rest of either.
func TestFetchExtractsWhileItDownloads(t *testing.T) {
	needRoot(t)
	reg := registrytest.Start(t)
	for _, tc := range []struct {
		name string
		mk   func(testing.TB, bool, []byte) v1.Layer
	}{
		{"plain", registrytest.PlainLayer},
		{"gzip", registrytest.Layer},
		{"zstd", registrytest.ZstdLayer},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			var layers []v1.Layer
			held := map[string]bool{} // blobs whose second half waits
			for _, name := range []string{"first", "second"} {
				noise := make([]byte, 4<<20) // which no format makes smaller
				_, _ = rand.NewChaCha8([32]byte{byte(len(name))}).Read(noise)
				l := tc.mk(t, false, registrytest.Tar(t, name, "here", name+"-large", string(noise)))
				layers = append(layers, l)
				held["/blobs/"+digestOf(t, l)] = true
			}
			img := reg.Push(t, "stream:"+tc.name, registrytest.Image(t, registrytest.Spec{Platform: linux, Author: tc.name, Layers: layers}))
			proxy := reg.Proxy(t, func(w http.ResponseWriter, q *http.Request, next http.Handler) {
				if _, blob, ok := strings.Cut(q.URL.Path, "/blobs/"); ok && held["/blobs/"+blob] {
					w = &halfway{ResponseWriter: w, t: t, wait: func() bool { return written(dir, "first") && written(dir, "second") }}
				}
				next.ServeHTTP(w, q)
			})
			p, _ := newPipeline(t, dir)
			p.Source = fetch.NewRegistry(fetch.Config{IdleTimeout: time.Minute})
			_, ref, _ := strings.Cut(img, "/")
			if _, err := p.Fetch(t.Context(), request(t, proxy.Host+"/"+ref)); err != nil {
				t.Error(err)
			}
		})
	}
}

// written says whether a file is there in a tree that is being made.
func written(dir, name string) bool {
	files, _ := filepath.Glob(filepath.Join(dir, "tmp", "tree-*", "rootfs", name))
	return len(files) == 1
}

// halfway sends 2 MiB of what is written, and the rest when wait says so.
type halfway struct {
	http.ResponseWriter
	t    *testing.T
	wait func() bool
	sent int
}

func (h *halfway) Write(p []byte) (int, error) {
	const half = 2 << 20
	if before := half - h.sent; before >= 0 && len(p) > before {
		n, err := h.ResponseWriter.Write(p[:before])
		h.sent += n
		if err != nil {
			return n, err
		}
		h.ResponseWriter.(http.Flusher).Flush()
		for deadline := time.Now().Add(20 * time.Second); !h.wait(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				h.t.Error("what has come of the layers is not in their trees")
				break
			}
		}
		h.sent++ // past it
		rest, err := h.ResponseWriter.Write(p[before:])
		return n + rest, err
	}
	n, err := h.ResponseWriter.Write(p)
	h.sent += n
	return n, err
}

// Any number of callers in any number of processes download a layer once, also
// when their images share layers in another order.
func TestFetchTogether(t *testing.T) {
	needRoot(t)
	reg := registrytest.Start(t)
	var layers []v1.Layer
	for i := range 4 {
		layers = append(layers, registrytest.Layer(t, false, registrytest.Tar(t, fmt.Sprint(i), strings.Repeat("x", 1000*i))))
	}
	back := []v1.Layer{layers[3], layers[2], layers[1], layers[0]}
	reg.Push(t, "i:1", registrytest.Image(t, registrytest.Spec{Platform: linux, Layers: layers}))
	reg.Push(t, "i:2", registrytest.Image(t, registrytest.Spec{Platform: linux, Layers: back}))
	proxy := reg.Proxy(t, func(w http.ResponseWriter, q *http.Request, next http.Handler) {
		if strings.Contains(q.URL.Path, "/blobs/") {
			time.Sleep(30 * time.Millisecond) // so that they do meet
		}
		next.ServeHTTP(w, q)
	})
	dir := t.TempDir()
	first, _ := newPipeline(t, dir)
	second, _ := newPipeline(t, dir)
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for i := range 8 {
		p := []*stage0.Pipeline{first, second}[i%2]
		wg.Go(func() {
			if _, err := p.Fetch(ctx, request(t, fmt.Sprintf("%s/i:%d", proxy.Host, 1+i/4))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for i, l := range layers {
		if n := proxy.Count("GET", "/blobs/"+digestOf(t, l)); n != 1 {
			t.Errorf("layer %d was downloaded %d times", i, n)
		}
	}
	if n := proxy.Count("HEAD", "/manifests/1") + proxy.Count("HEAD", "/manifests/2"); n != 8 {
		t.Errorf("the registry was asked %d times, want each time", n)
	}
	if es, err := first.Images.List(); err != nil || len(es) != 2 {
		t.Errorf("List = %v, %v", es, err)
	}
	wantEmpty(t, dir, "tmp")
}

// A second pull asks the registry and reads no layer; one whose access is gone fails.
func TestFetchAgain(t *testing.T) {
	needRoot(t)
	reg := registrytest.Start(t)
	layer := registrytest.Layer(t, false, registrytest.Tar(t, "a", "1"))
	reg.Push(t, "i:1", registrytest.Image(t, registrytest.Spec{Platform: linux, Layers: []v1.Layer{layer}}))
	denied := false
	proxy := reg.Proxy(t, func(w http.ResponseWriter, q *http.Request, next http.Handler) {
		if denied {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, q)
	})
	p, _ := newPipeline(t, t.TempDir())
	for range 2 {
		if _, err := p.Fetch(context.Background(), request(t, proxy.Host+"/i:1")); err != nil {
			t.Fatal(err)
		}
	}
	if n := proxy.Count("GET", digestOf(t, layer)); n != 1 {
		t.Errorf("the layer was downloaded %d times", n)
	}
	denied = true
	if _, err := p.Fetch(context.Background(), request(t, proxy.Host+"/i:1")); !errors.Is(err, errdefs.ErrDenied) {
		t.Errorf("error %v, want ErrDenied", err)
	}
}

// A pull that is cancelled leaves nothing half-done and keeps what is complete.
func TestFetchCancelled(t *testing.T) {
	needRoot(t)
	reg := registrytest.Start(t)
	small := registrytest.Layer(t, false, registrytest.Tar(t, "a", "1"))
	big := registrytest.PlainLayer(t, false, registrytest.Tar(t, "b", strings.Repeat("x", 1<<20)))
	reg.Push(t, "i:1", registrytest.Image(t, registrytest.Spec{Platform: linux, Layers: []v1.Layer{small, big}}))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	hang := true
	proxy := reg.Proxy(t, func(w http.ResponseWriter, q *http.Request, next http.Handler) {
		if !hang || !strings.HasSuffix(q.URL.Path, digestOf(t, big)) {
			next.ServeHTTP(w, q)
			return
		}
		w.Header().Set("Content-Length", fmt.Sprint(1<<20+1536))
		_, _ = w.Write(make([]byte, 1000))
		w.(http.Flusher).Flush()
		time.AfterFunc(300*time.Millisecond, cancel)
		registrytest.Hang(w, q)
	})
	dir := t.TempDir()
	p, _ := newPipeline(t, dir)
	if _, err := p.Fetch(ctx, request(t, proxy.Host+"/i:1")); !errors.Is(err, context.Canceled) || errors.Is(err, errdefs.ErrUnavailable) {
		t.Fatalf("error %v, want Canceled", err)
	}
	for _, d := range []string{"tmp", "images", "refs"} {
		wantEmpty(t, dir, d)
	}
	if names, err := p.Trees.List(); err != nil || len(names) != 1 {
		t.Errorf("trees %v, %v, want the one that was complete", names, err)
	}
	hang = false
	if _, err := p.Fetch(context.Background(), request(t, proxy.Host+"/i:1")); err != nil {
		t.Fatal(err)
	}
	if n := proxy.Count("GET", digestOf(t, small)); n != 1 {
		t.Errorf("the finished layer was downloaded %d times", n)
	}
}

// A disk that is full is called so, and nothing is left on it.
func TestFetchDiskFull(t *testing.T) {
	needRoot(t)
	reg := registrytest.Start(t)
	small := registrytest.Layer(t, false, registrytest.Tar(t, "a", "1"))
	var files []string
	for i := range 64 {
		files = append(files, fmt.Sprint(i), strings.Repeat(fmt.Sprint(i), 1<<15))
	}
	big := registrytest.Layer(t, false, registrytest.Tar(t, files...))
	name := reg.Push(t, "i:1", registrytest.Image(t, registrytest.Spec{Platform: linux, Layers: []v1.Layer{small, big}}))
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("cannot mount a small file system: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	p, o := newPipeline(t, dir)
	if _, err := p.Fetch(context.Background(), request(t, name)); !errors.Is(err, errdefs.ErrNoSpace) {
		t.Errorf("error %v, want ErrNoSpace", err)
	}
	if o.String() != "resolve ok, fetch ok, verify ok, extract error" {
		t.Errorf("stages: %s", o)
	}
	for _, d := range []string{"tmp", "images", "refs", "trees"} {
		wantEmpty(t, dir, d)
	}
}

// TestImagePlatforms has one name for images of several platforms: what it stood for
// last is not taken for another's, unless that runs there and nothing better can be had.
func TestImagePlatforms(t *testing.T) {
	needRoot(t)
	reg := registrytest.Start(t)
	var index []mutate.IndexAddendum
	images := map[string]v1.Image{}
	for _, arch := range []string{"386", "amd64", "s390x"} {
		at := v1.Platform{OS: "linux", Architecture: arch}
		images[arch] = registrytest.Image(t, registrytest.Spec{Platform: at, Author: arch})
		index = append(index, registrytest.Entry(images[arch], &at))
	}
	reg.Push(t, "i:1", registrytest.Index(t, false, index...))
	down := false
	proxy := reg.Proxy(t, func(w http.ResponseWriter, q *http.Request, next http.Handler) {
		if down {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		next.ServeHTTP(w, q)
	})
	p, _ := newPipeline(t, t.TempDir())
	ref := request(t, proxy.Host+"/i:1").Ref
	for _, s := range []struct {
		arch    string
		policy  stage0.PullPolicy
		down    bool
		want    string // whose image it is; empty: none
		fetched bool
		err     error
	}{
		{arch: "s390x", policy: stage0.PullNew, want: "s390x", fetched: true},
		{arch: "s390x", policy: stage0.PullNew, down: true, want: "s390x"},
		{arch: "amd64", policy: stage0.PullNever, err: errdefs.ErrNotFound},
		{arch: "amd64", policy: stage0.PullNew, down: true, err: errdefs.ErrUnavailable},
		{arch: "amd64", policy: stage0.PullUpdate, down: true, err: errdefs.ErrUnavailable},
		{arch: "386", policy: stage0.PullNew, want: "386", fetched: true},
		{arch: "amd64", policy: stage0.PullNever, want: "386"},
		{arch: "amd64", policy: stage0.PullNew, down: true, want: "386"},
		{arch: "amd64", policy: stage0.PullNew, want: "amd64", fetched: true},
		{arch: "386", policy: stage0.PullNever, err: errdefs.ErrNotFound},
		{arch: "amd64", policy: stage0.PullNew, down: true, want: "amd64"},
	} {
		down = s.down
		got, err := p.Image(t.Context(), ref, &ocispec.Platform{OS: "linux", Architecture: s.arch}, s.policy)
		if !errors.Is(err, s.err) || got.Fetched != s.fetched {
			t.Errorf("%+v: %v, fetched %t", s, err, got.Fetched)
		}
		if s.want != "" && got.Image.ManifestDigest.String() != digestOf(t, images[s.want]) {
			t.Errorf("%+v: it is for %s", s, got.Image.Platform.Architecture)
		}
		if fromStore := s.down && s.want != "" && s.want != s.arch; (got.Unavailable != nil) != fromStore {
			t.Errorf("%+v: unavailable %v", s, got.Unavailable)
		}
	}
}

func TestPullPolicies(t *testing.T) {
	needRoot(t)
	reg := registrytest.Start(t)
	old := registrytest.Image(t, registrytest.Spec{Platform: linux, Author: "old", Layers: []v1.Layer{registrytest.Layer(t, false, registrytest.Tar(t, "a", "1"))}})
	renewed := registrytest.Image(t, registrytest.Spec{Platform: linux, Author: "new", Layers: []v1.Layer{registrytest.Layer(t, false, registrytest.Tar(t, "a", "2"))}})
	reg.Push(t, "i:1", old)
	status := 0
	proxy := reg.Proxy(t, func(w http.ResponseWriter, q *http.Request, next http.Handler) {
		if status != 0 {
			w.WriteHeader(status)
			return
		}
		next.ServeHTTP(w, q)
	})
	p, _ := newPipeline(t, t.TempDir())
	ref := request(t, proxy.Host+"/i:1").Ref
	step := func(name string, policy stage0.PullPolicy, code int, want v1.Image, wantErr error) stage0.Pulled {
		t.Helper()
		status = code
		got, err := p.Image(context.Background(), ref, nil, policy)
		if !errors.Is(err, wantErr) {
			t.Errorf("%s: error %v, want %v", name, err, wantErr)
		}
		if want != nil && got.Image.ManifestDigest.String() != digestOf(t, want) {
			t.Errorf("%s: image %s", name, got.Image.ManifestDigest)
		}
		return got
	}
	step("never, absent", stage0.PullNever, 0, nil, errdefs.ErrNotFound)
	step("update, absent and unavailable", stage0.PullUpdate, 500, nil, errdefs.ErrUnavailable)
	if got := step("new, absent", stage0.PullNew, 0, old, nil); !got.Fetched {
		t.Error("new, absent: not fetched")
	}
	reg.Push(t, "i:1", renewed)
	if got := step("new, present", stage0.PullNew, 0, old, nil); got.Fetched {
		t.Error("new, present: fetched")
	}
	step("never, present", stage0.PullNever, 500, old, nil)
	if got := step("update, unavailable", stage0.PullUpdate, 500, old, nil); got.Unavailable == nil || got.Fetched {
		t.Errorf("update, unavailable: %+v does not say so", got)
	}
	step("update, denied", stage0.PullUpdate, 403, nil, errdefs.ErrDenied)
	step("update, gone", stage0.PullUpdate, 404, nil, errdefs.ErrNotFound)
	if got := step("update", stage0.PullUpdate, 0, renewed, nil); got.Unavailable != nil || !got.Fetched {
		t.Errorf("update: %+v", got)
	}
	_, err := p.Image(context.Background(), ref, nil, "bogus")
	for _, word := range []string{"bogus", "never", "new", "update"} {
		if !errors.Is(err, errdefs.ErrInvalid) || !strings.Contains(err.Error(), word) {
			t.Errorf("error %v does not name %q", err, word)
		}
	}
}
