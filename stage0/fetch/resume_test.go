package fetch_test

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/zstd"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/fetch"
	"github.com/gantry-cri/gantry/stage0/fetch/registrytest"
)

// noise does not compress and has no pattern that a wrong offset would hide.
func noise(n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rand.IntN(256)) //nolint:gosec // no secret
	}
	return string(b)
}

// cutting ends what goes through it after some bytes.
type cutting struct {
	http.ResponseWriter
	left int
	end  func(http.ResponseWriter)
	sent *atomic.Int64
}

func (c *cutting) Write(p []byte) (int, error) {
	n := min(len(p), c.left)
	c.left -= n
	c.sent.Add(int64(n))
	if _, err := c.ResponseWriter.Write(p[:n]); err != nil {
		return 0, err
	}
	c.ResponseWriter.(http.Flusher).Flush()
	if c.left == 0 {
		c.end(c.ResponseWriter)
	}
	return n, nil
}

func reset(w http.ResponseWriter) {
	conn, _, err := w.(http.Hijacker).Hijack()
	if err == nil {
		_ = conn.(*net.TCPConn).SetLinger(0) // Close then sends a reset
		_ = conn.Close()
	}
	panic(http.ErrAbortHandler)
}

// A layer whose transfer breaks goes on where it was, each time through another
// redirect, since an address is good once. No byte comes twice.
func TestResumeThroughFreshRedirect(t *testing.T) {
	tokens := registrytest.NewTokens(t)
	reg := registrytest.StartSecure(t, registrytest.Security{Tokens: tokens})
	layer := registrytest.PlainLayer(t, false, registrytest.Tar(t, "a", noise(2<<20)))
	reg.Push(t, "a/b:1", registrytest.Image(t, registrytest.Spec{Platform: amd64, Layers: []v1.Layer{layer}}))
	data, err := layer.Compressed()
	if err != nil {
		t.Fatal(err)
	}
	want, err := io.ReadAll(data)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		end  func(http.ResponseWriter)
		life time.Duration // of a token
	}{
		{"cut", func(http.ResponseWriter) { panic(http.ErrAbortHandler) }, time.Hour},
		{"reset", reset, time.Hour},
		{"stalls", func(http.ResponseWriter) { <-t.Context().Done() }, time.Hour},
		{"cut after the token's end", func(http.ResponseWriter) {
			time.Sleep(3 * time.Second)
			panic(http.ErrAbortHandler)
		}, 2 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tokens.Life = tc.life // of those that are issued from now on
			before := tokens.Issued()
			var sent, redirects atomic.Int64
			storage := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
				if q.Header.Get("Authorization") != "" {
					t.Error("the storage got the registry's token")
				}
				if q.URL.Query().Get("signature") != fmt.Sprint(redirects.Load()) {
					w.WriteHeader(http.StatusForbidden)
					return
				}
				end := tc.end
				if tc.name == "stalls" {
					end = func(http.ResponseWriter) { <-q.Context().Done() }
				}
				http.ServeContent(&cutting{w, 700_000, end, &sent}, q, "", time.Time{}, bytes.NewReader(want))
			}))
			defer storage.Close()
			p := reg.Proxy(t, func(w http.ResponseWriter, q *http.Request, next http.Handler) {
				if q.Method == http.MethodGet && strings.HasSuffix(q.URL.Path, digestOf(t, layer)) && registrytest.Serves(next, q) {
					http.Redirect(w, q, fmt.Sprintf("%s/?signature=%d", strings.Replace(storage.URL, "127.0.0.1", "localhost", 1), redirects.Add(1)), http.StatusTemporaryRedirect)
					return
				}
				next.ServeHTTP(w, q)
			})
			idle := 3 * time.Second
			if tc.life < time.Minute {
				idle = time.Minute // it is cut, and not given up for its silence
			}
			blobs, err := pulls(t, fetch.Config{Credentials: as(right()), IdleTimeout: idle}, p.Host+"/a/b:1")
			if err != nil || len(blobs) != 1 || !bytes.Equal(blobs[0], want) {
				t.Fatalf("got %d blobs, %v", len(blobs), err)
			}
			// A reset throws away what had arrived and was not read.
			again := sent.Load() != int64(len(want)) && tc.name != "reset"
			if redirects.Load() < 3 || again {
				t.Errorf("%d redirects, %d bytes of %d", redirects.Load(), sent.Load(), len(want))
			}
			// One for the first request, and one for each that came after the end of the last.
			if got := int64(tokens.Issued() - before); got < 1 || tc.life < time.Minute && got < redirects.Load() {
				t.Errorf("%d tokens for %d redirects", got, redirects.Load())
			}
		})
	}
}

