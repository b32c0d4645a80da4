package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/gantry-cri/gantry/stage0/pod"
)

func newStop(o *options) *cobra.Command {
	var force bool
	var grace time.Duration
	cmd := &cobra.Command{
		Use:   "stop UUID...",
		Short: "Stop running pods",
		Args:  atLeastOne("UUID of a pod"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return needRoot(func() error {
				if force && !cmd.Flags().Changed("grace-period") {
					grace = 0
				}
				return stopPods(cmd, o, args, stopping{force, grace})
			})
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "kill at once, and pods of the kubelet too")
	cmd.Flags().DurationVar(&grace, "grace-period", 10*time.Second, "`TIME` between the stop signal and SIGKILL")
	return cmd
}

// stopping says how pods are stopped.
type stopping struct {
	force bool
	grace time.Duration
}

func stopPods(cmd *cobra.Command, o *options, args []string, how stopping) error {
	h, err := o.house()
	if err != nil {
		return err
	}
	pods, err := h.mine(args, how.force)
	if err != nil {
		return err
	}
	for _, p := range pods {
		if err := h.stop(cmd, p, how.grace); err != nil {
			return err
		}
		fmt.Fprintln(cmd.OutOrStdout(), p.Record.UUID)
	}
	return nil
}

// stop ends a pod; the containers of a sandbox go before it.
func (h *house) stop(cmd *cobra.Command, p *pod.Pod, grace time.Duration) error {
	members, err := h.members(p)
	if err != nil {
		return err
	}
	for _, u := range append(members, p.Record.UUID) {
		if err := h.runner.Stop(cmd.Context(), u, grace); err != nil {
			return err
		}
	}
	return nil
}
