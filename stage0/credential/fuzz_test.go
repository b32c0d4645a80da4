package credential_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gantry-cri/gantry/stage0/credential"
	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// FuzzFile holds that docker's configuration is read or refused as invalid, never
// quoted, and says the same each time.
func FuzzFile(f *testing.F) {
	f.Setenv("PATH", f.TempDir()) // no helper is there to be run
	for _, s := range []string{
		`{"auths":{"quay.test":{"auth":"bWU6c2VjcmV0"},"https://index.docker.io/v1/":{"identitytoken":"t"}}}`,
		`{"auths":{"quay.test/a":{"username":"u","password":"` + secret + `"}}}`, `{"auths":{"quay.test":{"auth":"!"}}}`,
		`{"auths":{"quay.test":{"registrytoken":"t"}},"credHelpers":{"other.test":"x"},"credsStore":""}`,
		`{"credsStore":"../x"}`, `{"credHelpers":{"quay.test":"none"}}`, `{"auths":null}`, `null`, `[]`, `{"auths":{"quay.test":{"password":4711}}}`,
	} {
		f.Add([]byte(s), "quay.test", "quay.test/a/b")
		f.Add([]byte(s), "registry-1.docker.io", "docker.io/library/x")
	}
	path := filepath.Join(f.TempDir(), "config.json")
	f.Fuzz(func(t *testing.T, text []byte, host, repository string) {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		source := credential.NewFile(path).For(repository)
		c, err := source(t.Context(), host)
		if err != nil {
			if !errors.Is(err, errdefs.ErrInvalid) && !errors.Is(err, errdefs.ErrUnavailable) {
				t.Errorf("%v is of no class", err)
			}
			if strings.Contains(err.Error(), secret) && !strings.Contains(host, secret) && !strings.Contains(string(text), "cred") {
				t.Errorf("the error has a secret: %v", err)
			}
			return
		}
		if !c.Anonymous() && c.Origin == "" {
			t.Error("a credential from nowhere")
		}
		if again, err := source(t.Context(), host); err != nil || again != c {
			t.Errorf("then %v, %v", again, err)
		}
	})
}

// FuzzRkt holds that a file of rkt's auth.d is read or refused as invalid, and that
// only a registry that it names gets something, user and password both.
func FuzzRkt(f *testing.F) {
	for _, s := range []string{
		dockerAuth("me", `"quay.test"`), dockerAuth("me", `"index.docker.io"`), dockerAuth("me", `"a.test","a.test"`), dockerAuth("me", `""`),
		`{"rktKind":"auth","rktVersion":"v1","domains":["quay.test"]}`, `{"rktKind":"auth","rktVersion":"v1","registries":4}`, `null`, `{`,
	} {
		f.Add([]byte(s), "quay.test")
		f.Add([]byte(s), "registry-1.docker.io")
	}
	dir := f.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "auth.d"), 0o700); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text []byte, host string) {
		if err := os.WriteFile(filepath.Join(dir, "auth.d", "a.json"), text, 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := credential.Rkt(dir)(t.Context(), host)
		switch {
		case err != nil && !errors.Is(err, errdefs.ErrInvalid):
			t.Errorf("%v is of no class", err)
		case err == nil && !c.Anonymous() && (c.User == "" || c.Password == "" || c.Origin == ""):
			t.Errorf("user %q, of %q", c.User, c.Origin)
		}
	})
}
