package shim

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/gantry-cri/gantry/cri"
	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/tree"
	"github.com/gantry-cri/gantry/stage1"
	"github.com/gantry-cri/gantry/stage1/cgroup"
)

// DefaultFile is read when no other file is named and it is there.
const DefaultFile = "/etc/gantry/config.yaml"

// Config is the daemon's configuration. The JSON names are the keys of the file.
type Config struct {
	// Dir holds images, trees and pods; RunDir what dies with the boot.
	Dir    string `json:"dir,omitempty"`
	RunDir string `json:"runDir,omitempty"`
	// ReadOnlyStores are further data directories, made in advance, where images and
	// layers are looked for first and nothing is written.
	ReadOnlyStores []string `json:"readOnlyStores,omitempty"`
	// Listen is the CRI socket, "unix:///run/gantry/gantry.sock"; empty is
	// gantry.sock in RunDir.
	Listen string `json:"listen,omitempty"`
	// StreamAddress is where exec, attach and port-forward are served, a loopback
	// address; port 0 takes any.
	StreamAddress string `json:"streamAddress,omitempty"`
	// MetricsAddress is HOST:PORT of /metrics; empty serves none.
	MetricsAddress string `json:"metricsAddress,omitempty"`
	// CNIConfDir and CNIBinDirs are CNI's; empty are the usual places.
	CNIConfDir string   `json:"cniConfDir,omitempty"`
	CNIBinDirs []string `json:"cniBinDirs,omitempty"`
	// RegistryConfigDir is the certs.d with REGISTRY/hosts.toml.
	RegistryConfigDir string `json:"registryConfigDir,omitempty"`
	// RegistryAuthFile is a file in the form of docker's config.json. It has the
	// credentials for pulls that bring none. Empty is none; see docs/registry.md.
	RegistryAuthFile string `json:"registryAuthFile,omitempty"`
	// RegistryAuthDirs are rkt's configuration directories, in whose auth.d are further
	// credentials; a later one overrides an earlier one.
	RegistryAuthDirs []string `json:"registryAuthDirs,omitempty"`
	// PullIdleTimeout is how long a registry may send nothing; zero is 60 seconds.
	PullIdleTimeout Duration `json:"pullIdleTimeout,omitempty"`
	// PullTimeout bounds a pull as a whole; zero is no bound.
	PullTimeout Duration `json:"pullTimeout,omitempty"`
	// SpoolAbove is the size in bytes above which what has come of a layer is kept, so that
	// a pull that was cut short goes on there; zero is 256 MiB, negative keeps none.
	SpoolAbove int64 `json:"spoolAbove,omitempty"`
	// MaxConcurrentDownloads is how many layers of one image are fetched at once, as in
	// containerd; zero is the number of cores and at least 3. MaxConcurrentDownloadsTotal
	// is how many of all images that this process pulls; zero is twice as many.
	MaxConcurrentDownloads      int `json:"maxConcurrentDownloads,omitempty"`
	MaxConcurrentDownloadsTotal int `json:"maxConcurrentDownloadsTotal,omitempty"`
	// LayerLimits bound what a layer of an image may contain.
	LayerLimits tree.Limits `json:"layerLimits,omitzero"`
	// CgroupDriver is cgroupfs or systemd; empty is systemd where it is process 1.
	CgroupDriver cgroup.Driver `json:"cgroupDriver,omitempty"`
	// Runtime is the default OCI runtime's path; empty is crun, else runc.
	Runtime string `json:"runtime,omitempty"`
	// Runtimes are the runtime handlers besides the default.
	Runtimes map[string]stage1.Handler `json:"runtimes,omitempty"`
	// Conmon and Init are the paths of conmon and catatonit; empty looks in PATH.
	Conmon string `json:"conmon,omitempty"`
	Init   string `json:"init,omitempty"`
	// Verbosity is klog's: 2 tells each change of state, 4 each call.
	Verbosity int `json:"verbosity,omitempty"`
	// Limits are the deadlines of CRI's jobs; what is zero has its default.
	Limits Limits `json:"limits,omitzero"`

	// Version is the build's, shown by CRI's Version; it is no key of the file.
	Version string `json:"-"`

	reload func() (Config, error)
}

// Limits are cri.Limits as the file spells them.
type Limits struct {
	RunSandbox Duration `json:"runSandbox,omitempty"`
	Create     Duration `json:"create,omitempty"`
	Start      Duration `json:"start,omitempty"`
	Stop       Duration `json:"stop,omitempty"`
	Remove     Duration `json:"remove,omitempty"`
	Claim      Duration `json:"claim,omitempty"`
	PullGrace  Duration `json:"pullGrace,omitempty"`
	Sample     Duration `json:"sample,omitempty"`
}

