package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/gantry-cri/gantry/stage0/pod"
)

func newStatus(o *options) *cobra.Command {
	var format format
	var wait, waitReady bool
	cmd := &cobra.Command{
		Use:   "status UUID",
		Short: "Print the state of a pod",
		Args:  exactly(1, "the UUID of a pod"),
		RunE: func(cmd *cobra.Command, args []string) error {
			h, err := o.house()
			if err != nil {
				return err
			}
			u, err := h.Pods.Resolve(args[0])
			if err != nil {
				return err
			}
			p, err := h.load(cmd.Context(), u)
			for err == nil && (wait && p.State() != pod.Exited || waitReady && !started(p)) {
				if err = pause(cmd.Context()); err == nil {
					p, err = h.load(cmd.Context(), u)
				}
			}
			if err != nil {
				return err
			}
			if format.json {
				return printJSON(cmd.OutOrStdout(), h.view(p))
			}
			printStatus(cmd.OutOrStdout(), h.view(p))
			return nil
		},
	}
	format.register(cmd.Flags())
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until the pod has exited")
	cmd.Flags().BoolVar(&waitReady, "wait-ready", false, "wait until the pod runs, or has exited")
	return cmd
}

func started(p *pod.Pod) bool {
	s := p.State()
	return s == pod.Exited || s == pod.Running && (p.Ready || len(p.Started) > 0)
}

// pause lets time pass between two looks at a pod.
func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(100 * time.Millisecond):
		return nil
	}
}

// printStatus prints name=value lines, as rkt did.
func printStatus(w io.Writer, v podView) {
	fmt.Fprintf(w, "uuid=%s\nid=%s\nowner=%s\nkind=%s\nstate=%s\ncreated=%s\n",
		v.UUID, v.ID, v.Owner, v.Kind, v.State, v.CreatedAt.Format(time.RFC3339))
	if v.StartedAt != nil {
		fmt.Fprintf(w, "started=%s\n", v.StartedAt.Format(time.RFC3339))
	}
	fmt.Fprintf(w, "networks=%s\n", v.networks())
	if v.Sandbox != "" {
		fmt.Fprintf(w, "sandbox=%s\n", v.Sandbox)
	}
	fmt.Fprintf(w, "exited=%t\n", v.State == pod.Exited)
	for _, a := range v.Apps {
		fmt.Fprintf(w, "app-%s-state=%s\n", a.Name, a.State)
		if a.PID != 0 {
			fmt.Fprintf(w, "app-%s-pid=%d\n", a.Name, a.PID)
		}
		if a.ExitCode != nil {
			fmt.Fprintf(w, "app-%s=%d\n", a.Name, *a.ExitCode)
		}
	}
}
