package main

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/gantry-cri/gantry/stage0"
)

func newSystem(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "system",
		Short: "Look at the data directory as a whole",
		Args:  exactly(0, "a subcommand: df"),
		RunE: func(*cobra.Command, []string) error {
			return usageError{errors.New("want a subcommand: df")}
		},
	}
	cmd.AddCommand(newSystemDf(o))
	return cmd
}

// diskView is the data directory as system df prints it. Programs outside read
// the JSON: fields may be added, never renamed.
type diskView struct {
	stage0.DiskUsage
	Total stage0.Share `json:"total"`
}

func newSystemDf(o *options) *cobra.Command {
	var format format
	cmd := &cobra.Command{
		Use:   "df",
		Short: "Show what takes how much of the disk, and what could be freed",
		Long:  "Show what the data directory takes on disk, as du counts it, and how much of it\ngantry gc and gantry image gc would free without any grace period.",
		Args:  exactly(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return needRoot(func() error {
				h, err := o.house()
				if err != nil {
					return err
				}
				d, err := h.DiskUsage(cmd.Context())
				if err != nil {
					return err
				}
				return printDisk(cmd, format, diskView{d, d.Total()})
			})
		},
	}
	format.register(cmd.Flags())
	return cmd
}

func printDisk(cmd *cobra.Command, format format, v diskView) error {
	if format.json {
		return printJSON(cmd.OutOrStdout(), v)
	}
	return table(cmd.OutOrStdout(), "KIND\tCOUNT\tSIZE\tRECLAIMABLE", func(row func(...any)) {
		for _, r := range []struct {
			kind  string
			share stage0.Share
		}{{"layers", v.Trees}, {"images", v.Images}, {"pods", v.Pods}} {
			row(r.kind, r.share.Count, size(r.share.Bytes), size(r.share.Reclaimable))
		}
		row("temporary", "-", size(v.Temporary.Bytes), size(v.Temporary.Reclaimable))
		row("total", "-", size(v.Total.Bytes), size(v.Total.Reclaimable))
	})
}
