package fetch_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantry-cri/gantry/stage0/credential"
	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/fetch"
	"github.com/gantry-cri/gantry/stage0/fetch/registrytest"
	"github.com/gantry-cri/gantry/stage0/imageref"
)

var (
	amd64 = v1.Platform{OS: "linux", Architecture: "amd64"}
	arm64 = v1.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}
	armv7 = v1.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}
	armv6 = v1.Platform{OS: "linux", Architecture: "arm", Variant: "v6"}
)

func parse(t *testing.T, s string) imageref.Ref {
	t.Helper()
	r, err := imageref.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// short is a registry client that soon gives up.
func short() *fetch.Registry {
	return fetch.NewRegistry(fetch.Config{ResolveTimeout: 400 * time.Millisecond, IdleTimeout: 400 * time.Millisecond})
}

// get does all that a pull does, and returns the blobs of the layers too.
func get(r *fetch.Registry, ref imageref.Ref, platform *ocispec.Platform) (fetch.Manifest, [][]byte, error) {
	ctx := context.Background()
	remote, err := r.Resolve(ctx, ref, nil)
	if err != nil {
		return fetch.Manifest{}, nil, err
	}
	defer remote.Close()
	man, err := remote.Manifest(ctx, platform)
	if err != nil {
		return fetch.Manifest{}, nil, err
	}
	var blobs [][]byte
	for _, l := range man.Layers {
		b, err := remote.Blob(ctx, l)
		if err != nil {
			return man, blobs, err
		}
		data, err := io.ReadAll(b)
		if err := errors.Join(err, b.Close()); err != nil {
			return man, blobs, err
		}
		blobs = append(blobs, data)
	}
	return man, blobs, nil
}

func digestOf(t *testing.T, x interface{ Digest() (v1.Hash, error) }) string {
	t.Helper()
	h, err := x.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return h.String()
}

func oci(p v1.Platform) *ocispec.Platform {
	return &ocispec.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant}
}

func TestFetchImages(t *testing.T) {
	reg := registrytest.Start(t)
	archives := [][]byte{registrytest.Tar(t, "a", "1"), registrytest.Tar(t, "b", strings.Repeat("2", 1<<20))}
	for _, tc := range []struct {
		name          string
		docker, plain bool
	}{
		{name: "OCI, gzip"},
		{name: "OCI, plain", plain: true},
		{name: "Docker schema 2, gzip", docker: true},
		{name: "Docker schema 2, plain", docker: true, plain: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var layers []v1.Layer
			for _, a := range archives {
				l := registrytest.Layer(t, tc.docker, a)
				if tc.plain {
					l = registrytest.PlainLayer(t, tc.docker, a)
				}
				layers = append(layers, l)
			}
			img := registrytest.Image(t, registrytest.Spec{Docker: tc.docker, Platform: amd64, Layers: layers, Author: tc.name})
			name := reg.Push(t, "a/b:1", img)
			byDigest := strings.TrimSuffix(name, ":1") + "@" + digestOf(t, img)
			for _, ref := range []string{name, byDigest} {
				man, blobs, err := get(fetch.NewRegistry(fetch.Config{}), parse(t, ref), oci(amd64))
				if err != nil {
					t.Fatal(err)
				}
				id, err := img.ConfigName()
				if err != nil {
					t.Fatal(err)
				}
				if man.Digest.String() != digestOf(t, img) || man.ConfigID.String() != id.String() || man.Platform.Architecture != "amd64" {
					t.Errorf("%s: manifest %s, config %s, platform %v", ref, man.Digest, man.ConfigID, man.Platform)
				}
				for i, l := range layers {
					want, err := l.Compressed()
					if err != nil {
						t.Fatal(err)
					}
					data, err := io.ReadAll(want)
					if err != nil || !bytes.Equal(data, blobs[i]) {
						t.Errorf("%s: layer %d has %d bytes, want %d, %v", ref, i, len(blobs[i]), len(data), err)
					}
					if d, err := l.DiffID(); err != nil || man.DiffIDs[i].String() != d.String() {
						t.Errorf("%s: diff ID %d is %s", ref, i, man.DiffIDs[i])
					}
				}
			}
		})
	}
}

