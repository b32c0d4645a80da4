package fetch_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/gantry-cri/gantry/stage0/credential"
	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/fetch"
	"github.com/gantry-cri/gantry/stage0/fetch/registrytest"
)

const wrongPassword = "wrong-pass"

// as gives one credential to everybody.
func as(c credential.Credential) func(string) credential.Source {
	return func(string) credential.Source { return credential.For("", c) }
}

func right() credential.Credential {
	return credential.Credential{User: registrytest.User, Password: registrytest.Password, Origin: "the test"}
}

// pulls does all that a pull does with a configuration.
func pulls(t *testing.T, c fetch.Config, name string) ([][]byte, error) {
	t.Helper()
	_, blobs, err := get(fetch.NewRegistry(c), parse(t, name), oci(amd64))
	return blobs, err
}

func wantHidden(t *testing.T, err error, secrets ...string) {
	t.Helper()
	for _, s := range append(secrets, registrytest.Refresh, wrongPassword) {
		if err != nil && strings.Contains(err.Error(), s) {
			t.Errorf("error %v has the secret %s", err, s)
		}
	}
}

func TestBasicAuth(t *testing.T) {
	reg := registrytest.StartSecure(t, registrytest.Security{Basic: true})
	name := reg.Push(t, "a/b:1", registrytest.Image(t, registrytest.Spec{Platform: amd64, Layers: []v1.Layer{registrytest.Layer(t, false, registrytest.Tar(t, "a", "1"))}}))
	var denied atomic.Int64
	p := reg.Proxy(t, func(w http.ResponseWriter, q *http.Request, next http.Handler) {
		if q.Header.Get("Authorization") != "" {
			denied.Add(1)
		}
		next.ServeHTTP(w, q)
	})
	if _, err := pulls(t, fetch.Config{Credentials: as(right())}, name); err != nil {
		t.Error(err)
	}
	if _, err := pulls(t, fetch.Config{}, name); !errors.Is(err, errdefs.ErrDenied) {
		t.Errorf("anonymous: %v", err)
	}
	_, err := pulls(t, fetch.Config{Credentials: as(credential.Credential{User: "me", Password: wrongPassword, Origin: "a wrong file"})}, p.Host+"/a/b:1")
	if !errors.Is(err, errdefs.ErrDenied) || !strings.Contains(fmt.Sprint(err), "a wrong file") {
		t.Errorf("wrong: %v", err)
	}
	wantHidden(t, err)
	// A second attempt with what was refused would bring a user nearer to a lock.
	if n := denied.Load(); n != 1 {
		t.Errorf("the wrong password was sent %d times", n)
	}
}

func TestTokenAuth(t *testing.T) {
	tokens := registrytest.NewTokens(t)
	reg := registrytest.StartSecure(t, registrytest.Security{Tokens: tokens})
	name := reg.Push(t, "a/b:1", registrytest.Image(t, registrytest.Spec{Platform: amd64, Layers: []v1.Layer{registrytest.Layer(t, false, registrytest.Tar(t, "a", "1"))}}))
	mine, err := tokens.Token("repository:a/b:pull")
	if err != nil {
		t.Fatal(err)
	}
	others, err := tokens.Token("repository:c/d:pull")
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		give credential.Credential
		want error
	}{
		{name: "password", give: right()},
		{name: "identity token", give: credential.Credential{IdentityToken: registrytest.Refresh}},
		{name: "registry token", give: credential.Credential{RegistryToken: mine}},
		{name: "registry token beside a wrong password", give: credential.Credential{User: "me", Password: wrongPassword, RegistryToken: mine}},
		{name: "anonymous", want: errdefs.ErrDenied},
		{name: "wrong password", give: credential.Credential{User: "me", Password: wrongPassword}, want: errdefs.ErrDenied},
		{name: "wrong identity token", give: credential.Credential{IdentityToken: wrongPassword}, want: errdefs.ErrDenied},
		{name: "registry token of another repository", give: credential.Credential{RegistryToken: others}, want: errdefs.ErrDenied},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := pulls(t, fetch.Config{Credentials: as(tc.give)}, name)
			if !errors.Is(err, tc.want) {
				t.Errorf("error %v, want %v", err, tc.want)
			}
			if tc.want != nil {
				wantOneClass(t, err, tc.want)
			}
			wantHidden(t, err, mine, others)
		})
	}
}

