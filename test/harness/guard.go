package harness

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// User and Password are who may pull where a registry asks, and Refresh is the same
// user's identity token.
const (
	User     = "me"
	Password = "hunter2-right"
	Refresh  = "hunter2-identity"
)

// passwordFile has Password, hashed by bcrypt with the least cost.
const passwordFile = User + ":$2b$05$CnJVY0CZZh/u3xvuqQsSOuAiUeS4W56O5Fwho.y9J4rz4QrGDz.3O\n"

// Basic starts a second docker-registry on the same data, which wants User and
// Password, and returns its host:port.
func (r *Registry) Basic(tb testing.TB) string {
	tb.Helper()
	dir, addr := Dir(tb), FreeAddr(tb)
	passwords, config := filepath.Join(dir, "htpasswd"), filepath.Join(dir, "config.yaml")
	text := fmt.Sprintf(registryConfig, r.Data, addr) + fmt.Sprintf("auth: {htpasswd: {realm: test, path: %s}}\n", passwords)
	for file, text := range map[string]string{passwords: passwordFile, config: text} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			tb.Fatalf("write configuration of registry: %v", err)
		}
	}
	p := StartProcess(tb, dir, "registry", []string{"docker-registry", "serve", config})
	tb.Cleanup(func() { p.Finish(tb) })
	p.WaitFor(tb, 20*time.Second, func() error {
		resp, err := http.Get("http://" + addr + "/v2/")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusUnauthorized {
			return fmt.Errorf("it answers %s", resp.Status)
		}
		return nil
	})
	return addr
}

// Tokens stands before the registry and wants tokens of its own server, which gives
// one to whoever knows User and Password or Refresh. A token is good for one
// repository, and Token makes one.
type Tokens struct {
	Addr   string // host:port
	Issued atomic.Int64
}

// Tokens starts one until the test ends.
func (r *Registry) Tokens(tb testing.TB) *Tokens {
	tb.Helper()
	s := &Tokens{}
	next := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: r.Addr})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if q.URL.Path == "/token" {
			s.issue(w, q)
			return
		}
		repository := strings.TrimPrefix(q.URL.Path, "/v2/")
		for _, part := range []string{"/manifests/", "/blobs/"} {
			repository, _, _ = strings.Cut(repository, part)
		}
		if q.Header.Get("Authorization") != "Bearer "+s.Token(repository) {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="test",scope="repository:%s:pull"`, s.Addr, repository))
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, q)
	}))
	tb.Cleanup(server.Close)
	s.Addr = strings.TrimPrefix(server.URL, "http://")
	return s
}

// Token is what opens a repository.
func (s *Tokens) Token(repository string) string { return "hunter2-token-for-" + repository }

// issue answers as a token server: GET with basic credentials, POST as OAuth.
func (s *Tokens) issue(w http.ResponseWriter, q *http.Request) {
	user, password, _ := q.BasicAuth()
	if q.Method == http.MethodPost {
		user, password = q.FormValue("username"), q.FormValue("password")
	}
	refreshed := q.FormValue("grant_type") == "refresh_token" && q.FormValue("refresh_token") == Refresh
	scope := strings.Split(q.FormValue("scope"), ":")
	if !refreshed && (user != User || password != Password) || len(scope) != 3 {
		http.Error(w, "{}", http.StatusUnauthorized)
		return
	}
	s.Issued.Add(1)
	token := s.Token(scope[1])
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"token": token, "access_token": token, "expires_in": 60}) // a client that went away
}
