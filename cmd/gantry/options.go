package main

import (
	"github.com/spf13/pflag"

	"github.com/gantry-cri/gantry/stage0/pod"
)

// options are the flags that every command takes. The daemon and the commands
// make the same pipeline and the same runner of them.
type options struct {
	dir, runDir       string
	config            string
	registryConfigDir string
	cniConfDir        string
	cniBinDirs        []string
	cgroupDriver      string
}

func (o *options) register(flags *pflag.FlagSet) {
	flags.StringVar(&o.dir, "dir", "/var/lib/gantry", "data `DIR`: images, trees, pods")
	flags.StringVar(&o.runDir, "run-dir", "/run/gantry", "`DIR` of what dies with the boot: sockets, mounts, pids")
	flags.StringVar(&o.config, "config", "", "configuration `FILE` (default /etc/gantry/config.yaml, if there is one)")
	flags.StringVar(&o.registryConfigDir, "registry-config-dir", "/etc/gantry/certs.d", "`DIR` with <registry>/hosts.toml")
	flags.StringVar(&o.cniConfDir, "cni-conf-dir", "/etc/cni/net.d", "`DIR` with network configurations")
	flags.StringSliceVar(&o.cniBinDirs, "cni-bin-dir", []string{"/opt/cni/bin", "/usr/lib/cni"}, "`DIR` with CNI plugins; repeatable")
	flags.StringVar(&o.cgroupDriver, "cgroup-driver", "cgroupfs", "`DRIVER`: cgroupfs or systemd")
}

func (o *options) pods() (*pod.Pods, error) { return pod.Open(o.dir, o.runDir) }
