package credential

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/docker/cli/cli/config/configfile"
	"github.com/docker/cli/cli/config/types"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// hubKey is how docker login spells Docker Hub.
const hubKey = "https://index.docker.io/v1/"

// DefaultFile is docker's own: config.json in $DOCKER_CONFIG, or else in ~/.docker.
// It is empty when there is none.
func DefaultFile() (string, error) {
	dir := os.Getenv("DOCKER_CONFIG")
	if dir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", nil //nolint:nilerr // a process without a home has no docker configuration
		}
		dir = filepath.Join(home, ".docker")
	}
	file := filepath.Join(dir, "config.json")
	_, err := os.Stat(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", nil
	case err != nil:
		return "", fmt.Errorf("docker's configuration: %w", err)
	}
	return file, nil
}

// File is a file in the form of docker's config.json, which podman's auth.json
// shares: auths, credHelpers and credsStore. It is read each time that it is asked.
type File struct {
	path string
}

// NewFile names a file.
func NewFile(path string) *File { return &File{path} }

// For returns what the file says for a repository ("quay.io/a/b"). Keys that name
// a part of the repository beat those that name the host alone, the longest first;
// of the same host a helper beats the store and the store what the file has.
// A file that cannot be read or understood is ErrInvalid, a helper that fails
// ErrUnavailable.
func (f *File) For(repository string) Source {
	return func(ctx context.Context, host string) (Credential, error) {
		c, err := f.find(ctx, host, repository)
		if err != nil {
			return Credential{}, fmt.Errorf("credentials for %s: %w", host, err)
		}
		return c, nil
	}
}

func (f *File) find(ctx context.Context, host, repository string) (Credential, error) {
	config, err := f.read()
	if err != nil {
		return Credential{}, err
	}
	keys := keysOf(host, repository)
	for _, k := range keys {
		if name := config.CredentialHelpers[k]; name != "" {
			return f.ask(ctx, helper{name: name, reason: fmt.Sprintf("credHelpers[%q]", k)}, k)
		}
	}
	if name := config.CredentialsStore; name != "" {
		for _, k := range keys {
			c, err := f.ask(ctx, helper{name: name, reason: "credsStore"}, k)
			if err != nil || !c.Anonymous() {
				return c, err
			}
		}
	}
	for _, k := range keys {
		if c := f.entry(config.AuthConfigs, k); !c.Anonymous() {
			return c, nil
		}
	}
	return Credential{}, nil
}

func (f *File) read() (*configfile.ConfigFile, error) {
	raw, err := os.ReadFile(f.path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalid)
	}
	config := configfile.New(f.path)
	if err := config.LoadFromReader(bytes.NewReader(raw)); err != nil {
		// What the decoders say may quote what they could not read.
		return nil, fmt.Errorf("%s is no docker configuration%s: %w", f.path, offset(err), errdefs.ErrInvalid)
	}
	return config, nil
}

func offset(err error) string {
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		return fmt.Sprintf(" (byte %d)", syntax.Offset)
	}
	return ""
}

func (f *File) ask(ctx context.Context, h helper, key string) (Credential, error) {
	c, err := h.get(ctx, key)
	if err != nil {
		return Credential{}, fmt.Errorf("%s of %s: %w", h.reason, f.path, err)
	}
	if !c.Anonymous() {
		c.Origin = fmt.Sprintf("%s%s, by %s of %s", helperPrefix, h.name, h.reason, f.path)
	}
	return c, nil
}

// entry looks a key up; old versions of docker wrote it as a URL.
func (f *File) entry(auths map[string]types.AuthConfig, key string) Credential {
	names := make([]string, 0, len(auths))
	for name := range auths {
		if name == key || bare(name) == key {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b)) })
	for _, name := range names {
		a := auths[name]
		c := Credential{User: a.Username, Password: a.Password, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken}
		if len(c.Secrets()) > 0 {
			c.Origin = fmt.Sprintf("auths[%q] of %s", name, f.path)
			return c
		}
	}
	return Credential{}
}

// bare takes scheme and API version from a key: "https://quay.io/v2/" is quay.io.
func bare(key string) string {
	_, after, found := strings.Cut(key, "://")
	if !found {
		return key
	}
	after = strings.TrimSuffix(after, "/")
	return strings.TrimSuffix(strings.TrimSuffix(after, "/v1"), "/v2")
}

// keysOf returns under which keys a file may have a host's credentials, the most
// special first.
func keysOf(host, repository string) []string {
	_, rest, _ := strings.Cut(repository, "/")
	hosts := []string{host}
	if canonical(host) == "docker.io" {
		hosts = []string{"docker.io", "index.docker.io", "registry-1.docker.io"}
	}
	var keys []string
	for p := rest; p != "" && p != "." && p != "/"; p = path.Dir(p) {
		for _, h := range hosts {
			keys = append(keys, h+"/"+p)
		}
	}
	if len(hosts) > 1 {
		keys = append(keys, hubKey)
	}
	return append(keys, hosts...)
}