// A token that ends in mid-pull is renewed, and what a helper says now is asked.
func TestTokenEndsInMidPull(t *testing.T) {
	tokens := registrytest.NewTokens(t)
	reg := registrytest.StartSecure(t, registrytest.Security{Tokens: tokens})
	layer := registrytest.PlainLayer(t, false, registrytest.Tar(t, "a", strings.Repeat("x", 300_000)))
	name := reg.Push(t, "a/b:1", registrytest.Image(t, registrytest.Spec{Platform: amd64, Layers: []v1.Layer{layer}}))
	tokens.Life = time.Second // a push does not renew its token
	asked := 0
	creds := func(context.Context, string) (credential.Credential, error) {
		asked++
		return right(), nil
	}
	remote, err := fetch.NewRegistry(fetch.Config{}).Resolve(t.Context(), parse(t, name), creds)
	if err != nil {
		t.Fatal(err)
	}
	defer remote.Close()
	man, err := remote.Manifest(t.Context(), oci(amd64))
	if err != nil {
		t.Fatal(err)
	}
	before, askedBefore := tokens.Issued(), asked
	time.Sleep(2500 * time.Millisecond)
	b, err := remote.Blob(t.Context(), man.Layers[0])
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if n, err := io.Copy(io.Discard, b); err != nil || n != man.Layers[0].Size {
		t.Errorf("read %d bytes, %v", n, err)
	}
	if tokens.Issued() == before || asked == askedBefore {
		t.Errorf("%d tokens then and %d now, asked %d and %d times", before, tokens.Issued(), askedBefore, asked)
	}
}

// What a token server says about a failure may be what it was told.
func TestTokenServerEchoes(t *testing.T) {
	tokens := registrytest.NewTokens(t)
	reg := registrytest.StartSecure(t, registrytest.Security{Tokens: tokens})
	reg.Push(t, "a/b:1", registrytest.Image(t, registrytest.Spec{Platform: amd64}))
	for _, code := range []int{400, 401, 403, 500} {
		tokens.Around = func(w http.ResponseWriter, q *http.Request) bool {
			_ = q.ParseForm()
			_, password, _ := q.BasicAuth()
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(code)
			fmt.Fprintf(w, `{"errors":[{"code":"DENIED","message":"it was %s and %s%s"}]}`, q.Form, password, q.Header.Get("Authorization"))
			return true
		}
		_, err := pulls(t, fetch.Config{Credentials: as(credential.Credential{User: "me", Password: wrongPassword}), ResolveTimeout: 5 * time.Second}, reg.Host+"/a/b:1")
		if err == nil {
			t.Errorf("%d: no error", code)
		}
		wantHidden(t, err)
	}
}

// Who is redirected to does not get the registry's credentials, however it asks.
func TestCredentialsStayWithTheirHost(t *testing.T) {
	reg := registrytest.StartSecure(t, registrytest.Security{Basic: true})
	layer := registrytest.Layer(t, false, registrytest.Tar(t, "a", "1"))
	reg.Push(t, "a/b:1", registrytest.Image(t, registrytest.Spec{Platform: amd64, Layers: []v1.Layer{layer}}))
	got := ""
	thief := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		got += q.Header.Get("Authorization")
		w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	defer thief.Close()
	p := reg.Proxy(t, func(w http.ResponseWriter, q *http.Request, next http.Handler) {
		if strings.HasSuffix(q.URL.Path, digestOf(t, layer)) {
			http.Redirect(w, q, strings.Replace(thief.URL, "127.0.0.1", "localhost", 1)+"/x", http.StatusTemporaryRedirect)
			return
		}
		next.ServeHTTP(w, q)
	})
	_, err := pulls(t, fetch.Config{Credentials: as(right())}, p.Host+"/a/b:1")
	if !errors.Is(err, errdefs.ErrDenied) || got != "" {
		t.Errorf("error %v; the other host got %q", err, got)
	}
}

// A registry behind TLS may not have its password sent to a token server in the
// clear.
func TestRealmInTheClear(t *testing.T) {
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", `Bearer realm="http://tokens.invalid/token",service="x"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	defer server.Close()
	_, err := pulls(t, fetch.Config{Credentials: as(right())}, strings.TrimPrefix(server.URL, "https://")+"/a/b:1")
	if !errors.Is(err, errdefs.ErrDenied) || !strings.Contains(fmt.Sprint(err), "without encryption") {
		t.Errorf("error %v", err)
	}
}

