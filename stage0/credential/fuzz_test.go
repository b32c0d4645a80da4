package credential_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

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

// FuzzHelper holds that whatever a credential helper says becomes a credential with an
// origin, nothing, or an error of a class that has no word of the answer.
func FuzzHelper(f *testing.F) {
	bin, answers := f.TempDir(), f.TempDir()
	answer := filepath.Join(answers, "answer")
	for name, script := range map[string]string{"ends": "exec cat " + answer, "fails": "cat " + answer + "; exit 1"} {
		if err := os.WriteFile(filepath.Join(bin, "docker-credential-"+name), []byte("#!/bin/sh\n"+script), 0o755); err != nil { //nolint:gosec // a program
			f.Fatal(err)
		}
	}
	f.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	for _, s := range []string{
		`{"Username":"u","Secret":"` + secret + `"}`, `{"Username":"<token>","Secret":"` + secret + `"}`, `{"Username":"<token>"}`, `{"Username":"u"}`, `{"Secret":"s"}`,
		`{"ServerURL":"other.test","Username":"u","Secret":"s"} and more`, `{"username":"a","USERNAME":"b","Secret":4711}`, `{}`, `null`, `[]`, ``, secret,
		"credentials not found in native keychain\n", "no credentials server URL", "no credentials username", `{"Username":"u\u0000:\r\n","Secret":"s\ud800"}`,
	} {
		f.Add([]byte(s), true)
		f.Add([]byte(s), false)
	}
	const host = "quay.test"
	file := filepath.Join(answers, "config.json")
	f.Fuzz(func(t *testing.T, said []byte, ends bool) {
		name := "fails"
		if ends {
			name = "ends"
		}
		ask := func(config, answered string) (credential.Credential, error) {
			for path, text := range map[string]string{file: config, answer: answered} {
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			return credential.NewFile(file).For(host+"/a")(t.Context(), host)
		}
		config := `{"credHelpers":{"` + host + `":"` + name + `"}}`
		c, err := ask(config, string(said))
		if err != nil {
			want := errdefs.ErrInvalid // what is not of the protocol
			if !ends {
				want = errdefs.ErrUnavailable
			}
			if _, same := ask(config, "?"); !errors.Is(err, want) || same == nil || same.Error() != err.Error() {
				t.Errorf("%v; to another answer %v", err, same)
			}
			return
		}
		if !ends && !c.Anonymous() {
			t.Errorf("user %q of a helper that failed", c.User)
		}
		if c.Anonymous() != (c.Origin == "") || c.RegistryToken != "" || c.IdentityToken != "" && c.User+c.Password != "" {
			t.Errorf("user %q, tokens %q %q, of %q", c.User, c.IdentityToken, c.RegistryToken, c.Origin)
		}
		if c.User != "" && len(c.Secrets()) == 0 {
			t.Errorf("user %q without a secret", c.User)
		}
		for _, part := range append(c.Secrets(), c.User) {
			if len(part) > len(said)*3 || !utf8.ValidString(part) { // a byte that is no character is one of three
				t.Errorf("%d bytes of %d: %q", len(part), len(said), part)
			}
		}
	})
}
