package main

import (
	"github.com/spf13/cobra"

	"github.com/gantry-cri/gantry/shim"
)

// serveFlags are the flags of the daemon alone.
type serveFlags struct {
	listen, streamAddress, metricsAddress string
	verbosity                             int
}

func newServe(o *options) *cobra.Command {
	var f serveFlags
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve CRI to a kubelet",
		Long: "Serve CRI on a socket until SIGTERM. What is set by a flag beats the configuration\n" +
			"file. Containers run on when the daemon stops or is killed.",
		Args: exactly(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return needRoot(func() error {
				cfg, err := shim.Load(o.config, func(c *shim.Config) { f.override(cmd, o, c) })
				if err != nil {
					return err
				}
				cfg.Version = buildVersion()
				return shim.Run(cmd.Context(), cfg)
			})
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.listen, "listen", "", "CRI socket, `unix://PATH` (default gantry.sock in the run directory)")
	flags.StringVar(&f.streamAddress, "stream-address", "127.0.0.1:0", "loopback `HOST:PORT` of exec, attach and port-forward")
	flags.StringVar(&f.metricsAddress, "metrics-address", "", "`HOST:PORT` of /metrics (default none)")
	flags.IntVarP(&f.verbosity, "verbosity", "v", 2, "how much is logged: 2 each change of state, 4 each call")
	return cmd
}

// override puts the flags that were given over the configuration file.
func (f serveFlags) override(cmd *cobra.Command, o *options, c *shim.Config) {
	given := func(name string, set func()) {
		if cmd.Flags().Changed(name) {
			set()
		}
	}
	given("dir", func() { c.Dir = o.dir })
	given("run-dir", func() { c.RunDir = o.runDir })
	given("registry-config-dir", func() { c.RegistryConfigDir = o.registryConfigDir })
	given("cni-conf-dir", func() { c.CNIConfDir = o.cniConfDir })
	given("cni-bin-dir", func() { c.CNIBinDirs = o.cniBinDirs })
	given("cgroup-driver", func() { c.CgroupDriver = o.cgroupDriver })
	given("listen", func() { c.Listen = f.listen })
	given("stream-address", func() { c.StreamAddress = f.streamAddress })
	given("metrics-address", func() { c.MetricsAddress = f.metricsAddress })
	given("verbosity", func() { c.Verbosity = f.verbosity })
}