func TestPlatforms(t *testing.T) {
	reg := registrytest.Start(t)
	image := func(p v1.Platform, author string) v1.Image {
		return registrytest.Image(t, registrytest.Spec{Platform: p, Author: author, Layers: []v1.Layer{registrytest.Layer(t, false, registrytest.Tar(t, "f", author))}})
	}
	a, b, seven, six := image(amd64, "a"), image(arm64, "b"), image(armv7, "7"), image(armv6, "6")
	attest := image(v1.Platform{OS: "unknown", Architecture: "unknown"}, "attestation")
	unknown := &v1.Platform{OS: "unknown", Architecture: "unknown"}
	wide := registrytest.Index(t, false, registrytest.Entry(attest, unknown), registrytest.Entry(b, &arm64), registrytest.Entry(six, &armv6), registrytest.Entry(seven, &armv7), registrytest.Entry(a, &amd64))
	for _, tc := range []struct {
		name string
		what any
		want v1.Platform
		pick v1.Image
		err  error
	}{
		{name: "OCI index", what: wide, want: amd64, pick: a},
		{name: "second entry", what: wide, want: arm64, pick: b},
		{name: "best variant", what: wide, want: armv7, pick: seven},
		{name: "lesser variant", what: registrytest.Index(t, false, registrytest.Entry(six, &armv6)), want: armv7, pick: six},
		{name: "greater variant", what: registrytest.Index(t, false, registrytest.Entry(seven, &armv7)), want: armv6, err: errdefs.ErrUnsupported},
		{name: "Docker list", what: registrytest.Index(t, true, registrytest.Entry(b, &arm64), registrytest.Entry(a, &amd64)), want: amd64, pick: a},
		{name: "nested", what: registrytest.Index(t, false, registrytest.Entry(registrytest.Index(t, false, registrytest.Entry(b, &arm64)), nil), registrytest.Entry(wide, nil)), want: amd64, pick: a},
		{name: "entries without platform", what: registrytest.Index(t, false, registrytest.Entry(b, nil), registrytest.Entry(a, nil)), want: amd64, pick: a},
		{name: "not there", what: registrytest.Index(t, false, registrytest.Entry(b, &arm64)), want: amd64, err: errdefs.ErrUnsupported},
		{name: "image of another platform", what: b, want: amd64, err: errdefs.ErrUnsupported},
		{name: "image that does not say", what: image(v1.Platform{}, "none"), want: amd64},
		{name: "too deep", what: nested(t, 6, a), want: amd64, err: errdefs.ErrInvalid},
	} {
		t.Run(tc.name, func(t *testing.T) {
			name := reg.Push(t, "p:"+strings.ReplaceAll(strings.ToLower(tc.name), " ", "-"), tc.what)
			man, _, err := get(fetch.NewRegistry(fetch.Config{}), parse(t, name), oci(tc.want))
			if !errors.Is(err, tc.err) {
				t.Fatalf("error %v, want %v", err, tc.err)
			}
			if tc.pick != nil && man.Digest.String() != digestOf(t, tc.pick) {
				t.Errorf("chose %s, a %v", man.Digest, man.Platform)
			}
			if errors.Is(tc.err, errdefs.ErrUnsupported) && !strings.Contains(err.Error(), "linux/arm") {
				t.Errorf("error %v does not say what there is", err)
			}
		})
	}
}