// What comes back for a range is held to what was asked for.
func TestFalseRanges(t *testing.T) {
	reg := registrytest.Start(t)
	layer := registrytest.PlainLayer(t, false, registrytest.Tar(t, "a", noise(300_000)))
	reg.Push(t, "i:1", registrytest.Image(t, registrytest.Spec{Platform: amd64, Layers: []v1.Layer{layer}}))
	size, err := layer.Size()
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name   string
		answer func(w http.ResponseWriter, q *http.Request, next http.Handler)
		want   error
	}{
		{"another part", func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", size-1, size))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = io.WriteString(w, noise(int(size)))
		}, errdefs.ErrUnverified},
		{"compressed", func(w http.ResponseWriter, q *http.Request, _ http.Handler) {
			w.Header().Set("Content-Range", "bytes "+strings.TrimPrefix(q.Header.Get("Range"), "bytes=")+fmt.Sprintf("%d/%d", size-1, size))
			w.Header().Set("Content-Encoding", "gzip")
			w.WriteHeader(http.StatusPartialContent)
		}, errdefs.ErrUnverified},
		{"more than there is", func(w http.ResponseWriter, q *http.Request, _ http.Handler) {
			w.Header().Set("Content-Range", "bytes "+strings.TrimPrefix(q.Header.Get("Range"), "bytes=")+"9999999/9999999")
			w.WriteHeader(http.StatusPartialContent)
			_, _ = io.WriteString(w, noise(int(size)))
		}, errdefs.ErrUnverified},
		{"all of it", func(w http.ResponseWriter, q *http.Request, next http.Handler) {
			q.Header.Del("Range")
			next.ServeHTTP(w, q)
		}, nil},
		{"gone meanwhile", func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { w.WriteHeader(http.StatusNotFound) }, errdefs.ErrNotFound},
		{"forbidden meanwhile", func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { w.WriteHeader(http.StatusForbidden) }, errdefs.ErrDenied},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var sent atomic.Int64
			p := reg.Proxy(t, func(w http.ResponseWriter, q *http.Request, next http.Handler) {
				switch {
				case !strings.HasSuffix(q.URL.Path, digestOf(t, layer)):
					next.ServeHTTP(w, q)
				case q.Header.Get("Range") == "":
					next.ServeHTTP(&cutting{w, 100_000, func(http.ResponseWriter) { panic(http.ErrAbortHandler) }, &sent}, q)
				default:
					tc.answer(w, q, next)
				}
			})
			_, err := pulls(t, fetch.Config{IdleTimeout: 3 * time.Second}, p.Host+"/i:1")
			if !errors.Is(err, tc.want) {
				t.Errorf("error %v, want %v", err, tc.want)
			}
			if tc.want != nil {
				wantOneClass(t, err, tc.want)
			}
		})
	}
}

// zstdCoded is data as a server may send it: before it go bytes that decode to nothing.
func zstdCoded(t *testing.T, padding int, data []byte) []byte {
	t.Helper()
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	skipped := binary.LittleEndian.AppendUint32([]byte{0x50, 0x2a, 0x4d, 0x18}, uint32(padding))
	return z.EncodeAll(data, append(skipped, make([]byte, padding)...))
}

