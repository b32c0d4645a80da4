package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/gantry-cri/gantry/stage0/pod"
	"github.com/gantry-cri/gantry/stage1/doctor"
	"github.com/gantry-cri/gantry/stage1/network"
)

// fixTimeout bounds what all removals wait for.
const fixTimeout = 2 * time.Minute

func newDoctor(o *options) *cobra.Command {
	var format format
	var fix bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Find what no pod claims: processes, networks, namespaces, mounts, cgroups",
		Long: "Compare what the kernel has with what pods claim, and print what no pod claims.\nIt ends with code 1 if something is left. A sweep (gantry gc) undoes what pods do\nclaim; the doctor is for what a sweep cannot know of.\n\n" +
			"Cgroups are looked for in gantry's own, among systemd's monitor scopes, and in those\nthat a kubelet made for the sandboxes of which the directory is there; one whose start\nwas killed before it was marked is left.",
		Args: exactly(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return needRoot(func() error { return examine(cmd, o, format, fix) })
		},
	}
	format.register(cmd.Flags())
	cmd.Flags().BoolVar(&fix, "fix", false, "remove it, where it bears the mark of these directories")
	return cmd
}

func examine(cmd *cobra.Command, o *options, format format, fix bool) error { //nolint:revive // fix is the user's flag
	cfg, err := o.load()
	if err != nil {
		return err
	}
	pods, err := pod.Open(cfg.Dir, cfg.RunDir)
	if err != nil {
		return err
	}
	d, err := doctor.New(pods, network.New(cfg.Network()), cfg.Dir, cfg.RunDir)
	if err != nil {
		return err
	}
	var found []doctor.Finding
	if fix {
		ctx, cancel := context.WithTimeout(cmd.Context(), fixTimeout)
		defer cancel()
		found, err = d.Fix(ctx)
	} else {
		found, err = d.Examine()
	}
	if err := errors.Join(err, printFindings(cmd, format, found)); err != nil {
		return err
	}
	if slices.ContainsFunc(found, func(f doctor.Finding) bool { return !f.Fixed }) {
		return errors.New("no pod claims what is listed")
	}
	return nil
}

func printFindings(cmd *cobra.Command, format format, found []doctor.Finding) error {
	if format.json {
		return printJSON(cmd.OutOrStdout(), append([]doctor.Finding{}, found...))
	}
	if len(found) == 0 {
		fmt.Fprintln(cmd.OutOrStdout(), "nothing is there that no pod claims")
		return nil
	}
	return table(cmd.OutOrStdout(), "KIND\tNAME\tPOD\tSTATE", func(row func(...any)) {
		for _, f := range found {
			state := "left"
			switch {
			case f.Fixed:
				state = "removed"
			case f.Error != "":
				state = "left: " + f.Error
			}
			row(f.Kind, f.Name, f.Pod, state)
		}
	})
}
