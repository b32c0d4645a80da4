package cri

import (
	"encoding/base64"
	"errors"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/stage0/credential"
	"github.com/gantry-cri/gantry/stage0/errdefs"
)

func TestCredentials(t *testing.T) {
	encoded := base64.StdEncoding.EncodeToString([]byte("me:pass:word\x00"))
	for _, tc := range []struct {
		name string
		auth *runtimeapi.AuthConfig
		host string
		want credential.Credential
		none bool // the source's own are asked
		err  error
	}{
		{name: "no auth", none: true},
		{name: "empty auth", auth: &runtimeapi.AuthConfig{ServerAddress: "a.test"}, none: true},
		{name: "user and password", auth: &runtimeapi.AuthConfig{Username: "me", Password: "p"}, want: credential.Credential{User: "me", Password: "p"}},
		{name: "auth", auth: &runtimeapi.AuthConfig{Auth: encoded}, want: credential.Credential{User: "me", Password: "pass:word"}},
		{name: "auth is no base64", auth: &runtimeapi.AuthConfig{Auth: "%"}, err: errdefs.ErrInvalid},
		{name: "auth has no colon", auth: &runtimeapi.AuthConfig{Auth: "bWU="}, err: errdefs.ErrInvalid},
		{name: "identity token", auth: &runtimeapi.AuthConfig{IdentityToken: "i"}, want: credential.Credential{IdentityToken: "i"}},
		{name: "registry token", auth: &runtimeapi.AuthConfig{RegistryToken: "r"}, want: credential.Credential{RegistryToken: "r"}},
		{name: "of this server", auth: &runtimeapi.AuthConfig{Username: "me", Password: "p", ServerAddress: "https://a.test/v2/"}, want: credential.Credential{User: "me", Password: "p"}},
		{name: "of another server", auth: &runtimeapi.AuthConfig{Username: "me", Password: "p", ServerAddress: "b.test"}},
		{name: "of Docker Hub", host: "registry-1.docker.io", auth: &runtimeapi.AuthConfig{Username: "me", Password: "p", ServerAddress: "https://index.docker.io/v1/"}, want: credential.Credential{User: "me", Password: "p"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			source, err := credentials(tc.auth)
			if !errors.Is(err, tc.err) {
				t.Fatalf("error %v, want %v", err, tc.err)
			}
			if (source == nil) != (tc.none || tc.err != nil) {
				t.Fatalf("no source: %t", source == nil)
			}
			if source == nil {
				return
			}
			if tc.host == "" {
				tc.host = "a.test"
			}
			got, err := source(t.Context(), tc.host)
			if err != nil {
				t.Fatal(err)
			}
			got.Origin = ""
			if got != tc.want {
				t.Errorf("user %q, password %q, tokens %q %q", got.User, got.Password, got.IdentityToken, got.RegistryToken)
			}
		})
	}
}