func gzipCoded(t *testing.T, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// sending counts what its client took.
type sending struct {
	http.ResponseWriter
	sent *atomic.Int64
}

func (s sending) Write(p []byte) (int, error) {
	n, err := s.ResponseWriter.Write(p)
	s.sent.Add(int64(n))
	return n, err
}

// Whatever is compressed on the way is refused, before it is decoded: the bytes would
// be right, but of a window and a number on the wire that nobody bounded.
func TestContentEncoding(t *testing.T) {
	reg := registrytest.Start(t)
	layer := registrytest.PlainLayer(t, false, registrytest.Tar(t, "a", noise(100_000)))
	img := registrytest.Image(t, registrytest.Spec{Platform: amd64, Layers: []v1.Layer{layer}})
	reg.Push(t, "i:1", img)
	id, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	blob, manifest, config := "/blobs/"+digestOf(t, layer), "/manifests/"+digestOf(t, img), "/blobs/"+id.String()
	same := func(b []byte) []byte { return b }
	toGzip := func(b []byte) []byte { return gzipCoded(t, b) }
	const padding = 64 << 20
	for _, tc := range []struct {
		name, method, path string
		coding             []string
		change             func([]byte) []byte
		refused            string // the coding that the error names, "" for none
	}{
		{"layer, zstd with more on the wire", "GET", blob, []string{"zstd"}, func(b []byte) []byte { return zstdCoded(t, padding, b) }, "zstd"},
		{"layer, gzip", "GET", blob, []string{"gzip"}, toGzip, "gzip"},
		{"layer, in a list", "GET", blob, []string{"identity, GZIP"}, toGzip, "GZIP"},
		{"layer, in a second line", "GET", blob, []string{"identity", "br"}, same, "br"},
		{"layer, identity", "GET", blob, []string{"identity"}, same, ""},
		{"config, gzip", "GET", config, []string{"gzip"}, toGzip, "gzip"},
		{"manifest, gzip", "GET", manifest, []string{"gzip"}, toGzip, "gzip"},
		{"tag, gzip", "HEAD", "/manifests/1", []string{"gzip"}, same, "gzip"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var sent atomic.Int64
			p := reg.Proxy(t, func(w http.ResponseWriter, q *http.Request, next http.Handler) {
				if got := q.Header.Values("Accept-Encoding"); len(got) != 1 || got[0] != "identity" {
					t.Errorf("%s %s offers to take %q", q.Method, q.URL, got)
				}
				if q.Method != tc.method || !strings.HasSuffix(q.URL.Path, tc.path) {
					next.ServeHTTP(w, q)
					return
				}
				w.Header()["Content-Encoding"] = tc.coding
				registrytest.Falsify(sending{w, &sent}, q, next, tc.change)
			})
			_, err := pulls(t, fetch.Config{}, p.Host+"/i:1")
			if tc.refused == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !errors.Is(err, errdefs.ErrUnverified) || !strings.Contains(fmt.Sprint(err), p.Host+"/v2/i"+tc.path+`: it sent Content-Encoding "`+tc.refused+`"`) {
				t.Errorf("error %v, want ErrUnverified that names %s and %s", err, p.Host, tc.refused)
			}
			wantOneClass(t, err, errdefs.ErrUnverified)
			// What was on its way when we hung up lies in the buffers of the sockets.
			if sent.Load() > padding/2 {
				t.Errorf("%d bytes were sent", sent.Load())
			}
		})
	}
}

