package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/gantry-cri/gantry/stage0/store"
)

func newImageRm(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "rm IMAGE...",
		Short: "Remove images by name or id; what pods use of them stays",
		Args:  atLeastOne("image"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return needRoot(func() error { return removeImages(cmd, o, args) })
		},
	}
}

// removeImages finds all images before it removes the first.
func removeImages(cmd *cobra.Command, o *options, names []string) error {
	h, err := o.house()
	if err != nil {
		return err
	}
	var entries []store.Entry
	for _, name := range names {
		e, err := h.Images.Lookup(name)
		if err != nil {
			return err
		}
		entries = append(entries, e)
	}
	for _, e := range entries {
		if err := h.Images.Remove(cmd.Context(), e.Image.ID); err != nil {
			return err
		}
		fmt.Fprintln(cmd.OutOrStdout(), e.Image.ID)
	}
	_, err = h.collectTrees(cmd.Context(), cmd.ErrOrStderr())
	return err
}
