package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/gantry-cri/gantry/stage0/manifest"
	"github.com/gantry-cri/gantry/stage0/pod"
)

// stopGrace is what an interrupted command leaves its apps to end by themselves.
const stopGrace = 10 * time.Second

// run starts a pod and, unless it is detached, stays with it to its end.
func (h *house) run(cmd *cobra.Command, u manifest.UUID, how running) error {
	if err := h.runner.RunWith(cmd.Context(), u, how.Options); err != nil {
		return err
	}
	if how.detach {
		fmt.Fprintln(cmd.OutOrStdout(), u)
		return nil
	}
	p, err := h.Pods.Load(u)
	if err != nil {
		return err
	}
	// From here on the pod is stopped when the command is interrupted, so the
	// watching itself must not be.
	ctx := context.WithoutCancel(cmd.Context())
	stopped := make(chan error, 1)
	release := context.AfterFunc(cmd.Context(), func() { stopped <- h.runner.Stop(ctx, u, stopGrace) })
	code, err := h.follow(ctx, p, output{cmd.OutOrStdout(), cmd.ErrOrStderr()})
	if !release() {
		err = errors.Join(err, <-stopped)
	}
	if err == nil && code != 0 {
		err = appExit(code)
	}
	return err
}

// follow prints what the apps say until all have ended, and returns the first
// exit code in their order that is not 0.
func (h *house) follow(ctx context.Context, p *pod.Pod, out output) (int, error) {
	type end struct {
		code int32
		err  error
	}
	ends := make([]chan end, len(p.Record.Apps))
	for i, a := range p.Record.Apps {
		ends[i] = make(chan end, 1)
		exits, err := h.runner.Watch(ctx, p.Record.UUID, a.Name)
		if err != nil {
			return 0, err
		}
		path, err := h.runner.LogPath(p, a.Name)
		if err != nil {
			return 0, err
		}
		log := follower{path: path, out: out}
		go func() {
			code, err := log.until(exits)
			ends[i] <- end{code, err}
		}()
	}
	code := 0
	var errs []error
	for _, c := range ends {
		e := <-c
		errs = append(errs, e.err)
		if code == 0 {
			code = int(e.code) & 0xff
		}
	}
	return code, errors.Join(errs...)
}
