package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/gantry-cri/gantry/stage0/failpoint"
)

// newFailpoints lists the points at which the contract suite kills gantry.
func newFailpoints() *cobra.Command {
	return &cobra.Command{
		Use:    "failpoints",
		Short:  "List the points at which " + failpoint.EnvPoint + " can kill this program",
		Hidden: true,
		Args:   exactly(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, p := range failpoint.Names() {
				fmt.Fprintln(cmd.OutOrStdout(), p)
			}
			return nil
		},
	}
}
