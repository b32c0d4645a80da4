// Package credential finds what to say to a registry: what a request brought, or
// what docker's configuration file and its credential helpers know. It knows no
// registry; package fetch asks it when one wants to be told.
//
// Secrets are kept in memory alone. A Credential prints as where it came from,
// whatever prints it, and no error of this package has a part of one.
package credential

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"strings"
)

// Credential is what one registry is told. The zero value is anonymous. Of
// several ways the first in this order is used: registry token, password,
// identity token.
type Credential struct {
	User     string
	Password string
	// IdentityToken is exchanged at the registry's token server for a token.
	IdentityToken string
	// RegistryToken is sent to the registry as it is.
	RegistryToken string
	// Origin says to people where this came from: a file and its key, a helper, or
	// the request. It is empty when there is nothing.
	Origin string
}

// Source returns what to say to a registry host ("registry-1.docker.io",
// "localhost:5000"). It is asked again when the registry refuses what it was
// told before, so that what a helper renews is renewed in mid-pull.
type Source func(ctx context.Context, host string) (Credential, error)

// Anonymous tells that there is nothing to say.
func (c Credential) Anonymous() bool {
	return c.User == "" && c.Password == "" && c.IdentityToken == "" && c.RegistryToken == ""
}

// Secrets are the parts that nobody may see.
func (c Credential) Secrets() []string {
	var s []string
	for _, part := range []string{c.Password, c.IdentityToken, c.RegistryToken} {
		if part != "" {
			s = append(s, part)
		}
	}
	return s
}

// String says where the credential came from.
func (c Credential) String() string {
	switch {
	case c.Anonymous():
		return "none"
	case c.Origin == "":
		return "given"
	}
	return c.Origin
}

// Format is part of fmt.Formatter: no verb shows more than String.
func (c Credential) Format(w fmt.State, _ rune) { _, _ = io.WriteString(w, c.String()) }

// MarshalText keeps encoders of JSON and YAML from the fields.
func (c Credential) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// For returns a source that gives a credential to the host of an address, which
// may be a URL, and to no other. An empty address is any host.
func For(address string, c Credential) Source {
	return func(_ context.Context, host string) (Credential, error) {
		if address != "" && canonical(address) != canonical(host) {
			return Credential{}, nil
		}
		return c, nil
	}
}

// canonical is the host of an address that may be a URL. Docker Hub has several
// names.
func canonical(address string) string {
	if u, err := url.Parse(address); err == nil && u.Host != "" {
		address = u.Host
	}
	address, _, _ = strings.Cut(address, "/")
	address = strings.ToLower(address)
	switch address {
	case "index.docker.io", "registry-1.docker.io", "registry.docker.io":
		return "docker.io"
	}
	return address
}