// An answer without an end is left where it is too long, whatever it answers.
func TestEndlessAnswers(t *testing.T) {
	reg := registrytest.Start(t)
	layer := registrytest.PlainLayer(t, false, registrytest.Tar(t, "a", noise(10_000)))
	img := registrytest.Image(t, registrytest.Spec{Platform: amd64, Layers: []v1.Layer{layer}})
	reg.Push(t, "i:1", img)
	id, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	blob := "/blobs/" + digestOf(t, layer)
	const end = 64 << 20 // of those that nobody leaves
	for _, tc := range []struct {
		name, path string
		code       int
		want       error
	}{
		{"layer", blob, http.StatusOK, errdefs.ErrUnverified},
		{"config", "/blobs/" + id.String(), http.StatusOK, errdefs.ErrUnverified},
		{"manifest", "/manifests/" + digestOf(t, img), http.StatusOK, errdefs.ErrUnverified},
		{"failure", blob, http.StatusNotFound, errdefs.ErrNotFound},
		{"refusal", blob, http.StatusForbidden, errdefs.ErrDenied},
		{"trouble", blob, http.StatusServiceUnavailable, errdefs.ErrUnavailable},
		{"redirect", blob, http.StatusTemporaryRedirect, errdefs.ErrNotFound},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var sent atomic.Int64
			var asked atomic.Int64
			p := reg.Proxy(t, func(w http.ResponseWriter, q *http.Request, next http.Handler) {
				if q.Method != http.MethodGet || !strings.HasSuffix(q.URL.Path, tc.path) {
					next.ServeHTTP(w, q)
					return
				}
				asked.Add(1)
				w.Header().Set("Location", "/nowhere")
				w.WriteHeader(tc.code)
				for n := 0; n < end; n += 64 << 10 {
					if _, err := (sending{w, &sent}).Write(make([]byte, 64<<10)); err != nil {
						return
					}
				}
			})
			_, err := pulls(t, fetch.Config{}, p.Host+"/i:1")
			if !errors.Is(err, tc.want) {
				t.Errorf("error %v, want %v", err, tc.want)
			}
			// What was on its way when we hung up lies in the buffers of the sockets.
			if n := sent.Load(); n > end/2*asked.Load() || asked.Load() == 0 {
				t.Errorf("%d bytes were sent in %d answers", n, asked.Load())
			}
		})
	}
}

// A failure may tell of itself in any coding: its status is what counts.
func TestContentEncodingOfFailures(t *testing.T) {
	reg := registrytest.Start(t)
	reg.Push(t, "i:1", registrytest.Image(t, registrytest.Spec{Platform: amd64}))
	for code, want := range map[int]error{http.StatusNotFound: errdefs.ErrNotFound, http.StatusForbidden: errdefs.ErrDenied, http.StatusServiceUnavailable: errdefs.ErrUnavailable} {
		p := reg.Proxy(t, func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			w.Header().Set("Content-Encoding", "gzip")
			w.WriteHeader(code)
			_, _ = w.Write(gzipCoded(t, []byte("no")))
		})
		if _, err := pulls(t, fetch.Config{}, p.Host+"/i:1"); !errors.Is(err, want) {
			t.Errorf("%d: error %v, want %v", code, err, want)
		}
	}
}

// A registry that asks for patience gets it, within bounds.
func TestRetryAfter(t *testing.T) {
	reg := registrytest.Start(t)
	reg.Push(t, "i:1", registrytest.Image(t, registrytest.Spec{Platform: amd64}))
	for _, tc := range []struct {
		name, after string
		code        int
		atLeast     time.Duration
		want        error
		requests    int
	}{
		{name: "seconds", after: "1", code: 429, atLeast: time.Second, requests: 2},
		{name: "a date", after: "date", code: 503, atLeast: time.Second, requests: 2},
		{name: "none", code: 500, atLeast: 200 * time.Millisecond, requests: 2},
		{name: "nonsense", after: "-7", code: 502, atLeast: 200 * time.Millisecond, requests: 2},
		{name: "too long", after: "3600", code: 429, want: errdefs.ErrUnavailable, requests: 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			requests := 0
			p := reg.Proxy(t, func(w http.ResponseWriter, q *http.Request, next http.Handler) {
				if !strings.HasSuffix(q.URL.Path, "/manifests/1") {
					next.ServeHTTP(w, q)
					return
				}
				if requests++; requests > 1 {
					next.ServeHTTP(w, q)
					return
				}
				switch tc.after {
				case "":
				case "date":
					w.Header().Set("Retry-After", time.Now().Add(2*time.Second).UTC().Format(http.TimeFormat))
				default:
					w.Header().Set("Retry-After", tc.after)
				}
				w.WriteHeader(tc.code)
			})
			began := time.Now()
			_, err := pulls(t, fetch.Config{}, p.Host+"/i:1")
			took := time.Since(began)
			if !errors.Is(err, tc.want) || requests != tc.requests || took < tc.atLeast || took > 10*time.Second {
				t.Errorf("%v after %d requests and %s", err, requests, took)
			}
		})
	}
}

