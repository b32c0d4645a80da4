package fetch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"

	"github.com/gantry-cri/gantry/stage0/credential"
	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/imageref"
)

// FuzzHosts holds that a hosts.toml is refused as invalid or gives endpoints that
// are URLs and may serve the reference, each with the rule that made it.
func FuzzHosts(f *testing.F) {
	for _, s := range []string{
		"", "server = \"https://up.test\"\n",
		"server = \"https://up.test/v2\"\n[host.\"http://m.test:5000\"]\ncapabilities = [\"pull\"]\nskip_verify = true\noverride_path = true\n[host.\"http://m.test:5000\".header]\nx = [\"y\"]\n",
		"[host.\"https://m.test\"]\nca = \"ca.crt\"\nclient = [[\"c.crt\",\"c.key\"]]\ndial_timeout = \"3s\"\n",
		"capabilities = [\"resolve\"]\n", "[host.\"\"]\n", "[host.\"0\"]\n[host.\"\"]", "server = 1", "[host]\n\"a\" = 1",
	} {
		f.Add([]byte(s))
	}
	root := f.TempDir()
	dir := filepath.Join(root, "reg.test")
	if err := os.Mkdir(dir, 0o700); err != nil {
		f.Fatal(err)
	}
	ref, err := imageref.Parse("reg.test/a:1")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if err := os.WriteFile(filepath.Join(dir, hostsFile), text, 0o600); err != nil {
			t.Fatal(err)
		}
		m, err := NewRegistry(Config{HostsDir: root}).open(ref, nil)
		if err != nil {
			if !errors.Is(err, errdefs.ErrInvalid) {
				t.Fatalf("%v is of no class", err)
			}
			return
		}
		for _, e := range m.found {
			u, err := url.Parse(e.URL)
			if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") || u.User != nil {
				t.Errorf("endpoint %q: %v", e.URL, err)
			}
			if e.Rule == "" || !e.host.Capabilities.Has(docker.HostCapabilityPull) {
				t.Errorf("endpoint %+v", e)
			}
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
}

// tokenServer gives every request one answer, and holds who gets credentials.
type tokenServer struct {
	t      *testing.T
	answer []byte
	asked  int
}

// RoundTrip is part of http.RoundTripper.
func (s *tokenServer) RoundTrip(req *http.Request) (*http.Response, error) {
	s.asked++
	said := req.Header.Get("Authorization") + req.URL.String()
	if req.Body != nil {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return nil, err
		}
		said += string(body)
	}
	// Basic is base64 of "me:" and the password.
	if strings.Contains(said, fuzzPassword) || strings.Contains(said, "bWU6") {
		if req.URL.Scheme != "https" && !loopback(req.URL.Hostname()) {
			s.t.Errorf("the password travels in the clear to %s", req.URL)
		}
	}
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(s.answer)), Request: req}, nil
}

const fuzzPassword = "hunter2-hunter2"

// FuzzChallenge holds that no challenge and no answer of a token server makes the
// authorizer panic, ask without end, send a password in the clear that was to be
// encrypted, or quote it.
func FuzzChallenge(f *testing.F) {
	for _, s := range []string{
		`Basic realm="x"`, `Bearer realm="https://auth.test/token",service="s",scope="repository:a:pull"`,
		`Bearer realm="http://auth.test/token"`, `Bearer realm="http://127.0.0.1/token"`, `Bearer`, `Bearer realm="`,
		`Digest a=b`, `Bearer realm="https://a.test/\"b", Basic realm=x`, `,,Bearer=,`, `Bearer error="insufficient_scope"`,
		`Bearer realm="HTTP://auth.test"`, `Bearer REALM="http://auth.test",realm="https://b.test"`,
	} {
		f.Add(s, []byte(`{"token":"t","access_token":"u","expires_in":60}`), true)
		f.Add(s, []byte(`{"token":"`+fuzzPassword+`"`), false)
	}
	f.Fuzz(func(t *testing.T, challenge string, answer []byte, identity bool) {
		server := &tokenServer{t: t, answer: answer}
		c := credential.Credential{User: "me", Password: fuzzPassword}
		if identity {
			c = credential.Credential{IdentityToken: fuzzPassword}
		}
		var hidden secrets
		host := docker.RegistryHost{Host: "reg.test", Scheme: "https", Client: &http.Client{Transport: server}}
		a := newAuthorizer(host, credential.For("", c), &hidden)
		req, err := http.NewRequestWithContext(docker.WithScope(discardLogs(t.Context()), "repository:a:pull"), http.MethodGet, "https://reg.test/v2/a/manifests/1", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		err = answerChallenge(req.Context(), a, req, challenge)
		if err != nil && strings.Contains(hidden.hide(err.Error()), fuzzPassword) {
			t.Errorf("the password is in %v", err)
		}
		if server.asked > 3 {
			t.Errorf("the token server was asked %d times", server.asked)
		}
	})
}

// answerChallenge does what a client does with a 401.
func answerChallenge(ctx context.Context, a *authorizer, req *http.Request, challenge string) error {
	refusal := &http.Response{StatusCode: http.StatusUnauthorized, Header: http.Header{"Www-Authenticate": {challenge}}, Request: req}
	if err := a.AddResponses(ctx, []*http.Response{refusal}); err != nil {
		return err
	}
	return a.Authorize(ctx, req)
}

// FuzzHeaders holds that what a registry says in headers moves no part of a blob
// to another place and makes nobody wait a negative time.
func FuzzHeaders(f *testing.F) {
	for _, s := range []string{"5", "-1", "99999999999", "Fri, 31 Dec 1999 23:59:59 GMT", "bytes 5-9/10", "bytes 5-", "bytes 50-99/100", "bytes 5"} {
		f.Add(s, uint16(5))
	}
	f.Fuzz(func(t *testing.T, said string, from uint16) {
		resp := &http.Response{StatusCode: http.StatusPartialContent, Header: http.Header{"Retry-After": {said}, "Content-Range": {said}}}
		if d := retryAfter(resp, time.Unix(0, 0)); d < 0 {
			t.Errorf("wait %v", d)
		}
		req := &http.Request{Header: http.Header{"Range": {fmt.Sprintf("bytes=%d-", from)}}}
		if checkRange(req, resp) == nil && !strings.HasPrefix(said, fmt.Sprintf("bytes %d-", from)) {
			t.Errorf("%q was taken for what begins at %d", said, from)
		}
	})
}
