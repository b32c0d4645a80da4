package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func newImageVerify(o *options) *cobra.Command {
	var format format
	cmd := &cobra.Command{
		Use:   "verify IMAGE...",
		Short: "Prove the files of images against their digests",
		Long: "Prove that the files of images on disk are, bit by bit, those of the layers that\n" +
			"the images' configurations name: contents by the layers' digests; modes, owners,\n" +
			"times, extended attributes, devices and links by what the layers say of them.\n\n" +
			"It ends with code 0 if all is proven, else with 1 and a list of what is not.",
		Args: atLeastOne("image"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return needRoot(func() error { return verifyImages(cmd, o, args, format) })
		},
	}
	format.register(cmd.Flags())
	return cmd
}

func verifyImages(cmd *cobra.Command, o *options, args []string, format format) error {
	h, err := o.house()
	if err != nil {
		return err
	}
	entries, err := h.lookupAll(args)
	if err != nil {
		return err
	}
	c, err := h.VerifyImages(cmd.Context(), entries)
	if err != nil {
		return err
	}
	unproven := len(c.Records)
	for _, t := range c.Trees {
		if !t.Proven() {
			unproven++
		}
	}
	if err := h.printCheck(cmd.OutOrStdout(), c, format); err != nil {
		return err
	}
	if unproven > 0 {
		return fmt.Errorf("%d of %d trees and records are not proven", unproven, len(c.Trees)+len(c.Records))
	}
	return nil
}
