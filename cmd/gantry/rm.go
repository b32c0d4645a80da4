package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/pod"
)

func newRm(o *options) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "rm UUID...",
		Short: "Remove pods that do not run",
		Args:  atLeastOne("UUID of a pod"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return needRoot(func() error { return removePods(cmd, o, args, force) })
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "running pods and pods of the kubelet too")
	return cmd
}

func removePods(cmd *cobra.Command, o *options, args []string, force bool) error { //nolint:revive // force is the user's flag
	h, err := o.house()
	if err != nil {
		return err
	}
	pods, err := h.mine(args, force)
	if err != nil {
		return err
	}
	for _, p := range pods {
		if p.State() == pod.Running && !force {
			return hintError{fmt.Errorf("pod %s is running: %w", p.Record.UUID, errdefs.ErrState), "gantry stop it first, or say --force"}
		}
	}
	for _, p := range pods {
		if err := h.remove(cmd, p); err != nil {
			return err
		}
		fmt.Fprintln(cmd.OutOrStdout(), p.Record.UUID)
	}
	return nil
}

// remove deletes a pod; the containers of a sandbox go before it.
func (h *house) remove(cmd *cobra.Command, p *pod.Pod) error {
	members, err := h.members(p)
	if err != nil {
		return err
	}
	for _, u := range append(members, p.Record.UUID) {
		if err := h.runner.Remove(cmd.Context(), u); err != nil {
			return err
		}
	}
	return nil
}