// The error of one download's token is not that of the next.
func TestTokenServerRecovers(t *testing.T) {
	tokens := registrytest.NewTokens(t)
	reg := registrytest.StartSecure(t, registrytest.Security{Tokens: tokens})
	name := reg.Push(t, "a/b:1", registrytest.Image(t, registrytest.Spec{Platform: amd64}))
	var failures atomic.Int64
	tokens.Around = func(w http.ResponseWriter, _ *http.Request) bool {
		if failures.Add(1) > 2 {
			return false
		}
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	}
	if _, err := pulls(t, fetch.Config{Credentials: as(right())}, name); err != nil || failures.Load() != 3 {
		t.Errorf("after %d failures %v", failures.Load(), err)
	}
}

// A token server is a registry's, and held to the same: what it answers is bounded as
// it is on the wire.
func TestTokenServerCompresses(t *testing.T) {
	tokens := registrytest.NewTokens(t)
	reg := registrytest.StartSecure(t, registrytest.Security{Tokens: tokens})
	name := reg.Push(t, "a/b:1", registrytest.Image(t, registrytest.Spec{Platform: amd64}))
	tokens.Around = func(w http.ResponseWriter, q *http.Request) bool {
		if got := q.Header.Get("Accept-Encoding"); got != "identity" {
			t.Errorf("%s %s offers to take %q", q.Method, q.URL, got)
		}
		w.Header().Set("Content-Encoding", "gzip")
		return false
	}
	_, err := pulls(t, fetch.Config{Credentials: as(right())}, name)
	if !errors.Is(err, errdefs.ErrUnverified) || !strings.Contains(fmt.Sprint(err), tokens.URL+`: it sent Content-Encoding "gzip"`) {
		t.Errorf("error %v", err)
	}
}

func TestTLS(t *testing.T) {
	authority, other := registrytest.NewAuthority(t), registrytest.NewAuthority(t)
	reg := registrytest.StartSecure(t, registrytest.Security{TLS: authority, ClientCerts: true, Basic: true})
	reg.Push(t, "a/b:1", registrytest.Image(t, registrytest.Spec{Platform: amd64}))
	dir := t.TempDir()
	ca := authority.File(t, dir)
	cert, key := authority.Issue(t, dir)
	strangerCA := other.File(t, t.TempDir())
	strangerCert, strangerKey := other.Issue(t, t.TempDir())
	for _, tc := range []struct {
		name, file string
		want       error
	}{
		{name: "CA and client certificate", file: fmt.Sprintf("ca = %q\nclient = [[%q, %q]]", ca, cert, key)},
		{name: "no check, client certificate", file: fmt.Sprintf("skip_verify = true\nclient = [[%q, %q]]", cert, key)},
		{name: "no CA", file: fmt.Sprintf("skip_verify = false\nclient = [[%q, %q]]", cert, key), want: errdefs.ErrUnavailable},
		{name: "another CA", file: fmt.Sprintf("skip_verify = false\nca = %q\nclient = [[%q, %q]]", strangerCA, cert, key), want: errdefs.ErrUnavailable},
		{name: "no client certificate", file: fmt.Sprintf("ca = %q", ca), want: errdefs.ErrUnavailable},
		{name: "another's client certificate", file: fmt.Sprintf("ca = %q\nclient = [[%q, %q]]", ca, strangerCert, strangerKey), want: errdefs.ErrUnavailable},
		{name: "no such file", file: `ca = "nowhere.pem"`, want: errdefs.ErrInvalid},
	} {
		t.Run(tc.name, func(t *testing.T) {
			root := hostsToml(t, "example.test", fmt.Sprintf("server = \"https://%s\"\n[host.\"https://%s\"]\n", reg.Host, reg.Host)+tc.file)
			// The last one asked is the server, which has no certificates here.
			_, err := pulls(t, fetch.Config{HostsDir: root, Credentials: as(right()), ResolveTimeout: 3 * time.Second}, "example.test/a/b:1")
			if !errors.Is(err, tc.want) {
				t.Errorf("error %v, want %v", err, tc.want)
			}
		})
	}
}

// hostsToml makes a directory with one hosts.toml.
func hostsToml(t *testing.T, registry, text string) string {
	t.Helper()
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, registry), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, registry, "hosts.toml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return root
}
