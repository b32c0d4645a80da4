package main

import (
	"errors"
	"time"

	"github.com/spf13/cobra"
)

// collection says what gantry gc takes for garbage.
type collection struct {
	grace, expire time.Duration
	markOnly      bool
	dryRun        bool
}

func newGC(o *options) *cobra.Command {
	var c collection
	var f format
	cmd := &cobra.Command{
		Use:   "gc",
		Short: "Delete pods of the command line that have ended, and what nothing uses",
		Long:  "Delete pods of the command line that exited or were never run, what killed\ncommands left behind, and layers that no image and no pod needs. The last line\nsays how many bytes on disk that freed. Images are image gc's. Pods of the\nkubelet are the kubelet's to remove.",
		Args:  exactly(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return needRoot(func() error {
				h, err := o.house()
				if err != nil {
					return err
				}
				collect := h.collect
				if c.dryRun {
					collect = h.wouldCollect
				}
				g, err := collect(cmd.Context(), c, cmd.ErrOrStderr())
				return errors.Join(g.print(cmd.OutOrStdout(), f), err)
			})
		},
	}
	cmd.Flags().DurationVar(&c.grace, "grace-period", 30*time.Minute, "keep exited pods, and what came of downloads that were cut short, for this `TIME`")
	cmd.Flags().DurationVar(&c.expire, "expire-prepared", 24*time.Hour, "keep prepared pods for this `TIME`")
	cmd.Flags().BoolVar(&c.markOnly, "mark-only", false, "move pods to garbage and delete nothing")
	cmd.Flags().BoolVar(&c.dryRun, "dry-run", false, "say what would be done, and do nothing")
	f.register(cmd.Flags())
	return cmd
}
