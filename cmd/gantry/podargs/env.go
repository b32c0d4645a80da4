package podargs

import (
	"fmt"
	"os"
	"strings"
	"unicode/utf8"

	"github.com/appc/spec/schema/types"

	"github.com/gantry-cri/gantry/stage0/manifest"
)

func parseEnv(s string) (types.EnvironmentVariable, error) {
	name, value, ok := strings.Cut(s, "=")
	if !ok {
		return types.EnvironmentVariable{}, invalid("must be specified as NAME=VALUE")
	}
	if !manifest.IsEnvName(name) {
		return types.EnvironmentVariable{}, invalid("%q is not a name of an environment variable", name)
	}
	if !utf8.ValidString(value) || strings.ContainsRune(value, 0) {
		// The manifest is JSON and would have other bytes; no process can be given a NUL.
		return types.EnvironmentVariable{}, invalid("the value of %s is not text in UTF-8", name)
	}
	return types.EnvironmentVariable{Name: name, Value: value}, nil
}

// readEnvFiles reads the files of --set-env-file: NAME=VALUE a line, nothing
// trimmed or unquoted; empty lines and those that begin with # or ; are skipped.
func readEnvFiles(paths []string) (types.Environment, error) {
	var env types.Environment
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("--set-env-file: %w", err)
		}
		line := 0
		for text := range strings.Lines(string(b)) {
			line++
			text = strings.TrimSuffix(strings.TrimSuffix(text, "\n"), "\r")
			if text == "" || text[0] == '#' || text[0] == ';' {
				continue
			}
			v, err := parseEnv(text)
			if err != nil {
				return nil, fmt.Errorf("%s:%d: %w", path, line, err)
			}
			if _, ok := env.Get(v.Name); ok {
				return nil, invalid("%s:%d: key %q already set", path, line, v.Name)
			}
			env = append(env, v)
		}
	}
	return env, nil
}

// environment merges an app's environment, from the weakest source to the
// strongest: caller, image, --set-env-file, --set-env, --environment.
func (r *Request) environment(image types.Environment, app types.Environment) types.Environment {
	var env types.Environment
	for _, source := range []types.Environment{image, r.fileEnv, r.setEnv, app} {
		for _, v := range source {
			env.Set(v.Name, v.Value)
		}
	}
	if !r.inheritEnv {
		return env
	}
	for _, s := range os.Environ() {
		v, err := parseEnv(s)
		if err != nil {
			continue // a shell's exported function, say: appc has no name for it, or no value
		}
		if _, ok := env.Get(v.Name); !ok {
			env = append(env, v)
		}
	}
	return env
}
