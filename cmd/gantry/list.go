package main

import (
	"cmp"
	"errors"
	"slices"

	"github.com/spf13/cobra"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/pod"
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
			pods, err := o.pods()
			if err != nil {
				return err
			}
			all, err := loadAll(pods)
			if err != nil {
				return err
			}
			views := make([]podView, 0, len(all))
			for _, p := range all {
				views = append(views, viewOf(p))
			}
			if format.json {
				return printJSON(cmd.OutOrStdout(), views)
			}
			return table(cmd.OutOrStdout(), "UUID\tAPP\tIMAGE\tSTATE\tCREATED\tSTARTED\tOWNER", func(row func(...any)) {
				for _, v := range views {
					v.rows(full, row)
				}
			})
		},
	}
	format.register(cmd.Flags())
	cmd.Flags().BoolVar(&full, "full", false, "print whole UUIDs")
	return cmd
}

// loadAll reads every pod, oldest first. Pods that go away while it reads, and
// pods that are still being made and have no record, are left out.
func loadAll(pods *pod.Pods) ([]*pod.Pod, error) {
	uuids, err := pods.List()
	if err != nil {
		return nil, err
	}
	var all []*pod.Pod
	for _, u := range uuids {
		p, err := pods.Load(u)
		if errors.Is(err, errdefs.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b *pod.Pod) int {
		return cmp.Or(a.Record.CreatedAt.Compare(b.Record.CreatedAt), cmp.Compare(a.Record.UUID, b.Record.UUID))
	})
	return all, nil
}

// rows prints a line an app; a sandbox, which has none, has a line of its own.
func (v podView) rows(full bool, row func(...any)) {
	uuid := string(v.UUID)
	if !full {
		uuid = uuid[:8]
	}
	if len(v.Apps) == 0 {
		row(uuid, "-", "-", v.State, ago(&v.CreatedAt), ago(v.StartedAt), v.Owner)
	}
	for i, a := range v.Apps {
		if i == 0 {
			row(uuid, a.Name, a.Image, v.State, ago(&v.CreatedAt), ago(v.StartedAt), v.Owner)
		} else {
			row("", a.Name, a.Image, "", "", "", "")
		}
	}
}
