package registrytest

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	tokenService = "registry.test"
	tokenIssuer  = "tokens.test"
	// leeway is how long docker-registry takes a token after its end.
	leeway = 60 * time.Second
)

// Refresh is the identity token that Tokens knows.
const Refresh = "identity-token-of-me"

// Tokens is a token server. It grants all that it is asked for to whoever knows
// User and Password, or Refresh.
type Tokens struct {
	URL string
	// Life is how long a token is good; zero is an hour.
	Life time.Duration
	// Around may answer in place of the server; it reports whether it did.
	Around func(w http.ResponseWriter, q *http.Request) bool

	authority *Authority
	mu        sync.Mutex // guards issued
	issued    int
}

// NewTokens starts a token server until the test ends.
func NewTokens(t testing.TB) *Tokens {
	t.Helper()
	s := &Tokens{authority: NewAuthority(t)}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	s.URL = server.URL + "/token"
	return s
}

// Issued counts the tokens.
func (s *Tokens) Issued() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.issued
}

// ServeHTTP is part of http.Handler: GET with basic credentials, POST as OAuth.
func (s *Tokens) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	if s.Around != nil && s.Around(w, q) {
		return
	}
	if err := q.ParseForm(); err != nil {
		http.Error(w, "form", http.StatusBadRequest)
		return
	}
	user, password, _ := q.BasicAuth()
	if q.Method == http.MethodPost {
		user, password = q.Form.Get("username"), q.Form.Get("password")
	}
	if q.Form.Get("grant_type") == "refresh_token" && q.Form.Get("refresh_token") == Refresh {
		user, password = User, Password
	}
	if user != User || password != Password {
		http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"wrong"}]}`, http.StatusUnauthorized)
		return
	}
	token, err := s.Token(q.Form["scope"]...)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"token": token, "access_token": token}) // a client that went away
}

// Token makes a token for scopes such as "repository:a/b:pull".
func (s *Tokens) Token(scopes ...string) (string, error) {
	s.mu.Lock()
	s.issued++
	id, life := s.issued, s.Life
	s.mu.Unlock()
	if life == 0 {
		life = time.Hour
	}
	var access []any
	for _, scope := range strings.Fields(strings.Join(scopes, " ")) {
		parts := strings.Split(scope, ":")
		if len(parts) < 3 {
			return "", fmt.Errorf("scope %q", scope)
		}
		access = append(access, map[string]any{"type": parts[0], "name": strings.Join(parts[1:len(parts)-1], ":"), "actions": strings.Split(parts[len(parts)-1], ",")})
	}
	now := time.Now()
	header := map[string]any{"typ": "JWT", "alg": "ES256", "x5c": []string{base64.StdEncoding.EncodeToString(s.authority.der)}}
	claims := map[string]any{
		"iss": tokenIssuer, "sub": User, "aud": tokenService, "jti": fmt.Sprint(id), "access": access,
		"iat": now.Add(-time.Hour).Unix(), "nbf": now.Add(-time.Hour).Unix(), "exp": now.Add(life - leeway).Unix(),
	}
	return s.sign(header, claims)
}

func (s *Tokens) sign(header, claims map[string]any) (string, error) {
	var parts []string
	for _, m := range []map[string]any{header, claims} {
		raw, err := json.Marshal(m)
		if err != nil {
			return "", err
		}
		parts = append(parts, base64.RawURLEncoding.EncodeToString(raw))
	}
	text := strings.Join(parts, ".")
	sum := sha256.Sum256([]byte(text))
	a, b, err := ecdsa.Sign(rand.Reader, s.authority.key, sum[:])
	if err != nil {
		return "", err
	}
	signature := make([]byte, 64)
	a.FillBytes(signature[:32])
	b.FillBytes(signature[32:])
	return text + "." + base64.RawURLEncoding.EncodeToString(signature), nil
}
