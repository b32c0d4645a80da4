package main

import (
	"fmt"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage1"
)

// running is what run-prepared and run add to a prepared pod.
type running struct {
	detach bool
	stage1.Options
}

func (r *running) register(flags *pflag.FlagSet) {
	flags.BoolVar(&r.detach, "detach", false, "return when the pod runs, and print its UUID")
	flags.Func("net", "`NETWORK` of the pod: default, host or none", func(s string) error {
		switch s {
		case "default":
			r.Network = stage1.NetworkDefault
		case "host":
			r.Network = stage1.NetworkHost
		case "none":
			r.Network = stage1.NetworkNone
		default:
			return fmt.Errorf("want default, host or none: %w", errdefs.ErrInvalid)
		}
		return nil
	})
}

func newRunPrepared(o *options) *cobra.Command {
	var how running
	cmd := &cobra.Command{
		Use:   "run-prepared UUID",
		Short: "Run a prepared pod",
		Long:  "Run a prepared pod in the foreground: its output is printed, SIGINT and SIGTERM\nstop it, and its exit code becomes the command's (of several apps, the first\none that is not 0).",
		Args:  exactly(1, "the UUID of a prepared pod"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return needRoot(func() error {
				h, err := o.house()
				if err != nil {
					return err
				}
				pods, err := h.mine(args, false)
				if err != nil {
					return err
				}
				return h.run(cmd, pods[0].Record.UUID, how)
			})
		},
	}
	how.register(cmd.Flags())
	return cmd
}
