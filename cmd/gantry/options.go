package main

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/gantry-cri/gantry/shim"
	"github.com/gantry-cri/gantry/stage0"
	"github.com/gantry-cri/gantry/stage0/credential"
	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/pod"
	"github.com/gantry-cri/gantry/stage1"
	"github.com/gantry-cri/gantry/stage1/cgroup"
	"github.com/gantry-cri/gantry/stage1/network"
)

// options are the flags that every command takes. What is given beats the
// configuration file, which the commands read as the daemon does.
type options struct {
	file     string
	given    []func(*shim.Config)
	binDir   []string
	readOnly []string
}

func (o *options) register(flags *pflag.FlagSet) {
	flags.StringVar(&o.file, "config", "", "configuration `FILE` (default "+shim.DefaultFile+", if there is one)")
	o.path(flags, "dir", "data `DIR`: images, trees, pods (default /var/lib/gantry)", func(c *shim.Config, s string) { c.Dir = s })
	o.path(flags, "run-dir", "`DIR` of what dies with the boot (default /run/gantry)", func(c *shim.Config, s string) { c.RunDir = s })
	o.path(flags, "registry-config-dir", "`DIR` with REGISTRY/hosts.toml (default /etc/gantry/certs.d)", func(c *shim.Config, s string) { c.RegistryConfigDir = s })
	o.path(flags, "registry-auth", "`FILE` with credentials, as docker's config.json (default that of docker; none under serve)", func(c *shim.Config, s string) { c.RegistryAuthFile = s })
	o.path(flags, "cni-conf-dir", "`DIR` with network configurations (default /etc/cni/net.d)", func(c *shim.Config, s string) { c.CNIConfDir = s })
	o.paths(flags, "read-only-store", "data `DIR` made in advance: images and layers are looked for there first, and nothing is written; may be repeated", &o.readOnly, func(c *shim.Config) { c.ReadOnlyStores = o.readOnly })
	o.paths(flags, "cni-bin-dir", "`DIR` with CNI plugins; may be repeated (default "+strings.Join(network.DefaultBinDirs(), ", ")+")", &o.binDir, func(c *shim.Config) { c.CNIBinDirs = o.binDir })
	flags.Func("cgroup-driver", "`DRIVER` that makes cgroups, cgroupfs or systemd (default systemd where it is process 1)", func(s string) error {
		driver := cgroup.Driver(s)
		if driver != cgroup.Cgroupfs && driver != cgroup.Systemd {
			return fmt.Errorf("want cgroupfs or systemd: %w", errdefs.ErrInvalid)
		}
		o.given = append(o.given, func(c *shim.Config) { c.CgroupDriver = driver })
		return nil
	})
}

// flag registers a flag that sets a field of the configuration.
func (o *options) flag(flags *pflag.FlagSet, name, usage string, set func(*shim.Config, string)) {
	flags.Func(name, usage, func(s string) error {
		o.given = append(o.given, func(c *shim.Config) { set(c, s) })
		return nil
	})
}

// path is flag for fields that hold a path, which may be given relative.
func (o *options) path(flags *pflag.FlagSet, name, usage string, set func(*shim.Config, string)) {
	flags.Func(name, usage, func(s string) error {
		abs, err := filepath.Abs(s)
		if err != nil {
			return err
		}
		o.given = append(o.given, func(c *shim.Config) { set(c, abs) })
		return nil
	})
}

// paths is path for a flag that may be repeated; all are in the list before set is called.
func (o *options) paths(flags *pflag.FlagSet, name, usage string, list *[]string, set func(*shim.Config)) {
	flags.Func(name, usage, func(s string) error {
		abs, err := filepath.Abs(s)
		if err != nil {
			return err
		}
		*list = append(*list, abs)
		o.given = append(o.given, set)
		return nil
	})
}

// number is flag for fields that hold a number.
func (o *options) number(flags *pflag.FlagSet, name, usage string, set func(*shim.Config, int)) {
	flags.Func(name, usage, func(s string) error {
		n, err := strconv.Atoi(s)
		if err != nil {
			return fmt.Errorf("want a number: %w", errdefs.ErrInvalid)
		}
		o.given = append(o.given, func(c *shim.Config) { set(c, n) })
		return nil
	})
}

func (o *options) load() (shim.Config, error) { return shim.Load(o.file, o.given...) }

func (o *options) pods() (*pod.Pods, error) {
	cfg, err := o.load()
	if err != nil {
		return nil, err
	}
	return pod.Open(cfg.Dir, cfg.RunDir)
}

// house is everything that works on one data directory, opened.
type house struct {
	*stage0.Pipeline
	runner *stage1.Runner
}

// user reads the configuration and adds to it what is the user's own, and not the
// node's: docker's credentials, and rkt's.
func (o *options) user() (shim.Config, error) {
	cfg, err := o.load()
	if err != nil {
		return cfg, err
	}
	if cfg.RegistryAuthDirs == nil {
		cfg.RegistryAuthDirs = credential.RktDirs()
	}
	if cfg.RegistryAuthFile == "" {
		cfg.RegistryAuthFile, err = credential.DefaultFile()
	}
	return cfg, err
}

// pipeline opens what those need who fetch and prepare, and run nothing.
func (o *options) pipeline() (*stage0.Pipeline, error) {
	cfg, err := o.user()
	if err != nil {
		return nil, err
	}
	return shim.OpenPipeline(cfg)
}

// house opens what the daemon opens.
func (o *options) house() (*house, error) {
	cfg, err := o.user()
	if err != nil {
		return nil, err
	}
	p, r, err := shim.Open(cfg, nil)
	return &house{p, r}, err
}
