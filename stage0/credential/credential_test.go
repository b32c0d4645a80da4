package credential_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gantry-cri/gantry/stage0/credential"
	"github.com/gantry-cri/gantry/stage0/errdefs"
)

const secret = "hunter2secret"

// install puts a helper into PATH that answers with a script.
func install(t *testing.T, name, script string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-"+name), []byte("#!/bin/sh\n"+script), 0o755); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

func write(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestFile(t *testing.T) {
	answers := `read key
case $key in
  helped.test|https://index.docker.io/v1/) echo '{"Username":"helper","Secret":"'$key'"}' ;;
  token.test) echo '{"Username":"<token>","Secret":"identity"}' ;;
  broken.test) echo ` + secret + `; echo ` + secret + ` >&2; exit 3 ;;
  chatty.test) echo ` + secret + ` ;;
  *) echo credentials not found in native keychain; exit 1 ;;
esac
`
	auths := `"auths":{"plain.test":{"auth":"bWU6cGFzczp3b3Jk"},"split.test":{"username":"u","password":"p"},
		"https://old.test/v1/":{"username":"old","password":"p"},"quay.test":{"username":"all","password":"p"},
		"quay.test/team/app":{"username":"app","password":"p"},"https://index.docker.io/v1/":{"username":"hub","password":"p"},
		"id.test":{"identitytoken":"i"},"reg.test":{"registrytoken":"r"},"empty.test":{}}`
	for _, tc := range []struct {
		name, file, host, repository string
		want                         credential.Credential
		err                          error
		text                         string
	}{
		{name: "base64, colon in the password", file: "{" + auths + "}", host: "plain.test", want: credential.Credential{User: "me", Password: "pass:word"}, text: `auths["plain.test"]`},
		{name: "in two fields", file: "{" + auths + "}", host: "split.test", want: credential.Credential{User: "u", Password: "p"}},
		{name: "old spelling", file: "{" + auths + "}", host: "old.test", want: credential.Credential{User: "old", Password: "p"}, text: "https://old.test/v1/"},
		{name: "Docker Hub", file: "{" + auths + "}", host: "registry-1.docker.io", repository: "docker.io/library/a", want: credential.Credential{User: "hub", Password: "p"}},
		{name: "of the repository", file: "{" + auths + "}", host: "quay.test", repository: "quay.test/team/app/part", want: credential.Credential{User: "app", Password: "p"}},
		{name: "of another repository", file: "{" + auths + "}", host: "quay.test", repository: "quay.test/team/application", want: credential.Credential{User: "all", Password: "p"}},
		{name: "identity token", file: "{" + auths + "}", host: "id.test", want: credential.Credential{IdentityToken: "i"}},
		{name: "registry token", file: "{" + auths + "}", host: "reg.test", want: credential.Credential{RegistryToken: "r"}},
		{name: "empty entry", file: "{" + auths + "}", host: "empty.test"},
		{name: "no entry", file: "{" + auths + "}", host: "other.test"},
		{name: "helper of a host", file: `{"credHelpers":{"helped.test":"h"}}`, host: "helped.test", want: credential.Credential{User: "helper", Password: "helped.test"}, text: "docker-credential-h"},
		{name: "helper hands out a token", file: `{"credHelpers":{"token.test":"h"}}`, host: "token.test", want: credential.Credential{IdentityToken: "identity"}},
		{name: "store", file: `{"credsStore":"h"}`, host: "registry-1.docker.io", want: credential.Credential{User: "helper", Password: "https://index.docker.io/v1/"}, text: "credsStore"},
		{name: "store knows nothing, the file does", file: `{"credsStore":"h",` + auths + `}`, host: "plain.test", want: credential.Credential{User: "me", Password: "pass:word"}},
		{name: "helper fails", file: `{"credHelpers":{"broken.test":"h"}}`, host: "broken.test", err: errdefs.ErrUnavailable, text: "exit status 3"},
		{name: "helper speaks no JSON", file: `{"credHelpers":{"chatty.test":"h"}}`, host: "chatty.test", err: errdefs.ErrInvalid, text: "protocol"},
		{name: "no such helper", file: `{"credHelpers":{"a.test":"nowhere"}}`, host: "a.test", err: errdefs.ErrUnavailable, text: "docker-credential-nowhere"},
		{name: "helper is a path", file: `{"credHelpers":{"a.test":"../../bin/sh"}}`, host: "a.test", err: errdefs.ErrInvalid},
		{name: "no JSON", file: `{"auths":{"a.test":{"password":"` + secret + `"`, host: "a.test", err: errdefs.ErrInvalid, text: "config.json"},
		{name: "no base64", file: `{"auths":{"a.test":{"auth":"` + secret + `!"}}}`, host: "a.test", err: errdefs.ErrInvalid},
	} {
		t.Run(tc.name, func(t *testing.T) {
			install(t, "h", answers)
			if tc.repository == "" {
				tc.repository = tc.host + "/a"
			}
			got, err := credential.NewFile(write(t, tc.file)).For(tc.repository)(t.Context(), tc.host)
			if !errors.Is(err, tc.err) || (err != nil && strings.Contains(err.Error(), secret)) {
				t.Fatalf("error %v, want %v without the secret", err, tc.err)
			}
			if said := fmt.Sprint(got.Origin, err); !strings.Contains(said, tc.text) {
				t.Errorf("it says %s, want %q", said, tc.text)
			}
			if got.Anonymous() != (got.Origin == "") {
				t.Errorf("origin %q of what is anonymous: %t", got.Origin, got.Anonymous())
			}
			got.Origin = ""
			if got != tc.want {
				t.Errorf("user %q, password %q, tokens %q %q", got.User, got.Password, got.IdentityToken, got.RegistryToken)
			}
		})
	}
	if _, err := credential.NewFile("/nonexistent/file").For("a.test/b")(t.Context(), "a.test"); !errors.Is(err, errdefs.ErrInvalid) {
		t.Errorf("a file that is not there: %v", err)
	}
}

// Whatever prints a credential prints where it came from.
func TestHidden(t *testing.T) {
	c := credential.Credential{User: "me", Password: secret, IdentityToken: secret, RegistryToken: secret, Origin: "somewhere"}
	encoded, err := json.Marshal(map[string]any{"a": c, "b": &c})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{fmt.Sprint(c), fmt.Sprintf("%v %+v %#v %s %q %x %d", c, c, c, c, c, c, c), fmt.Sprintf("%+v", &c), fmt.Sprintf("%+v", []any{c}), string(encoded)} {
		if strings.Contains(s, secret) || strings.Contains(s, fmt.Sprintf("%x", secret)) || !strings.Contains(s, "somewhere") {
			t.Errorf("it prints %s", s)
		}
	}
}

func TestFor(t *testing.T) {
	c := credential.Credential{User: "me", Password: "p"}
	for _, tc := range []struct {
		address, host string
		want          bool
	}{
		{"", "any.test", true},
		{"https://index.docker.io/v1/", "registry-1.docker.io", true},
		{"docker.io", "registry-1.docker.io", true},
		{"quay.io", "registry-1.docker.io", false},
		{"https://Quay.io", "quay.io", true},
		{"localhost:5000", "localhost:5001", false},
		{"quay.io/team", "quay.io", true},
	} {
		got, err := credential.For(tc.address, c)(t.Context(), tc.host)
		if err != nil || got.Anonymous() == tc.want {
			t.Errorf("%q for %q: %v, %v", tc.address, tc.host, got, err)
		}
	}
}

func TestDefaultFile(t *testing.T) {
	dir, home := t.TempDir(), t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("DOCKER_CONFIG", dir)
	if f, err := credential.DefaultFile(); f != "" || err != nil {
		t.Errorf("without a file: %q, %v", f, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if f, err := credential.DefaultFile(); f != filepath.Join(dir, "config.json") || err != nil {
		t.Errorf("of $DOCKER_CONFIG: %q, %v", f, err)
	}
}
