package shim

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/tree"
)

// write makes a file below a new directory, and returns its path.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "config.yaml")
}

func TestLoad(t *testing.T) {
	file := write(t, map[string]string{
		"config.yaml":       "dir: /data\nrunDir: /r\nverbosity: 4\nruntimes:\n  kata: {path: /usr/bin/kata}\nlimits: {claim: 30s}\nlayerLimits: {bytes: 1000, ratio: 5}\n",
		"conf.d/20-b.yaml":  "verbosity: 6\nlayerLimits: {ratio: 6}\n",
		"conf.d/10-a.yaml":  "verbosity: 5\ncniBinDirs: [/a, /b]\n",
		"conf.d/ignored.md": "no: yes\n",
	})
	c, err := Load(file, func(c *Config) { c.MetricsAddress = "127.0.0.1:1" })
	if err != nil {
		t.Fatal(err)
	}
	if c.Dir != "/data" || c.Verbosity != 6 || c.Runtimes["kata"].Path != "/usr/bin/kata" || c.Limits.Claim.Duration != 30*time.Second ||
		c.LayerLimits != (tree.Limits{Bytes: 1000, Ratio: 6}) || len(c.CNIBinDirs) != 2 || c.MetricsAddress != "127.0.0.1:1" || c.RegistryConfigDir != "/etc/gantry/certs.d" {
		t.Errorf("got %+v", c)
	}
	if c.socket() != "/r/gantry.sock" {
		t.Errorf("socket %s", c.socket())
	}
	if again, err := c.reload(); err != nil || again.MetricsAddress != c.MetricsAddress || again.Verbosity != c.Verbosity {
		t.Errorf("reloaded %+v, %v", again, err)
	}
}

func TestLoadRefuses(t *testing.T) {
	tests := []struct {
		name, content string
		names         []string
	}{
		{"an unknown key", "dri: /data\n", []string{`"dri"`, "config.yaml"}},
		{"an unknown key inside", "limits: {clam: 1s}\n", []string{`"clam"`, "config.yaml"}},
		{"a wrong type", "verbosity: loud\n", []string{"verbosity", "config.yaml"}},
		{"no duration", "limits: {claim: soon}\n", []string{"soon", "config.yaml"}},
		{"a negative duration", "limits: {claim: -1s}\n", []string{"negative"}},
		{"a relative directory", "dir: data\n", []string{`dir: "data"`}},
		{"a relative file that may be missing", "registryAuthFile: auth\n", []string{`registryAuthFile: "auth"`}},
		{"a relative directory of credentials", "registryAuthDirs: [/etc/rkt, rkt]\n", []string{`registryAuthDirs: "rkt"`}},
		{"a relative read-only store", "readOnlyStores: [/mnt/a, b]\n", []string{`readOnlyStores: "b"`}},
		{"no unix socket", "listen: tcp://127.0.0.1:1\n", []string{"tcp://127.0.0.1:1"}},
		{"a negative number of downloads", "maxConcurrentDownloads: -1\n", []string{"maxConcurrentDownloads: -1"}},
		{"a negative number of downloads in all", "maxConcurrentDownloadsTotal: -1\n", []string{"maxConcurrentDownloadsTotal: -1"}},
		{"a number of downloads that is none", "maxConcurrentDownloads: many\n", []string{"maxConcurrentDownloads", "config.yaml"}},
		{"a negative limit", "layerLimits: {ratio: -1}\n", []string{"layerLimits.ratio: -1"}},
		{"a limit beyond the kernel's", "layerLimits: {nameLength: 256}\n", []string{"layerLimits.nameLength: 256", "255"}},
		{"an unknown limit", "layerLimits: {size: 1}\n", []string{`"size"`}},
		{"an unknown driver", "cgroupDriver: docker\n", []string{"cgroupDriver", "docker"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Load(write(t, map[string]string{"config.yaml": tt.content}))
			if !errors.Is(err, errdefs.ErrInvalid) {
				t.Fatalf("got %v, want ErrInvalid", err)
			}
			for _, name := range tt.names {
				if !strings.Contains(err.Error(), name) {
					t.Errorf("%q does not name %s", err, name)
				}
			}
		})
	}
}

func TestLoadWantsTheNamedFile(t *testing.T) {
	if _, err := Load(filepath.Join(t.TempDir(), "none.yaml")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}
