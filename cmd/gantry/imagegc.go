package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"
)

func newImageGC(o *options) *cobra.Command {
	var grace time.Duration
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "gc",
		Short: "Remove the images that nothing uses",
		Long:  "Remove the images that no pod, no pin and no lease holds, and then the layers\nthat nothing needs any more. The last line says how many bytes on disk that freed.",
		Args:  exactly(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return needRoot(func() error { return collectImages(cmd, o, time.Now().Add(-grace), dryRun) })
		},
	}
	cmd.Flags().DurationVar(&grace, "grace-period", 24*time.Hour, "keep images that were pulled within this `TIME`")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "say what would be done, and do nothing")
	return cmd
}

func collectImages(cmd *cobra.Command, o *options, before time.Time, dryRun bool) error { //nolint:revive // dryRun is the user's flag
	h, err := o.house()
	if err != nil {
		return err
	}
	collect, done, freed := h.CollectImages, "deleted", "freed"
	if dryRun {
		collect, done, freed = h.UnusedImages, "would be deleted", "would free"
	}
	images, trees, err := collect(cmd.Context(), before)
	w := cmd.OutOrStdout()
	for _, i := range images {
		fmt.Fprintf(w, "image %s is in no pod and not pinned: %s\n", i.Name, done)
	}
	if err = laterIfBusy(err, cmd.ErrOrStderr()); err != nil {
		return err
	}
	printTrees(w, trees, done)
	printFreed(w, freed, 0, images, trees)
	return nil
}
