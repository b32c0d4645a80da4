package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/gantry-cri/gantry/cmd/gantry/podargs"
	"github.com/gantry-cri/gantry/stage0/manifest"
	"github.com/gantry-cri/gantry/stage0/pod"
)

func newRun(o *options) *cobra.Command {
	var how running
	cmd := &cobra.Command{
		Use:   "run" + podUse,
		Short: "Prepare a pod and run it",
		Long:  "Do what gantry prepare and then gantry run-prepared do." + podLong,
	}
	parser := podargs.New(cmd.Flags())
	var mode progressMode
	mode.register(cmd.Flags())
	how.register(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		request, err := parsePod(parser, args)
		if err != nil {
			return err
		}
		return needRoot(func() error {
			h, err := o.house()
			if err != nil {
				return err
			}
			u, err := prepare(cmd.Context(), h.Pipeline, request, newProgress(cmd.ErrOrStderr(), mode))
			if err != nil {
				return err
			}
			err = h.run(cmd, u, how)
			if err != nil && !errors.As(err, new(appExit)) {
				err = errors.Join(err, h.dropUnstarted(cmd.Context(), u))
			}
			return err
		})
	}
	return cmd
}

// dropUnstarted removes the pod of a run that failed before any app started:
// nobody was told its UUID.
func (h *house) dropUnstarted(ctx context.Context, u manifest.UUID) error {
	p, err := h.Pods.Load(u)
	if err != nil || p.Place != pod.InPrepared {
		return err
	}
	return h.runner.Remove(context.WithoutCancel(ctx), u)
}
