package main

import (
	"errors"
	"time"

	"github.com/spf13/cobra"
)

func newImageGC(o *options) *cobra.Command {
	var grace time.Duration
	var dryRun bool
	var f format
	cmd := &cobra.Command{
		Use:   "gc",
		Short: "Remove the images that nothing uses",
		Long:  "Remove the images that no pod, no pin and no lease holds, and then the layers\nthat nothing needs any more. The last line says how many bytes on disk that freed.",
		Args:  exactly(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return needRoot(func() error {
				h, err := o.house()
				if err != nil {
					return err
				}
				collect := h.CollectImages
				if dryRun {
					collect = h.UnusedImages
				}
				g := garbage{DryRun: dryRun}
				g.Images, g.Layers, err = collect(cmd.Context(), time.Now().Add(-grace))
				if err = laterIfBusy(err, cmd.ErrOrStderr()); err == nil {
					g.sum()
				}
				return errors.Join(g.print(cmd.OutOrStdout(), f), err)
			})
		},
	}
	cmd.Flags().DurationVar(&grace, "grace-period", 24*time.Hour, "keep images that were pulled within this `TIME`")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "say what would be done, and do nothing")
	f.register(cmd.Flags())
	return cmd
}