func TestParsePlatform(t *testing.T) {
	for s, want := range map[string]ocispec.Platform{
		"linux/amd64":     {OS: "linux", Architecture: "amd64"},
		"linux/x86_64":    {OS: "linux", Architecture: "amd64"},
		"Linux/ARM64":     {OS: "linux", Architecture: "arm64"},
		"linux/arm/v7":    {OS: "linux", Architecture: "arm", Variant: "v7"},
		"linux/amd64/v3":  {OS: "linux", Architecture: "amd64", Variant: "v3"},
		"linux/mips64le":  {OS: "linux", Architecture: "mips64le"},
		"windows/amd64":   {OS: "windows", Architecture: "amd64"},
		"linux/arm64/v10": {OS: "linux", Architecture: "arm64", Variant: "v10"},
	} {
		if got, err := fetch.ParsePlatform(s); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q is %+v, %v; want %+v", s, got, err, want)
		}
	}
	for _, s := range []string{"", "linux", "arm64", "/", "/arm64", "linux/", "linux//v7", "linux/arm/", "linux/arm/v7/x", "linux/*", "linux/a b", "windows(10.0.17763)/amd64", "linux(+x)/amd64", "linux/amd64\n"} {
		if p, err := fetch.ParsePlatform(s); !errors.Is(err, errdefs.ErrInvalid) {
			t.Errorf("%q is %+v, %v; want ErrInvalid", s, p, err)
		}
	}
}

// An index chooses by what it says, and a configuration that says otherwise does not
// make the image one that nobody asked for.
func TestPlatformOfIndex(t *testing.T) {
	reg := registrytest.Start(t)
	mislabelled := registrytest.Image(t, registrytest.Spec{Platform: amd64})
	name := reg.Push(t, "i:1", registrytest.Index(t, false, registrytest.Entry(mislabelled, &arm64)))
	man, _, err := get(fetch.NewRegistry(fetch.Config{}), parse(t, name), oci(arm64))
	if err != nil || fetch.FitOf(man.Platform, oci(arm64)) != fetch.Fits {
		t.Errorf("it is for %+v, %v", man.Platform, err)
	}
}

func TestFitOf(t *testing.T) {
	own := fetch.PlatformName(nil)
	for _, tc := range []struct {
		image, platform string // "" as a platform is the node's own
		want            fetch.Fit
	}{
		{own, "", fetch.Fits},
		{own, own, fetch.Fits},
		{"linux/s390x", "", fetch.Unfit},
		{"windows/amd64", "linux/amd64", fetch.Unfit},
		{"linux/amd64", "linux/arm64", fetch.Unfit},
		{"linux/arm64", "linux/arm64/v8", fetch.Fits},
		{"linux/aarch64", "linux/arm64", fetch.Fits},
		{"linux/386", "linux/amd64", fetch.Lesser},
		{"linux/amd64", "linux/386", fetch.Unfit},
		{"linux/arm/v7", "linux/arm64", fetch.Lesser},
		{"linux/arm/v6", "linux/arm/v7", fetch.Lesser},
		{"linux/arm/v7", "linux/arm/v6", fetch.Unfit},
		{"linux/arm/v7", "linux/arm", fetch.Fits},
	} {
		image, err := fetch.ParsePlatform(tc.image)
		if err != nil {
			t.Fatal(err)
		}
		var platform *ocispec.Platform
		if tc.platform != "" {
			p, err := fetch.ParsePlatform(tc.platform)
			if err != nil {
				t.Fatal(err)
			}
			platform = &p
		}
		if got := fetch.FitOf(image, platform); got != tc.want {
			t.Errorf("%s for %q: %d, want %d", tc.image, tc.platform, got, tc.want)
		}
	}
	if got := fetch.FitOf(ocispec.Platform{}, nil); got != fetch.Fits {
		t.Errorf("an image that does not say: %d", got)
	}
}

func nested(t *testing.T, depth int, img v1.Image) v1.ImageIndex {
	x := registrytest.Index(t, false, registrytest.Entry(img, nil))
	for range depth {
		x = registrytest.Index(t, false, registrytest.Entry(x, nil))
	}
	return x
}

