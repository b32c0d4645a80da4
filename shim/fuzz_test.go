package shim

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// FuzzLoad holds that a configuration is refused as invalid or can be written and
// loaded again as the same, and that its paths are absolute.
func FuzzLoad(f *testing.F) {
	for _, s := range []string{
		"", "dir: /d\nrunDir: /r\nlisten: unix:///s\n", "pullTimeout: 90s\nlimits: {start: 2m}\n", "pullTimeout: -1s\n", "dir: d\n", "x: 1\n", "a: &a [*a]\n", "cgroupDriver: systemd\nruntimes: {x: {path: /r}}\n", "cgroupDriver: x\n", "registryAuthDirs: [x]\n", "layerLimits: {entries: -1}\n", "dir: /a\ndir: /b\n", "null", "- 1", "verbosity: 99999999999999999999\n",
	} {
		f.Add([]byte(s))
	}
	path := filepath.Join(f.TempDir(), "config.yaml")
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := load(t, path, text)
		if err != nil {
			if !errors.Is(err, errdefs.ErrInvalid) {
				t.Errorf("%v is of no class", err)
			}
			return
		}
		if !filepath.IsAbs(c.Dir) || !filepath.IsAbs(c.RunDir) || !filepath.IsAbs(c.socket()) || c.PullTimeout.Duration < 0 {
			t.Errorf("configuration %+v", c)
		}
		// Written, because a map without entries is one thing and no map another.
		again, err := load(t, path, marshal(t, c))
		if got, want := marshal(t, again), marshal(t, c); err != nil || string(got) != string(want) {
			t.Errorf("%s, loaded again, is %s, %v", want, got, err)
		}
	})
}

func marshal(t *testing.T, c Config) []byte {
	t.Helper()
	written, err := yaml.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	return written
}

func load(t *testing.T, path string, text []byte) (Config, error) {
	t.Helper()
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return Load(path)
}
