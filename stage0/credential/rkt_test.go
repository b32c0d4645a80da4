package credential_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gantry-cri/gantry/stage0/credential"
	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// rktDir makes a configuration directory of rkt with files in auth.d.
func rktDir(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "auth.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, "auth.d", name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func dockerAuth(user, registries string) string {
	return fmt.Sprintf(`{"rktKind":"dockerAuth","rktVersion":"v1","registries":[%s],"credentials":{"user":%q,"password":%q}}`, registries, user, secret)
}

func TestRkt(t *testing.T) {
	vendor := rktDir(t, map[string]string{
		"a.json": dockerAuth("vendor", `"quay.test","vendor.test"`), "b.json": dockerAuth("hub", `"index.docker.io"`),
		"domains.json": `{"rktKind":"auth","rktVersion":"v1","domains":["quay.test"],"type":"oauth","credentials":{"token":"x"}}`,
		"notes.txt":    "not read",
	})
	local := rktDir(t, map[string]string{"a.json": dockerAuth("local", `"quay.test"`)})
	if err := os.Symlink("a.json", filepath.Join(local, "auth.d", "link.json")); err != nil {
		t.Fatal(err)
	}
	source := credential.Rkt(vendor, filepath.Join(local, "none"), local)
	for host, want := range map[string]string{"quay.test": "local", "vendor.test": "vendor", "registry-1.docker.io": "hub", "other.test": ""} {
		c, err := source(t.Context(), host)
		if err != nil || c.User != want || (c.Password == secret) != (want != "") {
			t.Errorf("%s: user %q, %v; want %q", host, c.User, err, want)
		}
		if want == "local" && c.String() != `registry "quay.test" of `+filepath.Join(local, "auth.d", "a.json") {
			t.Errorf("it comes from %s", c)
		}
	}
}

func TestRktRefuses(t *testing.T) {
	good := dockerAuth("me", `"a.test"`)
	for _, tc := range []struct {
		name, says string
		files      map[string]string
	}{
		{"twice", `credentials for registry "a.test" are already specified in `, map[string]string{"1.json": good, "2.json": good}},
		{"no JSON", "1.json: it is no configuration of rkt", map[string]string{"1.json": secret}},
		{"another type", "1.json: it is no configuration of rkt", map[string]string{"1.json": strings.Replace(good, `"`+secret+`"`, "4711", 1)}},
		{"no kind", "no rktKind specified", map[string]string{"1.json": strings.Replace(good, "dockerAuth", "", 1)}},
		{"another kind", `it has kind "paths"`, map[string]string{"1.json": strings.Replace(good, "dockerAuth", "paths", 1)}},
		{"another version", `no parser available for configuration of kind "dockerAuth" and version "v2"`, map[string]string{"1.json": strings.Replace(good, `"v1"`, `"v2"`, 1)}},
		{"no registries", "no registries specified", map[string]string{"1.json": strings.Replace(good, `"a.test"`, "", 1)}},
		{"no user", "user not specified", map[string]string{"1.json": strings.Replace(good, `"me"`, `""`, 1)}},
		{"no password", "password not specified", map[string]string{"1.json": strings.Replace(good, secret, "", 1)}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := credential.Rkt(rktDir(t, tc.files))(t.Context(), "other.test")
			if !errors.Is(err, errdefs.ErrInvalid) || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%v does not say %q", err, tc.says)
			}
			if strings.Contains(fmt.Sprint(err), secret) || strings.Contains(fmt.Sprint(err), "4711") {
				t.Errorf("the error has a secret: %v", err)
			}
		})
	}
}

// TestFirst holds that a source is asked only when those before it have nothing.
func TestFirst(t *testing.T) {
	one := credential.For("one.test", credential.Credential{User: "one", Password: secret})
	all := credential.For("", credential.Credential{User: "all", Password: secret})
	for host, want := range map[string]string{"one.test": "one", "two.test": "all"} {
		if c, err := credential.First(one, all)(t.Context(), host); err != nil || c.User != want {
			t.Errorf("%s: %q, %v", host, c.User, err)
		}
	}
	if c, err := credential.First()(t.Context(), "one.test"); err != nil || !c.Anonymous() {
		t.Errorf("of none: %v, %v", c, err)
	}
}
