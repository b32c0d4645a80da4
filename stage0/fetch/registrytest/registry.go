// Package registrytest gives tests a real registry, Debian's docker-registry, on
// a loopback port of its own, images to push into it, and a proxy that counts,
// delays and falsifies what it answers.
package registrytest

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// Registry is a running docker-registry.
type Registry struct {
	Host string // "127.0.0.1:PORT"

	scheme string
	client *http.Transport
	login  authn.Authenticator // for Push
	tokens *Tokens             // for Push, too
}

// Start runs a registry until the test ends; without the program the test is
// skipped.
func Start(t testing.TB) *Registry {
	t.Helper()
	return StartSecure(t, Security{})
}

// StartSecure is Start for a registry that does not serve everybody.
func StartSecure(t testing.TB, s Security) *Registry {
	t.Helper()
	program, err := exec.LookPath("docker-registry")
	if err != nil {
		t.Skip("docker-registry is not installed")
	}
	for range 5 { // another process may take the port between the two steps
		if r := start(t, program, freePort(t), s); r != nil {
			return r
		}
	}
	t.Fatal("docker-registry does not start")
	return nil
}

func start(t testing.TB, program, host string, s Security) *Registry {
	t.Helper()
	dir := t.TempDir()
	config := filepath.Join(dir, "config.yml")
	// Addresses of foreign layers are refused where none is allowed.
	text := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nvalidation: {manifests: {urls: {allow: [\".*\"]}}}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: %q%s}\n%s", filepath.Join(dir, "data"), host, s.http(t, dir), s.auth(t, dir))
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "serve", config)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // it is killed; how it says so is of no interest
		close(ended)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // fails only when it has ended
		<-ended
	})
	r := &Registry{Host: host, scheme: s.scheme(), client: s.client(t), login: s.login(), tokens: s.Tokens}
	t.Cleanup(r.client.CloseIdleConnections)
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		select {
		case <-ended:
			return nil
		case <-time.After(20 * time.Millisecond):
		}
		resp, err := (&http.Client{Transport: r.client}).Get(r.scheme + "://" + host + "/v2/")
		if err != nil {
			continue
		}
		if err := resp.Body.Close(); err == nil && (resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusUnauthorized) {
			return r
		}
	}
	return nil
}

func freePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// Push stores an image (v1.Image) or an index (v1.ImageIndex) under a name such
// as "a/b:tag" and returns the name with the registry's host.
func (r *Registry) Push(t testing.TB, ref string, what any) string {
	t.Helper()
	full := r.Host + "/" + ref
	n, err := name.ParseReference(full)
	if err != nil {
		t.Fatal(err)
	}
	opts := []remote.Option{remote.WithTransport(r.transport(t, n.Context().RepositoryStr())), remote.WithAuth(r.login)}
	switch x := what.(type) {
	case v1.Image:
		err = remote.Write(n, x, opts...)
	case v1.ImageIndex:
		err = remote.WriteIndex(n, x, opts...)
	default:
		t.Fatalf("cannot push a %T", what)
	}
	if err != nil {
		t.Fatal(err)
	}
	return full
}

// transport brings a token along where one is wanted: go-containerregistry does
// not go to token servers on private addresses.
func (r *Registry) transport(t testing.TB, repository string) http.RoundTripper {
	if r.tokens == nil {
		return r.client
	}
	token, err := r.tokens.Token("repository:" + repository + ":pull,push")
	if err != nil {
		t.Fatal(err)
	}
	return bearer{r.client, token}
}

type bearer struct {
	next  http.RoundTripper
	token string
}

// RoundTrip is part of http.RoundTripper.
func (b bearer) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.Header.Set("Authorization", "Bearer "+b.token)
	return b.next.RoundTrip(req)
}

// Proxy stands before a registry and counts its requests.
type Proxy struct {
	Host string

	mu     sync.Mutex
	counts map[string]int // by method and path
}

// Proxy starts a proxy. around may answer itself, or call next and falsify; nil
// lets everything through.
func (r *Registry) Proxy(t testing.TB, around func(w http.ResponseWriter, q *http.Request, next http.Handler)) *Proxy {
	t.Helper()
	next := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: r.scheme, Host: r.Host})
	next.Transport = r.client
	next.ErrorHandler = func(http.ResponseWriter, *http.Request, error) {} // a client that went away
	p := &Proxy{counts: map[string]int{}}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		p.mu.Lock()
		p.counts[q.Method+" "+q.URL.Path]++
		p.mu.Unlock()
		if around == nil {
			next.ServeHTTP(w, q)
			return
		}
		around(w, q, next)
	}))
	server.Config.ErrorLog = nil
	t.Cleanup(server.Close)
	p.Host = server.Listener.Addr().String()
	return p
}

// Count returns how many requests had this method and a path with this end.
func (p *Proxy) Count(method, end string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for k, c := range p.counts {
		if strings.HasPrefix(k, method+" ") && strings.HasSuffix(k, end) {
			n += c
		}
	}
	return n
}

// Falsify answers with what change makes of the registry's answer's body.
func Falsify(w http.ResponseWriter, q *http.Request, next http.Handler, change func([]byte) []byte) {
	rec := httptest.NewRecorder()
	next.ServeHTTP(rec, q)
	for k, v := range rec.Header() {
		if k != "Content-Length" && k != "Etag" {
			w.Header()[k] = v
		}
	}
	body := change(rec.Body.Bytes())
	if q.Method == http.MethodHead {
		w.Header()["Content-Length"] = rec.Header()["Content-Length"]
		body = nil
	} else {
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
	}
	w.WriteHeader(rec.Code)
	_, _ = w.Write(body) // a client that went away
}

// Serves asks whether next would answer a request, without its body.
func Serves(next http.Handler, q *http.Request) bool {
	q = q.Clone(q.Context())
	q.Method = http.MethodHead
	rec := httptest.NewRecorder()
	next.ServeHTTP(rec, q)
	return rec.Code == http.StatusOK || rec.Code == http.StatusPartialContent
}

// Hang waits until the client goes away.
func Hang(_ http.ResponseWriter, q *http.Request) { <-q.Context().Done() }

// Silent listens, accepts and never says a word, until the test ends. It returns
// its host.
func Silent(t testing.TB) string {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { _ = c.Close() })
		}
	}()
	return l.Addr().String()
}