// The error of a failed pull says who was asked, why, as whom, and what they said;
// and a mirror that cannot is left for the next endpoint.
func TestTrace(t *testing.T) {
	reg := registrytest.Start(t)
	reg.Push(t, "a/b:1", registrytest.Image(t, registrytest.Spec{Platform: amd64}))
	ill := reg.Proxy(t, func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.WriteHeader(http.StatusServiceUnavailable)
	})
	file := fmt.Sprintf("server = \"http://%s\"\n[host.\"http://127.0.0.1:1\"]\n[host.\"http://%s\"]\n", reg.Host, ill.Host)
	root := hostsToml(t, "example.test", file)
	if _, err := pulls(t, fetch.Config{HostsDir: root}, "example.test/a/b:1"); err != nil {
		t.Errorf("the last endpoint has it: %v", err)
	}
	if n := ill.Count("HEAD", "/manifests/1"); n != 2 {
		t.Errorf("the mirror that could not was asked %d times for the tag", n)
	}
	_, err := pulls(t, fetch.Config{HostsDir: root}, "example.test/a/b:2")
	for _, part := range []string{
		root + "/example.test/hosts.toml: host 1;", "connect: connection refused, 2 times", ill.Host + "/v2 (", "503 Service Unavailable, 2 times",
		"hosts.toml: server; credentials: not wanted): HEAD http://" + reg.Host + "/v2/a/b/manifests/2: 404 Not Found",
	} {
		if !strings.Contains(fmt.Sprint(err), part) {
			t.Errorf("error %v lacks %q", err, part)
		}
	}
}

func TestCapabilities(t *testing.T) {
	reg := registrytest.Start(t)
	img := registrytest.Image(t, registrytest.Spec{Platform: amd64, Layers: []v1.Layer{registrytest.Layer(t, false, registrytest.Tar(t, "a", "1"))}})
	reg.Push(t, "a/b:1", img)
	blobs, none := reg.Proxy(t, nil), reg.Proxy(t, nil)
	file := fmt.Sprintf("server = \"http://%s\"\n[host.\"http://%s\"]\ncapabilities = [\"push\"]\n[host.\"http://%s\"]\ncapabilities = [\"pull\"]\n", reg.Host, none.Host, blobs.Host)
	root := hostsToml(t, "example.test", file)
	if _, err := pulls(t, fetch.Config{HostsDir: root}, "example.test/a/b:1"); err != nil {
		t.Fatal(err)
	}
	if none.Count("", "") != 0 || none.Count("GET", "") != 0 || none.Count("HEAD", "") != 0 {
		t.Error("a host that may not be pulled from was asked")
	}
	if blobs.Count("HEAD", "/manifests/1") != 0 || blobs.Count("GET", "") == 0 {
		t.Error("a host without resolve was asked for the tag, or for nothing")
	}
	es, err := fetch.NewRegistry(fetch.Config{HostsDir: root}).Explain(t.Context(), parse(t, "example.test/a/b:1"), nil, true)
	if err != nil || len(es) != 2 {
		t.Fatalf("%d endpoints, %v", len(es), err)
	}
	for _, e := range es {
		if e.Probe == nil || e.Probe.Digest != digestOf(t, img) {
			t.Errorf("%s: probe %+v", e.URL, e.Probe)
		}
	}
	// The file says that nobody may be asked; nobody is, upstream least of all.
	root = hostsToml(t, reg.Host, fmt.Sprintf("server = \"http://%s\"\ncapabilities = [\"push\"]\n", reg.Host))
	if _, err := pulls(t, fetch.Config{HostsDir: root}, reg.Host+"/a/b:1"); !errors.Is(err, errdefs.ErrInvalid) {
		t.Errorf("without an endpoint: %v", err)
	}
}

