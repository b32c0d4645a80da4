package shim

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/gantry-cri/gantry/cri"
	"github.com/gantry-cri/gantry/stage0/manifest"
	"github.com/gantry-cri/gantry/stage0/overlay"
	"github.com/gantry-cri/gantry/stage1"
	"github.com/gantry-cri/gantry/stage1/cgroup"
	"github.com/gantry-cri/gantry/stage1/exec"
	"github.com/gantry-cri/gantry/stage1/monitor"
	"github.com/gantry-cri/gantry/stage1/network"
)

// runner is stage1 in the shape that cri asks for.
type runner struct {
	*stage1.Runner
	// For what Details tells:
	cni  *network.Network
	site overlay.Site
}

// ExecSync is part of cri.Executor.
func (r runner) ExecSync(ctx context.Context, u manifest.UUID, app string, cmd []string, timeout time.Duration) (cri.ExecResult, error) {
	res, err := r.Runner.ExecSync(ctx, u, app, cmd, timeout)
	return cri.ExecResult{Stdout: res.Stdout, Stderr: res.Stderr, ExitCode: res.ExitCode}, err
}

// Exec is part of cri.Executor.
func (r runner) Exec(ctx context.Context, u manifest.UUID, app string, cmd []string, s cri.Streams) (int32, error) {
	return r.Runner.Exec(ctx, u, app, stage1.Command{Args: cmd, TTY: s.TTY}, exec.IO{Stdin: s.In, Stdout: s.Out, Stderr: s.Err, Resize: s.Resize})
}

// Attach is part of cri.Executor.
func (r runner) Attach(ctx context.Context, u manifest.UUID, app string, s cri.Streams) error {
	return r.Runner.Attach(ctx, u, app, monitor.AttachIO{
		Stdin: s.In, Stdout: s.Out, Stderr: s.Err, Resize: s.Resize, StdinOnce: s.CloseIn,
	})
}

// Status is part of cri.Node.
func (r runner) Status(ctx context.Context) cri.NodeStatus {
	s := r.Runner.Status(ctx)
	out := cri.NodeStatus{
		RuntimeErr: s.RuntimeErr,
		NetworkErr: s.NetworkErr,
		Systemd:    s.Driver == cgroup.Systemd,
		Handlers:   []cri.Handler{{RecursiveReadOnly: s.RecursiveReadOnly}},
	}
	if s.Runtime.Path != "" {
		out.Runtime = fmt.Sprintf("%s %s (%s): %s", s.Runtime.Name, s.Runtime.Version, s.Runtime.Path, s.Runtime.Reason)
	}
	slices.Sort(s.Handlers)
	for _, name := range s.Handlers {
		out.Handlers = append(out.Handlers, cri.Handler{Name: name, RecursiveReadOnly: s.RecursiveReadOnly})
	}
	return out
}

// Details is part of cri.Node.
func (r runner) Details(ctx context.Context) map[string]any {
	s := r.Runner.Status(ctx)
	details := map[string]any{"cgroups": s.Cgroups, "cgroupDriver": s.Driver, "apparmor": s.AppArmor}
	if conf, err := r.cni.Load(); err == nil {
		details["cniconfig"] = map[string]any{"file": conf.File, "name": conf.Name, "plugins": conf.Plugins, "list": conf.List}
	}
	details["overlay"] = supportText(r.site.Detect(ctx))
	details["overlayIDMapped"] = supportText(r.site.DetectIDMapped(ctx, nil))
	return details
}

// supportText is a finding for people.
func supportText(s overlay.Support, err error) string {
	switch {
	case err != nil:
		return err.Error()
	case !s.OK:
		return s.Reason
	}
	return "OK"
}
