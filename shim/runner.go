package shim

import (
	"context"
	"fmt"
	"time"

	"github.com/gantry-cri/gantry/cri"
	"github.com/gantry-cri/gantry/stage0/manifest"
	"github.com/gantry-cri/gantry/stage1"
	"github.com/gantry-cri/gantry/stage1/cgroup"
	"github.com/gantry-cri/gantry/stage1/exec"
	"github.com/gantry-cri/gantry/stage1/monitor"
)

// runner is stage1 in the shape that cri asks for.
type runner struct{ *stage1.Runner }

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
		Details: map[string]any{
			"cgroups":      s.Cgroups,
			"cgroupDriver": s.Driver,
		},
	}
	if s.Runtime.Path != "" {
		out.Runtime = fmt.Sprintf("%s %s (%s): %s", s.Runtime.Name, s.Runtime.Version, s.Runtime.Path, s.Runtime.Reason)
	}
	for _, name := range s.Handlers {
		out.Handlers = append(out.Handlers, cri.Handler{Name: name, RecursiveReadOnly: s.RecursiveReadOnly})
	}
	return out
}
