package main

import "github.com/spf13/cobra"

func newCatManifest(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cat-manifest UUID",
		Short: "Print a pod's manifest",
		Args:  exactly(1, "the UUID of a pod"),
		RunE: func(cmd *cobra.Command, args []string) error {
			pods, err := o.pods()
			if err != nil {
				return err
			}
			u, err := pods.Resolve(args[0])
			if err != nil {
				return err
			}
			pm, err := pods.Manifest(u)
			if err != nil {
				return err
			}
			return printJSON(cmd.OutOrStdout(), pm)
		},
	}
	registerJSONFormat(cmd.Flags())
	return cmd
}
