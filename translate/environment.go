package translate

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/appc/spec/schema"
	"github.com/appc/spec/schema/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/manifest"
)

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environ is an environment in the making: later settings win, in the place of
// the first.
type environ struct {
	order  []string
	values map[string]string
}

func (e *environ) set(name, value string) {
	if e.values == nil {
		e.values = map[string]string{}
	}
	if _, ok := e.values[name]; !ok {
		e.order = append(e.order, name)
	}
	e.values[name] = value
}

func (e *environ) drop(name string) {
	if _, ok := e.values[name]; ok {
		delete(e.values, name)
		e.order = slices.DeleteFunc(e.order, func(n string) bool { return n == name })
	}
}

func (e *environ) add(env types.Environment) {
	for _, v := range env {
		e.set(v.Name, v.Value)
	}
}

func (e *environ) appc() types.Environment {
	env := make(types.Environment, 0, len(e.order))
	for _, name := range e.order {
		env = append(env, types.EnvironmentVariable{Name: name, Value: e.values[name]})
	}
	return env
}

// lasts returns the index of the last entry of each key: later ones win.
func lasts(envs []*runtimeapi.KeyValue) map[string]int {
	last := make(map[string]int, len(envs))
	for i, e := range envs {
		last[e.GetKey()] = i
	}
	return last
}

// toEnvironment lays CRI's variables over the image's and takes the values that
// appc carries out of envs. The keys stay: they say which variables CRI sent, and
// in which order. A variable that appc cannot hold stays whole, and hides the image's.
func toEnvironment(image types.Environment, envs []*runtimeapi.KeyValue) types.Environment {
	var env environ
	env.add(image)
	last := lasts(envs)
	for i, e := range envs {
		switch {
		case last[e.Key] != i:
		case !manifest.IsEnvName(e.Key) || !utf8.Valid(e.Value):
			env.drop(e.Key)
		default:
			env.set(e.Key, string(e.Value))
			e.Value = nil
		}
	}
	return env.appc()
}

// fromEnvironment is the inverse of toEnvironment: it fills envs in.
func fromEnvironment(merged types.Environment, envs []*runtimeapi.KeyValue) {
	var env environ
	env.add(merged)
	last := lasts(envs)
	for i, e := range envs {
		if v, ok := env.values[e.GetKey()]; ok && last[e.GetKey()] == i {
			e.Value = []byte(v)
		}
	}
}

// imageEnvironment splits an image's variables: those that appc can hold, later
// ones winning, and the rest as they are.
func imageEnvironment(list []string) (env types.Environment, refused []string) {
	var legal environ
	for _, entry := range list {
		name, v, ok := strings.Cut(entry, "=")
		switch {
		case name == "" || !ok:
			// Not a variable: no program could look it up.
		case manifest.IsEnvName(name):
			legal.set(name, v)
		default:
			refused = append(refused, entry)
		}
	}
	return legal.appc(), refused
}

// processEnv returns the environment of an app: defaults, then the image's and the
// manifest's, then what only the CRI isolator can hold.
func processEnv(ra *schema.RuntimeApp, c *runtimeapi.ContainerConfig, hostname string) ([]string, error) {
	var env, appc environ
	env.set("PATH", defaultPath)
	if c.GetTty() {
		env.set("TERM", "xterm")
	}
	if hostname != "" {
		env.set("HOSTNAME", hostname)
	}
	if v, ok := ra.Annotations.Get(annotationEnv.String()); ok {
		var refused []string
		if err := json.Unmarshal([]byte(v), &refused); err != nil {
			return nil, fmt.Errorf("annotation %s: %w: %w", annotationEnv, errdefs.ErrInvalid, err)
		}
		for _, entry := range refused {
			name, v, _ := strings.Cut(entry, "=")
			env.set(name, v)
		}
	}
	env.add(ra.App.Environment)
	appc.add(ra.App.Environment)
	for _, e := range c.GetEnvs() {
		if _, ok := appc.values[e.GetKey()]; !ok {
			env.set(e.GetKey(), string(e.GetValue()))
		}
	}
	list := make([]string, 0, len(env.order))
	for _, name := range env.order {
		entry := name + "=" + env.values[name]
		if !utf8.ValidString(entry) {
			return nil, fmt.Errorf("environment variable %q: not UTF-8, and an OCI configuration can hold nothing else: %w", name, errdefs.ErrUnsupported)
		}
		list = append(list, entry)
	}
	return list, nil
}
