package main

import (
	"cmp"
	"strings"

	"github.com/spf13/cobra"
)

func newList(o *options) *cobra.Command {
	var format format
	var full bool
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the pods",
		Args:    exactly(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			h, err := o.house()
			if err != nil {
				return err
			}
			all, err := h.loadAll(cmd.Context())
			if err != nil {
				return err
			}
			views := make([]podView, 0, len(all))
			for _, p := range all {
				views = append(views, h.view(p))
			}
			digits := 8
			if full {
				digits = 36
			}
			if format.json {
				return printJSON(cmd.OutOrStdout(), views)
			}
			return table(cmd.OutOrStdout(), "UUID\tAPP\tIMAGE\tSTATE\tCREATED\tSTARTED\tNETWORKS\tOWNER", func(row func(...any)) {
				for _, v := range views {
					v.rows(digits, row)
				}
			})
		},
	}
	format.register(cmd.Flags())
	cmd.Flags().BoolVar(&full, "full", false, "print whole UUIDs")
	return cmd
}

// rows prints a line an app, the first with so many digits of the UUID; a sandbox,
// which has no app, has a line of its own.
func (v podView) rows(digits int, row func(...any)) {
	uuid := string(v.UUID)[:digits]
	if len(v.Apps) == 0 {
		row(uuid, "-", "-", v.State, ago(&v.CreatedAt), ago(v.StartedAt), v.networks(), v.Owner)
	}
	for i, a := range v.Apps {
		if i == 0 {
			row(uuid, a.Name, a.Image, v.State, ago(&v.CreatedAt), ago(v.StartedAt), v.networks(), v.Owner)
		} else {
			row("", a.Name, a.Image)
		}
	}
}

// networks are the addresses of a running pod.
func (v podView) networks() string {
	var ips []string
	for _, ip := range v.IPs {
		ips = append(ips, ip.String())
	}
	return cmp.Or(strings.Join(ips, ","), "-")
}