func (l Limits) cri() cri.Limits {
	return cri.Limits{
		RunSandbox: l.RunSandbox.Duration,
		Create:     l.Create.Duration,
		Start:      l.Start.Duration,
		Stop:       l.Stop.Duration,
		Remove:     l.Remove.Duration,
		Claim:      l.Claim.Duration,
		PullGrace:  l.PullGrace.Duration,
		Sample:     l.Sample.Duration,
	}
}

// Duration is written as Go writes it: "90s", "2m".
type Duration struct{ time.Duration }

// UnmarshalText is part of encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(b []byte) (err error) {
	if d.Duration, err = time.ParseDuration(string(b)); err == nil && d.Duration < 0 {
		err = errors.New("a duration cannot be negative")
	}
	return err
}

// MarshalText is part of encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// Load reads the configuration: the defaults, then file, then conf.d/*.yaml
// beside it in the order of their names, then the overrides, which are the command
// line's flags. An empty file is DefaultFile, if that is there. A key that is not
// known is ErrInvalid, with the key and the file. Run reads the same again at SIGHUP.
func Load(file string, overrides ...func(*Config)) (Config, error) {
	c := Config{
		Dir:               "/var/lib/gantry",
		RunDir:            "/run/gantry",
		StreamAddress:     "127.0.0.1:0",
		RegistryConfigDir: "/etc/gantry/certs.d",
		Verbosity:         2,
	}
	files, err := filesOf(file)
	if err != nil {
		return Config{}, err
	}
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			return Config{}, fmt.Errorf("read configuration: %w", err)
		}
		if err := yaml.UnmarshalStrict(raw, &c); err != nil {
			return Config{}, fmt.Errorf("configuration %s: %w: %w", f, errdefs.ErrInvalid, err)
		}
	}
	for _, o := range overrides {
		o(&c)
	}
	c.Listen = cmp.Or(c.Listen, "unix://"+filepath.Join(c.RunDir, "gantry.sock"))
	c.reload = func() (Config, error) { return Load(file, overrides...) }
	return c, c.check()
}

func filesOf(file string) ([]string, error) {
	named := file != ""
	file = cmp.Or(file, DefaultFile)
	_, err := os.Stat(file)
	if errors.Is(err, fs.ErrNotExist) && !named {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	more, err := filepath.Glob(filepath.Join(filepath.Dir(file), "conf.d", "*.yaml"))
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	slices.Sort(more)
	return append([]string{file}, more...), nil
}

func (c Config) check() error {
	paths := []struct {
		key, path string
		optional  bool
	}{
		{"dir", c.Dir, false},
		{"runDir", c.RunDir, false},
		{"listen", c.socket(), false},
		{"registryAuthFile", c.RegistryAuthFile, true},
	}
	for _, p := range paths {
		if !filepath.IsAbs(p.path) && (p.path != "" || !p.optional) {
			return fmt.Errorf("configuration: %s: %q is not an absolute path: %w", p.key, p.path, errdefs.ErrInvalid)
		}
	}
	for key, dirs := range map[string][]string{"registryAuthDirs": c.RegistryAuthDirs, "readOnlyStores": c.ReadOnlyStores} {
		for _, d := range dirs {
			if !filepath.IsAbs(d) {
				return fmt.Errorf("configuration: %s: %q is not an absolute path: %w", key, d, errdefs.ErrInvalid)
			}
		}
	}
	if strings.Contains(c.Listen, "://") && !strings.HasPrefix(c.Listen, "unix://") {
		return fmt.Errorf("configuration: listen: %q is not a unix socket: %w", c.Listen, errdefs.ErrInvalid)
	}
	for key, n := range map[string]int{"maxConcurrentDownloads": c.MaxConcurrentDownloads, "maxConcurrentDownloadsTotal": c.MaxConcurrentDownloadsTotal} {
		if n < 0 {
			return fmt.Errorf("configuration: %s: %d is neither a number of layers nor 0 for the default: %w", key, n, errdefs.ErrInvalid)
		}
	}
	if err := c.LayerLimits.Check(); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	if c.CgroupDriver != "" {
		if _, err := cgroup.ParseDriver(string(c.CgroupDriver)); err != nil {
			return fmt.Errorf("configuration: cgroupDriver: %w", err)
		}
	}
	return nil
}

// socket is the path of the CRI socket.
func (c Config) socket() string { return strings.TrimPrefix(c.Listen, "unix://") }