// A file that names a server forbids the registry itself.
func TestNoFallback(t *testing.T) {
	upstream := registrytest.Start(t)
	upstream.Push(t, "a/b:1", registrytest.Image(t, registrytest.Spec{Platform: amd64}))
	p := upstream.Proxy(t, nil)
	root := hostsToml(t, p.Host, "server = \"http://127.0.0.1:1\"\n")
	if _, err := pulls(t, fetch.Config{HostsDir: root}, p.Host+"/a/b:1"); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("error %v, want ErrUnavailable", err)
	}
	if n := p.Count("HEAD", "") + p.Count("GET", ""); n != 0 {
		t.Errorf("upstream was asked %d times", n)
	}
}

func TestHeaders(t *testing.T) {
	reg := registrytest.Start(t)
	reg.Push(t, "a/b:1", registrytest.Image(t, registrytest.Spec{Platform: amd64}))
	p := reg.Proxy(t, func(w http.ResponseWriter, q *http.Request, next http.Handler) {
		if q.Header.Get("X-Key") != "hunter2key" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, q)
	})
	root := hostsToml(t, "example.test", fmt.Sprintf("server = \"http://%s\"\n[header]\nX-Key = \"hunter2key\"\n", p.Host))
	if _, err := pulls(t, fetch.Config{HostsDir: root}, "example.test/a/b:1"); err != nil {
		t.Error(err)
	}
	root = hostsToml(t, "example.test", fmt.Sprintf("server = \"http://%s\"\n[header]\nX-Key = \"hunter2key\"\nX-Other = 3\n", p.Host))
	_, err := pulls(t, fetch.Config{HostsDir: root}, "example.test/a/b:1")
	if !errors.Is(err, errdefs.ErrInvalid) || strings.Contains(fmt.Sprint(err), "hunter2key") {
		t.Errorf("error %v", err)
	}
}

// How often, and after what pauses: they double, so that a registry in trouble is left
// alone, and they end.
func TestBackoffGrows(t *testing.T) {
	reg := registrytest.Start(t)
	var mu sync.Mutex
	var at []time.Time
	p := reg.Proxy(t, func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		mu.Lock()
		defer mu.Unlock()
		at = append(at, time.Now())
		w.WriteHeader(http.StatusServiceUnavailable)
	})
	if _, err := pulls(t, fetch.Config{}, p.Host+"/i:1"); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("error %v, want ErrUnavailable", err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(at) != 5 {
		t.Fatalf("asked %d times, want 5", len(at))
	}
	for i, least := range []time.Duration{200 * time.Millisecond, 400 * time.Millisecond, 800 * time.Millisecond, 1600 * time.Millisecond} {
		if pause := at[i+1].Sub(at[i]); pause < least {
			t.Errorf("pause %d is %s, want %s at least", i+1, pause, least)
		}
	}
}

// proxied is a process whose environment names proxies. It pulls from GANTRY_TEST_SERVER
// and tells what came of it: the environment is read once by a process.
func proxied(t *testing.T) {
	t.Helper()
	server := os.Getenv("GANTRY_TEST_SERVER")
	text := fmt.Sprintf("server = %q\n", server)
	if ca := os.Getenv("GANTRY_TEST_CA"); ca != "" {
		text += fmt.Sprintf("ca = %q\n", ca)
	}
	c := fetch.Config{HostsDir: hostsToml(t, "example.test", text), ResolveTimeout: 10 * time.Second}
	direct := os.Getenv("GANTRY_TEST_DIRECT") != ""
	_, err := pulls(t, c, "example.test/a/b:1")
	if direct && (!errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(fmt.Sprint(err), "registry.invalid")) {
		t.Errorf("without a proxy nobody knows registry.invalid, got %v", err)
	}
	if !direct && err != nil {
		t.Error(err)
	}
	es, err := fetch.NewRegistry(c).Explain(t.Context(), parse(t, "example.test/a/b:1"), nil, false)
	if err != nil || len(es) != 1 || (es[0].Proxy == "") != direct || strings.Contains(es[0].Proxy, "hunter2") {
		t.Errorf("explained as %+v, %v", es, err)
	}
}