// Whatever is falsified on the way is noticed, and called by its class.
func TestFalsified(t *testing.T) {
	reg := registrytest.Start(t)
	img := registrytest.Image(t, registrytest.Spec{Platform: amd64, Layers: []v1.Layer{registrytest.Layer(t, false, registrytest.Tar(t, "a", "1"))}})
	index := registrytest.Index(t, false, registrytest.Entry(img, &amd64))
	reg.Push(t, "i:1", img)
	reg.Push(t, "x:1", index)
	id, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	layer := digestOf(t, layers[0])
	space := func(b []byte) []byte { return append(bytes.Clone(b), ' ') }
	flip := func(b []byte) []byte {
		b = bytes.Clone(b)
		b[len(b)/2] ^= 1
		return b
	}
	cut := func(b []byte) []byte { return b[:len(b)-1] }
	for _, tc := range []struct {
		name, ref, path string
		change          func([]byte) []byte
	}{
		{"manifest by tag, other bytes", "i:1", "/manifests/" + digestOf(t, img), flip},
		{"manifest by tag, longer", "i:1", "/manifests/" + digestOf(t, img), space},
		{"manifest by tag, shorter", "i:1", "/manifests/" + digestOf(t, img), cut},
		{"manifest by digest", "i@" + digestOf(t, img), "/manifests/" + digestOf(t, img), flip},
		{"index", "x:1", "/manifests/" + digestOf(t, index), flip},
		{"manifest in an index", "x:1", "/manifests/" + digestOf(t, img), flip},
		{"config", "i:1", "/blobs/" + id.String(), flip},
		{"config, longer", "i:1", "/blobs/" + id.String(), space},
		{"config, shorter", "i:1", "/blobs/" + id.String(), cut},
		{"layer, longer", "i:1", "/blobs/" + layer, space},
		{"layer, shorter", "i:1", "/blobs/" + layer, cut},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := reg.Proxy(t, func(w http.ResponseWriter, q *http.Request, next http.Handler) {
				if q.Method == http.MethodGet && strings.HasSuffix(q.URL.Path, tc.path) {
					registrytest.Falsify(w, q, next, tc.change)
					return
				}
				next.ServeHTTP(w, q)
			})
			_, _, err := get(fetch.NewRegistry(fetch.Config{}), parse(t, p.Host+"/"+tc.ref), oci(amd64))
			if !errors.Is(err, errdefs.ErrUnverified) {
				t.Errorf("error %v, want ErrUnverified", err)
			}
		})
	}
}

// A registry that names a digest which its bytes do not have.
func TestFalseDigestHeader(t *testing.T) {
	reg := registrytest.Start(t)
	img := registrytest.Image(t, registrytest.Spec{Platform: amd64})
	reg.Push(t, "i:1", img)
	other := "sha256:" + strings.Repeat("1", 64)
	p := reg.Proxy(t, func(w http.ResponseWriter, q *http.Request, next http.Handler) {
		q.URL.Path = strings.ReplaceAll(q.URL.Path, other, digestOf(t, img))
		rec := header{ResponseWriter: w, digest: other}
		next.ServeHTTP(rec, q)
	})
	_, _, err := get(fetch.NewRegistry(fetch.Config{}), parse(t, p.Host+"/i:1"), oci(amd64))
	if !errors.Is(err, errdefs.ErrUnverified) {
		t.Errorf("error %v, want ErrUnverified", err)
	}
}

type header struct {
	http.ResponseWriter
	digest string
}

func (h header) WriteHeader(code int) {
	h.Header().Set("Docker-Content-Digest", h.digest)
	h.ResponseWriter.WriteHeader(code)
}

