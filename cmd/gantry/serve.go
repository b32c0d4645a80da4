package main

import (
	"github.com/spf13/cobra"

	"github.com/gantry-cri/gantry/shim"
)

func newServe(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve CRI to a kubelet",
		Long: `Serve CRI on a socket until SIGTERM. What is set by a flag beats the configuration
file. Containers run on when the daemon stops or is killed.`,
		Args: exactly(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return needRoot(func() error {
				cfg, err := o.load()
				if err != nil {
					return err
				}
				cfg.Version = buildVersion()
				return shim.Run(cmd.Context(), cfg)
			})
		},
	}
	flags := cmd.Flags()
	o.flag(flags, "listen", "CRI socket, `unix://PATH` (default gantry.sock in the run directory)", func(c *shim.Config, s string) { c.Listen = s })
	o.flag(flags, "stream-address", "loopback `HOST:PORT` of exec, attach and port-forward (default 127.0.0.1:0)", func(c *shim.Config, s string) { c.StreamAddress = s })
	o.flag(flags, "metrics-address", "`HOST:PORT` of /metrics (default none)", func(c *shim.Config, s string) { c.MetricsAddress = s })
	o.number(flags, "verbosity", "`LEVEL` of the log: 2 each change of state, 4 each call (default 2)", func(c *shim.Config, n int) { c.Verbosity = n })
	return cmd
}