const proxiedName = "GANTRY_TEST_PROXIED"

// pushed is a registry with an image.
func pushed(t *testing.T, s registrytest.Security) *registrytest.Registry {
	t.Helper()
	reg := registrytest.StartSecure(t, s)
	reg.Push(t, "a/b:1", registrytest.Image(t, registrytest.Spec{Platform: amd64, Layers: []v1.Layer{registrytest.Layer(t, false, registrytest.Tar(t, "a", "1"))}}))
	return reg
}

// withPassword is a proxy's address as the environment has it.
func withPassword(proxy *httptest.Server) string {
	return strings.Replace(proxy.URL, "http://", "http://me:hunter2@", 1)
}

func TestProxyOfTheEnvironment(t *testing.T) {
	if runChild(t, proxiedName) {
		proxied(t)
		return
	}
	reg := pushed(t, registrytest.Security{})
	var seen atomic.Int64
	to := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(&url.URL{Scheme: "http", Host: reg.Host}) }}
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if q.URL.Host == "registry.invalid" && q.Header.Get("Proxy-Authorization") != "" {
			seen.Add(1)
		}
		to.ServeHTTP(w, q)
	}))
	defer proxy.Close()
	child(t, proxiedName, "GANTRY_TEST_SERVER=http://registry.invalid", "HTTP_PROXY="+withPassword(proxy))
	if seen.Load() < 3 {
		t.Errorf("the proxy saw %d requests", seen.Load())
	}
}

// tunnel is a proxy that connects registry.invalid:443 to a registry, and knows no more.
func tunnel(t *testing.T, to string, tunnels *atomic.Int64) *httptest.Server {
	t.Helper()
	return httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if q.Method != http.MethodConnect || q.Host != "registry.invalid:443" || q.Header.Get("Proxy-Authorization") == "" {
			t.Errorf("the proxy got %s %s", q.Method, q.Host)
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		tunnels.Add(1)
		there, err := net.Dial("tcp", to)
		if err != nil {
			t.Error(err)
			return
		}
		defer there.Close()
		w.WriteHeader(http.StatusOK)
		here, buffered, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer here.Close()
		go func() {
			_, _ = io.Copy(there, buffered) // ends when either side does
			_ = there.(*net.TCPConn).CloseWrite()
		}()
		_, _ = io.Copy(here, there)
	}))
}

// What is encrypted stays so through a proxy, which sees the registry's name and no
// request; the certificate is the registry's.
func TestProxyByConnect(t *testing.T) {
	if runChild(t, proxiedName) {
		proxied(t)
		return
	}
	authority := registrytest.NewAuthority(t)
	reg := pushed(t, registrytest.Security{TLS: authority})
	var tunnels atomic.Int64
	proxy := tunnel(t, reg.Host, &tunnels)
	defer proxy.Close()
	child(t, proxiedName, "GANTRY_TEST_SERVER=https://registry.invalid", "GANTRY_TEST_CA="+authority.File(t, t.TempDir()), "HTTPS_PROXY="+withPassword(proxy))
	if tunnels.Load() == 0 {
		t.Error("the proxy was not asked for a tunnel")
	}
}

// NO_PROXY names hosts, domains with all below them, or everything.
func TestNoProxy(t *testing.T) {
	if runChild(t, proxiedName) {
		proxied(t)
		return
	}
	proxy := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, q *http.Request) {
		t.Errorf("the proxy got %s %s", q.Method, q.Host)
	}))
	defer proxy.Close()
	for _, except := range []string{"registry.invalid", "example.org,.invalid", "*"} {
		for _, scheme := range []string{"http", "https"} {
			child(t, proxiedName, "GANTRY_TEST_SERVER="+scheme+"://registry.invalid", "GANTRY_TEST_DIRECT=1",
				"HTTP_PROXY="+withPassword(proxy), "HTTPS_PROXY="+withPassword(proxy), "NO_PROXY="+except)
		}
	}
}
