package fetch

import (
	"context"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/auth"

	"github.com/gantry-cri/gantry/stage0/credential"
	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// maxToken is the largest answer of a token server that is read, bytes.
const maxToken = 1 << 20

// authorizer answers the challenges of one endpoint, with containerd's client of
// the token protocol. What it adds: credentials go to the endpoint's own host and
// never to one that it redirects to; what was refused is asked for anew once, and
// not sent a second time; registry tokens; a failed request for a token fails one
// download and not all that come after it.
type authorizer struct {
	host   string
	creds  credential.Source // nil is anonymous
	fresh  func(credential.Credential) docker.Authorizer
	secret *secrets

	// mu guards what follows. It is held while a helper is asked: all others of
	// this pull wait for its answer.
	mu    sync.Mutex
	asked bool // a challenge came
	used  credential.Credential
	inner docker.Authorizer // nil before the first challenge
	last  string            // the header that inner gave last
}

func newAuthorizer(h docker.RegistryHost, creds credential.Source, hidden *secrets) *authorizer {
	client := *h.Client
	client.Transport = limitedTransport{client.Transport}
	header := h.Header.Clone()
	header.Del("Authorization") // the endpoint's, not its token server's
	return &authorizer{
		host: h.Host, creds: creds, secret: hidden,
		fresh: func(c credential.Credential) docker.Authorizer {
			user, secret := c.User, c.Password
			if secret == "" && c.IdentityToken != "" {
				user, secret = "", c.IdentityToken
			}
			return docker.NewDockerAuthorizer(docker.WithAuthClient(&client), docker.WithAuthHeader(header),
				docker.WithAuthCreds(func(string) (string, string, error) { return user, secret, nil }))
		},
	}
}

// origin says to people what the endpoint was told.
func (a *authorizer) origin() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.asked {
		return "not wanted"
	}
	return a.used.String()
}

// Authorize is part of docker.Authorizer.
func (a *authorizer) Authorize(ctx context.Context, req *http.Request) error {
	a.mu.Lock()
	inner := a.inner
	a.mu.Unlock()
	if inner == nil || req.URL.Host != a.host {
		return nil
	}
	err := inner.Authorize(ctx, req)
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil {
		// containerd's would answer with this error for ever, though it may be
		// no more than the end of the context of whoever asked first.
		if a.inner == inner {
			a.inner = a.fresh(a.used)
		}
		return err
	}
	a.last = req.Header.Get("Authorization")
	a.secret.add(a.last)
	return nil
}

// AddResponses is part of docker.Authorizer.
func (a *authorizer) AddResponses(ctx context.Context, responses []*http.Response) error {
	last := responses[len(responses)-1]
	if last.Request.URL.Host != a.host {
		return fmt.Errorf("%s wants credentials, and only %s may have some: %w", last.Request.URL.Host, a.host, docker.ErrInvalidAuthorization)
	}
	sent := last.Request.Header.Get("Authorization")
	if sent != "" && refusals(responses) > 1 {
		return fmt.Errorf("it refuses the credentials (%s): %w", a.origin(), docker.ErrInvalidAuthorization)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if sent != "" && sent != a.last {
		return nil // somebody else has new ones already
	}
	challenges := auth.ParseAuthHeader(last.Header)
	if err := a.renew(ctx, last.Request.URL, challenges, sent != ""); err != nil {
		return err
	}
	return a.inner.AddResponses(ctx, []*http.Response{last})
}

// renew asks for credentials. refused tells that the registry has seen some.
func (a *authorizer) renew(ctx context.Context, at *url.URL, challenges []auth.Challenge, refused bool) error { //nolint:revive // a state, not a mode
	c := credential.Credential{}
	if a.creds != nil {
		var err error
		if c, err = a.creds(ctx, a.host); err != nil {
			return err
		}
	}
	a.secret.add(c.Secrets()...)
	bearer := slices.ContainsFunc(challenges, func(c auth.Challenge) bool { return c.Scheme == auth.BearerAuth })
	// A password that was refused once is wrong; a token may have expired.
	if refused && c == a.used && (!bearer || c.RegistryToken != "") {
		return fmt.Errorf("it refuses the credentials (%s): %w", c, docker.ErrInvalidAuthorization)
	}
	if !c.Anonymous() {
		if err := checkRealms(at, challenges); err != nil {
			return err
		}
	}
	a.asked, a.used = true, c
	if c.RegistryToken != "" {
		a.inner = registryToken(c.RegistryToken)
		return nil
	}
	a.inner = a.fresh(c)
	return nil
}

// refusals counts the answers to requests that carried credentials.
func refusals(responses []*http.Response) int {
	n := 0
	for _, r := range responses {
		if r.StatusCode == http.StatusUnauthorized && r.Request.Header.Get("Authorization") != "" {
			n++
		}
	}
	return n
}

// checkRealms keeps a password that was to travel encrypted from a token server
// that takes it in the clear.
func checkRealms(at *url.URL, challenges []auth.Challenge) error {
	for _, c := range challenges {
		if c.Scheme != auth.BearerAuth {
			continue
		}
		realm, err := url.Parse(c.Parameters["realm"])
		if err != nil || realm.Host == "" || (realm.Scheme != "https" && realm.Scheme != "http") {
			return fmt.Errorf("its token server is no URL: %w", errdefs.ErrInvalid)
		}
		if at.Scheme == "https" && realm.Scheme != "https" && !loopback(realm.Hostname()) {
			return fmt.Errorf("its token server %s wants the credentials without encryption: %w", clean(realm), errdefs.ErrDenied)
		}
	}
	return nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// registryToken is sent as it is.
type registryToken string

// Authorize is part of docker.Authorizer.
func (t registryToken) Authorize(_ context.Context, req *http.Request) error {
	req.Header.Set("Authorization", "Bearer "+string(t))
	return nil
}

// AddResponses is part of docker.Authorizer; the challenge was looked at before.
func (registryToken) AddResponses(context.Context, []*http.Response) error { return nil }

// secrets are what must not get into an error, whoever quotes it: a token server
// may answer with what it was told.
type secrets struct {
	mu  sync.Mutex // guards all
	all []string
}

// minSecret is the shortest text that is looked for; a shorter one would blot out
// half of a message and protect nothing.
const minSecret = 4

func (s *secrets) add(parts ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range parts {
		scheme, value, found := strings.Cut(p, " ")
		if found && (scheme == "Bearer" || scheme == "Basic") {
			p = value
			if raw, err := base64.StdEncoding.DecodeString(value); err == nil && scheme == "Basic" {
				_, password, _ := strings.Cut(string(raw), ":")
				parts = append(parts, password)
			}
		}
		if len(p) >= minSecret && !slices.Contains(s.all, p) {
			s.all = append(s.all, p)
		}
	}
}

func (s *secrets) hide(text string) string {
	if s == nil {
		return text
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.all {
		text = strings.ReplaceAll(text, p, "[hidden]")
	}
	return text
}

// limitedTransport ends answers that are too long to be a token.
type limitedTransport struct{ next http.RoundTripper }

// RoundTrip is part of http.RoundTripper.
func (t limitedTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := t.next.RoundTrip(req)
	if err == nil {
		resp.Body = &limitedBody{ReadCloser: resp.Body, left: maxToken, err: errLongToken}
	}
	return resp, err
}

var errLongToken = fmt.Errorf("token server answers more than %d bytes: %w", maxToken, errdefs.ErrInvalid)