func TestErrorClasses(t *testing.T) {
	reg := registrytest.Start(t)
	img := registrytest.Image(t, registrytest.Spec{Platform: amd64, Layers: []v1.Layer{registrytest.Layer(t, false, registrytest.Tar(t, "a", "1"))}})
	reg.Push(t, "i:1", img)
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(code)
			_, _ = io.WriteString(w, `{"errors":[{"code":"DENIED","message":"not for you"}]}`)
		}
	}
	body := func(kind, text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", kind)
			_, _ = io.WriteString(w, text)
		}
	}
	for _, tc := range []struct {
		name    string
		handler http.HandlerFunc // of manifests
		ref     string
		host    string
		want    error
		text    string
	}{
		{name: "absent repository", ref: "nothing:1", want: errdefs.ErrNotFound, text: "nothing:1"},
		{name: "absent tag", ref: "i:2", want: errdefs.ErrNotFound},
		{name: "absent digest", ref: "i@sha256:" + strings.Repeat("1", 64), want: errdefs.ErrNotFound},
		{name: "401", handler: status(401), want: errdefs.ErrDenied},
		{name: "403", handler: status(403), want: errdefs.ErrDenied, text: "403 Forbidden"},
		{name: "400", handler: status(400), want: errdefs.ErrInvalid},
		{name: "500", handler: status(500), want: errdefs.ErrUnavailable, text: "/v2/i/manifests/1: 500"},
		{name: "nobody listens", host: "127.0.0.1:1", want: errdefs.ErrUnavailable, text: "127.0.0.1:1"},
		{name: "silent", host: registrytest.Silent(t), want: errdefs.ErrUnavailable, text: "no answer within"},
		{name: "no such host", host: "registry.invalid", want: errdefs.ErrUnavailable, text: "registry.invalid"},
		{name: "schema 1", handler: body("application/vnd.docker.distribution.manifest.v1+prettyjws", `{"schemaVersion":1,"fsLayers":[]}`), want: errdefs.ErrUnsupported, text: "schema"},
		{name: "artifact", handler: body(ocispec.MediaTypeImageManifest, `{"schemaVersion":2,"config":{"mediaType":"application/vnd.cncf.helm.config.v1+json"},"layers":[]}`), want: errdefs.ErrUnsupported, text: "helm"},
		{name: "a web page", handler: body("text/html", "<html>"), want: errdefs.ErrInvalid},
		{name: "too large", handler: body(ocispec.MediaTypeImageManifest, strings.Repeat(" ", 9<<20)), want: errdefs.ErrInvalid, text: "more than"},
		{name: "too large without a length", handler: func(w http.ResponseWriter, _ *http.Request) {
			for range 9 << 10 {
				if _, err := w.Write(make([]byte, 1024)); err != nil {
					return
				}
			}
		}, want: errdefs.ErrInvalid, text: "more than"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			host := tc.host
			if host == "" {
				host = reg.Proxy(t, func(w http.ResponseWriter, q *http.Request, next http.Handler) {
					if tc.handler != nil && strings.Contains(q.URL.Path, "/manifests/") {
						tc.handler(w, q)
						return
					}
					next.ServeHTTP(w, q)
				}).Host
			}
			if tc.ref == "" {
				tc.ref = "i:1"
			}
			r := fetch.NewRegistry(fetch.Config{ResolveTimeout: 2 * time.Second})
			_, _, err := get(r, parse(t, host+"/"+tc.ref), oci(amd64))
			if !errors.Is(err, tc.want) || !strings.Contains(fmt.Sprint(err), tc.text) {
				t.Errorf("error %v, want %v and %q", err, tc.want, tc.text)
			}
			wantOneClass(t, err, tc.want)
		})
	}
}

func wantOneClass(t *testing.T, err, want error) {
	t.Helper()
	for _, class := range []error{errdefs.ErrNotFound, errdefs.ErrDenied, errdefs.ErrInvalid, errdefs.ErrUnavailable, errdefs.ErrUnsupported, errdefs.ErrUnverified} {
		if !errors.Is(want, class) && errors.Is(err, class) {
			t.Errorf("error %v is also %v", err, class)
		}
	}
}

