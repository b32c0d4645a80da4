package stage1

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/manifest"
	"github.com/gantry-cri/gantry/stage0/pod"
	"github.com/gantry-cri/gantry/stage1/exec"
	"github.com/gantry-cri/gantry/stage1/monitor"
	"github.com/gantry-cri/gantry/stage1/namespace"
)

// Spec is the OCI configuration that the app's container was made with; it has a process.
// ErrNotFound says that the app was not started in this boot.
func (r *Runner) Spec(u manifest.UUID, app string) (*specs.Spec, error) {
	raw, err := os.ReadFile(r.pods.AppRunPath(u, app, "bundle", "config.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("configuration of app %s of pod %s: %w", app, u, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("read configuration of app %s: %w", app, err)
	}
	var s specs.Spec
	if err := json.Unmarshal(raw, &s); err != nil {
		return nil, fmt.Errorf("read configuration of app %s: %w", app, err)
	}
	if s.Process == nil {
		return nil, fmt.Errorf("read configuration of app %s: it has no process", app)
	}
	return &s, nil
}

// ExecSync runs a command in a running app and returns what it wrote. After the
// timeout, when it is above 0, the command and all its children are dead and the
// error wraps context.DeadlineExceeded.
func (r *Runner) ExecSync(ctx context.Context, u manifest.UUID, app string, args []string, timeout time.Duration) (exec.Result, error) {
	s, err := r.execSpec(u, app, args)
	if err != nil {
		return exec.Result{}, err
	}
	s.Timeout = timeout
	return exec.Sync(ctx, s)
}

// Command is what Exec runs.
type Command struct {
	Args []string
	// TTY gives the command a terminal.
	TTY bool
}

// Exec runs a command in a running app with streams. It returns the exit code.
func (r *Runner) Exec(ctx context.Context, u manifest.UUID, app string, cmd Command, streams exec.IO) (int32, error) {
	s, err := r.execSpec(u, app, cmd.Args)
	if err != nil {
		return 0, err
	}
	s.Process.Terminal = cmd.TTY
	return exec.Stream(ctx, s, streams)
}

func (r *Runner) execSpec(u manifest.UUID, app string, args []string) (exec.Spec, error) {
	if len(args) == 0 {
		return exec.Spec{}, fmt.Errorf("exec in app %s: the command is empty: %w", app, errdefs.ErrInvalid)
	}
	started, c, err := r.running(u, app)
	if err != nil {
		return exec.Spec{}, err
	}
	config, err := r.Spec(u, app)
	if err != nil {
		return exec.Spec{}, err
	}
	process := *config.Process
	process.Args, process.Terminal, process.ConsoleSize = args, false, nil
	return exec.Spec{
		Runtime: c.client(),
		ID:      c.ID,
		Process: &process,
		Dir:     r.pods.AppRunPath(u, app),
		Cgroups: r.cgroups,
		Cgroup:  started.Cgroup,
	}, nil
}

// running finds an app that runs; ErrState if it does not.
func (r *Runner) running(u manifest.UUID, app string) (pod.Started, containerIntent, error) {
	p, err := r.pods.Load(u)
	if err != nil {
		return pod.Started{}, containerIntent{}, err
	}
	switch ph := p.AppPhase(app); ph {
	case pod.Up, pod.Unmonitored:
	default:
		return pod.Started{}, containerIntent{}, fmt.Errorf("app %s of pod %s is not running (%s): %w", app, u, ph, errdefs.ErrState)
	}
	intents, err := r.pods.Intents(u)
	if err != nil {
		return pod.Started{}, containerIntent{}, err
	}
	c, ok, err := findContainer(intents, app)
	if err != nil || !ok {
		return pod.Started{}, containerIntent{}, errors.Join(err, fmt.Errorf("app %s of pod %s has no container: %w", app, u, errdefs.ErrState))
	}
	return p.Started[app], c, nil
}

// Attach connects streams to the main process of a running app.
func (r *Runner) Attach(ctx context.Context, u manifest.UUID, app string, streams monitor.AttachIO) error {
	if _, _, err := r.running(u, app); err != nil {
		return err
	}
	bundle := r.pods.AppRunPath(u, app, "bundle")
	streams.Control = monitor.ControlPath(bundle)
	return monitor.Attach(ctx, monitor.AttachPath(bundle), streams)
}

// ReopenLog makes the monitor write to a new file at the log's path; when nil is
// returned the file is there.
func (r *Runner) ReopenLog(ctx context.Context, u manifest.UUID, app string) error {
	started, _, err := r.running(u, app)
	if err != nil {
		return err
	}
	p, err := r.pods.Load(u)
	if err != nil {
		return err
	}
	log, err := r.LogPath(p, app)
	if err != nil {
		return err
	}
	return monitor.ReopenLog(ctx, monitor.ReopenSpec{
		Control: monitor.ControlPath(r.pods.AppRunPath(u, app, "bundle")),
		LogPath: log,
		Monitor: started.Monitor,
	})
}

// PortForward connects a stream to a port of the pod: on the loopback of its
// network namespace, or of the node for pods in the node's network.
func (r *Runner) PortForward(ctx context.Context, u manifest.UUID, port uint16, stream io.ReadWriteCloser) error {
	pin := namespace.Pin(r.pods.RunPath(u, "ns"), namespace.Net)
	pinned, err := namespace.IsPinned(pin)
	if err != nil {
		return err
	}
	if !pinned {
		pin = ""
	}
	conn, err := namespace.Dial(ctx, pin, port)
	if err != nil {
		return err
	}
	return namespace.Forward(ctx, conn, stream)
}
