package main

import (
	"fmt"

	"github.com/spf13/pflag"

	"github.com/gantry-cri/gantry/stage0"
	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/fetch"
	"github.com/gantry-cri/gantry/stage0/manifest"
	"github.com/gantry-cri/gantry/stage0/pod"
	"github.com/gantry-cri/gantry/stage0/store"
	"github.com/gantry-cri/gantry/stage0/tree"
	"github.com/gantry-cri/gantry/stage1"
	"github.com/gantry-cri/gantry/stage1/cgroup"
	"github.com/gantry-cri/gantry/stage1/network"
)

// options are the flags that every command takes. The daemon and the commands
// make the same pipeline and the same runner of them.
type options struct {
	dir, runDir       string
	config            string
	registryConfigDir string
	cniConfDir        string
	cniBinDirs        []string
	cgroupDriver      cgroup.Driver
}

func (o *options) register(flags *pflag.FlagSet) {
	flags.StringVar(&o.dir, "dir", "/var/lib/gantry", "data `DIR`: images, trees, pods")
	flags.StringVar(&o.runDir, "run-dir", "/run/gantry", "`DIR` of what dies with the boot: sockets, mounts, pids")
	flags.StringVar(&o.config, "config", "", "configuration `FILE`")
	flags.StringVar(&o.registryConfigDir, "registry-config-dir", "/etc/gantry/certs.d", "`DIR` with <registry>/hosts.toml")
	flags.StringVar(&o.cniConfDir, "cni-conf-dir", "/etc/cni/net.d", "`DIR` with network configurations")
	flags.StringSliceVar(&o.cniBinDirs, "cni-bin-dir", []string{"/opt/cni/bin", "/usr/lib/cni"}, "`DIR` with CNI plugins; may be repeated")
	flags.Func("cgroup-driver", "`DRIVER` that makes cgroups, cgroupfs or systemd (default systemd where it is process 1)", func(s string) error {
		o.cgroupDriver = cgroup.Driver(s)
		if o.cgroupDriver != cgroup.Cgroupfs && o.cgroupDriver != cgroup.Systemd {
			return fmt.Errorf("want cgroupfs or systemd: %w", errdefs.ErrInvalid)
		}
		return nil
	})
}

func (o *options) pods() (*pod.Pods, error) { return pod.Open(o.dir, o.runDir) }

// pipeline opens the stores and the source of images.
func (o *options) pipeline() (*stage0.Pipeline, error) {
	pods, err := o.pods()
	if err != nil {
		return nil, err
	}
	images, err := store.Open(o.dir)
	if err != nil {
		return nil, err
	}
	trees, err := tree.Open(o.dir)
	if err != nil {
		return nil, err
	}
	source := fetch.NewRegistry(fetch.Config{HostsDir: o.registryConfigDir})
	return &stage0.Pipeline{Images: images, Trees: trees, Pods: pods, Source: source}, nil
}

// runner runs the pods of a pipeline. report is told what was put off; it may be nil.
func (o *options) runner(p *stage0.Pipeline, report func(manifest.UUID, string, error)) (*stage1.Runner, error) {
	return stage1.New(stage1.Config{
		Pods:     p.Pods,
		TreesDir: p.Trees.Dir(),
		RunDir:   o.runDir,
		Driver:   o.cgroupDriver,
		Network:  network.Config{ConfDir: o.cniConfDir, BinDirs: o.cniBinDirs},
		Report:   report,
	})
}