func TestHangingRegistry(t *testing.T) {
	reg := registrytest.Start(t)
	layer := registrytest.Layer(t, false, registrytest.Tar(t, "a", strings.Repeat("x", 1000)))
	img := registrytest.Image(t, registrytest.Spec{Platform: amd64, Layers: []v1.Layer{layer}})
	reg.Push(t, "i:1", img)
	half := func(w http.ResponseWriter, q *http.Request, next http.Handler) {
		registrytest.Falsify(flushThenHang{w, q}, q, next, func(b []byte) []byte { return b })
	}
	for _, tc := range []struct {
		name, method, path string
		answer             func(w http.ResponseWriter, q *http.Request, next http.Handler)
		text               string
	}{
		{"the first request", "HEAD", "/manifests/1", nil, "/v2/i/manifests/1"},
		{"the manifest", "GET", "/manifests/" + digestOf(t, img), nil, digestOf(t, img)},
		{"a layer, before its first byte", "GET", "/blobs/" + digestOf(t, layer), nil, digestOf(t, layer)},
		{"a layer, in the middle", "GET", "/blobs/" + digestOf(t, layer), half, digestOf(t, layer)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := reg.Proxy(t, func(w http.ResponseWriter, q *http.Request, next http.Handler) {
				switch {
				case q.Method != tc.method || !strings.HasSuffix(q.URL.Path, tc.path):
					next.ServeHTTP(w, q)
				case tc.answer != nil:
					tc.answer(w, q, next)
				default:
					registrytest.Hang(w, q)
				}
			})
			start := time.Now()
			_, _, err := get(short(), parse(t, p.Host+"/i:1"), oci(amd64))
			if !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(fmt.Sprint(err), tc.text) || !strings.Contains(fmt.Sprint(err), p.Host) {
				t.Errorf("error %v, want ErrUnavailable that names %s and %s", err, p.Host, tc.text)
			}
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("it took %s", took)
			}
		})
	}
}

// flushThenHang sends the first half of what is written, and then waits.
type flushThenHang struct {
	http.ResponseWriter
	q *http.Request
}

func (f flushThenHang) Write(p []byte) (int, error) {
	if _, err := f.ResponseWriter.Write(p[:len(p)/2]); err != nil {
		return 0, err
	}
	f.ResponseWriter.(http.Flusher).Flush()
	registrytest.Hang(f.ResponseWriter, f.q)
	return 0, f.q.Context().Err()
}

// A reader that is slow by itself is not taken for a slow registry.
func TestSlowReader(t *testing.T) {
	reg := registrytest.Start(t)
	layer := registrytest.PlainLayer(t, false, registrytest.Tar(t, "a", strings.Repeat("x", 100_000)))
	name := reg.Push(t, "i:1", registrytest.Image(t, registrytest.Spec{Platform: amd64, Layers: []v1.Layer{layer}}))
	ctx := context.Background()
	remote, err := short().Resolve(ctx, parse(t, name), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer remote.Close()
	man, err := remote.Manifest(ctx, oci(amd64))
	if err != nil {
		t.Fatal(err)
	}
	b, err := remote.Blob(ctx, man.Layers[0])
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if _, err := io.ReadFull(b, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	time.Sleep(600 * time.Millisecond)
	if _, err := io.ReadAll(b); err != nil {
		t.Error(err)
	}
}

// What a registry cannot do now is asked again; a connection that breaks is
// resumed where it broke.
func TestRetries(t *testing.T) {
	reg := registrytest.Start(t)
	layer := registrytest.PlainLayer(t, false, registrytest.Tar(t, "a", strings.Repeat("x", 100_000)))
	img := registrytest.Image(t, registrytest.Spec{Platform: amd64, Layers: []v1.Layer{layer}})
	reg.Push(t, "i:1", img)
	for _, tc := range []struct {
		name, path string
		fail       http.HandlerFunc
	}{
		{"429 for the tag", "/manifests/1", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(429) }},
		{"503 for a layer", "/blobs/" + digestOf(t, layer), func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }},
		{"502 for the manifest", "/manifests/" + digestOf(t, img), func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(502) }},
		{"broken layer", "/blobs/" + digestOf(t, layer), func(w http.ResponseWriter, q *http.Request) {
			rec, err := http.Get("http://" + reg.Host + q.URL.Path)
			if err != nil {
				t.Error(err)
				return
			}
			defer rec.Body.Close()
			w.Header().Set("Content-Length", fmt.Sprint(rec.ContentLength))
			_, _ = io.CopyN(w, rec.Body, rec.ContentLength/2)
			panic(http.ErrAbortHandler)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			failed := 0
			p := reg.Proxy(t, func(w http.ResponseWriter, q *http.Request, next http.Handler) {
				if strings.HasSuffix(q.URL.Path, tc.path) && failed < 2 && q.Header.Get("Range") == "" {
					failed++
					tc.fail(w, q)
					return
				}
				next.ServeHTTP(w, q)
			})
			_, blobs, err := get(fetch.NewRegistry(fetch.Config{}), parse(t, p.Host+"/i:1"), oci(amd64))
			if err != nil || len(blobs) != 1 || failed == 0 {
				t.Errorf("%d failures, then %v", failed, err)
			}
		})
	}
}

func TestTruncatedForEver(t *testing.T) {
	t.Run("before the answer", func(t *testing.T) { truncatedForEver(t, false) })
	t.Run("after some bytes", func(t *testing.T) { truncatedForEver(t, true) })
}

func truncatedForEver(t *testing.T, flush bool) {
	reg := registrytest.Start(t)
	layer := registrytest.PlainLayer(t, false, registrytest.Tar(t, "a", strings.Repeat("x", 1000)))
	reg.Push(t, "i:1", registrytest.Image(t, registrytest.Spec{Platform: amd64, Layers: []v1.Layer{layer}}))
	p := reg.Proxy(t, func(w http.ResponseWriter, q *http.Request, next http.Handler) {
		if !strings.HasSuffix(q.URL.Path, digestOf(t, layer)) {
			next.ServeHTTP(w, q)
			return
		}
		w.Header().Set("Content-Length", "2560")
		_, _ = w.Write(make([]byte, 10))
		if flush {
			w.(http.Flusher).Flush()
		}
		panic(http.ErrAbortHandler)
	})
	_, _, err := get(short(), parse(t, p.Host+"/i:1"), oci(amd64))
	if !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("error %v, want ErrUnavailable", err)
	}
}

// Close ends a Read that waits in another goroutine: an extraction that fails
// does not wait for its source.
func TestCloseDuringRead(t *testing.T) {
	reg := registrytest.Start(t)
	layer := registrytest.PlainLayer(t, false, registrytest.Tar(t, "a", "1"))
	reg.Push(t, "i:1", registrytest.Image(t, registrytest.Spec{Platform: amd64, Layers: []v1.Layer{layer}}))
	asked := make(chan struct{})
	p := reg.Proxy(t, func(w http.ResponseWriter, q *http.Request, next http.Handler) {
		if strings.HasSuffix(q.URL.Path, digestOf(t, layer)) {
			close(asked)
			registrytest.Hang(w, q)
			return
		}
		next.ServeHTTP(w, q)
	})
	ctx := context.Background()
	remote, err := fetch.NewRegistry(fetch.Config{}).Resolve(ctx, parse(t, p.Host+"/i:1"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer remote.Close()
	man, err := remote.Manifest(ctx, oci(amd64))
	if err != nil {
		t.Fatal(err)
	}
	b, err := remote.Blob(ctx, man.Layers[0])
	if err != nil {
		t.Fatal(err)
	}
	read := make(chan error, 1)
	go func() {
		_, err := b.Read(make([]byte, 1))
		read <- err
	}()
	<-asked
	for range 2 {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := <-read; err == nil {
		t.Error("Read returned no error")
	}
	if _, err := b.Read(make([]byte, 1)); err == nil {
		t.Error("Read after Close returned no error")
	}
}

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(100*time.Millisecond, cancel)
	_, err := fetch.NewRegistry(fetch.Config{}).Resolve(ctx, parse(t, registrytest.Silent(t)+"/i:1"), nil)
	if !errors.Is(err, context.Canceled) || errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("error %v, want Canceled alone", err)
	}
}

func TestCredentials(t *testing.T) {
	reg := registrytest.Start(t)
	reg.Push(t, "i:1", registrytest.Image(t, registrytest.Spec{Platform: amd64}))
	p := reg.Proxy(t, func(w http.ResponseWriter, q *http.Request, next http.Handler) {
		if user, secret, ok := q.BasicAuth(); !ok || user != "me" || secret != "right" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, q)
	})
	broken := errors.New("no helper")
	for _, tc := range []struct {
		name  string
		creds credential.Source
		want  error
	}{
		{"none", nil, errdefs.ErrDenied},
		{"empty", credential.For("", credential.Credential{}), errdefs.ErrDenied},
		{"wrong", credential.For("", credential.Credential{User: "me", Password: "wrong"}), errdefs.ErrDenied},
		{"right", credential.For("", credential.Credential{User: "me", Password: "right"}), nil},
		{"error", func(context.Context, string) (credential.Credential, error) { return credential.Credential{}, broken }, broken},
	} {
		t.Run(tc.name, func(t *testing.T) {
			remote, err := fetch.NewRegistry(fetch.Config{}).Resolve(context.Background(), parse(t, p.Host+"/i:1"), tc.creds)
			if !errors.Is(err, tc.want) {
				t.Fatalf("error %v, want %v", err, tc.want)
			}
			if err != nil {
				return
			}
			defer remote.Close()
			if _, err := remote.Manifest(context.Background(), oci(amd64)); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestHostsDirectory(t *testing.T) {
	reg := registrytest.Start(t)
	reg.Push(t, "mirrored/i:1", registrytest.Image(t, registrytest.Spec{Platform: amd64}))
	for _, tc := range []struct {
		name, dir, file string
		want            error
		text            string
	}{
		{name: "mirror", dir: "example.test", file: fmt.Sprintf("server = \"http://127.0.0.1:1\"\n[host.\"http://%s\"]\n", reg.Host)},
		{name: "default", dir: "_default", file: fmt.Sprintf("[host.\"http://%s\"]\n", reg.Host)},
		{name: "of another registry", dir: "other.test", file: fmt.Sprintf("[host.\"http://%s\"]\n", reg.Host), want: errdefs.ErrUnavailable},
		// containerd alone would go on to the registry that the file was to keep us from.
		{name: "broken file", dir: "example.test", file: "server = [", want: errdefs.ErrInvalid, text: "hosts.toml"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			root := t.TempDir()
			if err := os.Mkdir(filepath.Join(root, tc.dir), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(root, tc.dir, "hosts.toml"), []byte(tc.file), 0o600); err != nil {
				t.Fatal(err)
			}
			r := fetch.NewRegistry(fetch.Config{HostsDir: root, ResolveTimeout: 3 * time.Second})
			_, _, err := get(r, parse(t, "example.test/mirrored/i:1"), oci(amd64))
			if !errors.Is(err, tc.want) || !strings.Contains(fmt.Sprint(err), tc.text) {
				t.Errorf("error %v, want %v and %q", err, tc.want, tc.text)
			}
		})
	}
}

func TestIdleTimeoutBoundsTheAnswer(t *testing.T) {
	host := registrytest.Silent(t)
	r := fetch.NewRegistry(fetch.Config{IdleTimeout: 100 * time.Millisecond})
	began := time.Now()
	_, err := r.Resolve(t.Context(), parse(t, host+"/a:1"), nil)
	if took := time.Since(began); !errors.Is(err, errdefs.ErrUnavailable) || took > 10*time.Second {
		t.Errorf("got %v after %v", err, took)
	}
}
