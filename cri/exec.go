package cri

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/manifest"
	"github.com/gantry-cri/gantry/stage0/pod"
)

// maxOutput is how much of each stream ExecSync answers with: two of them stay
// below the 16 MiB that a gRPC message may have.
const maxOutput = 7 << 20

// Executor reaches into containers that run.
type Executor interface {
	// ExecSync runs a command to its end. After the timeout, if it is above 0, all
	// of the command is dead and the error is context.DeadlineExceeded.
	ExecSync(ctx context.Context, u manifest.UUID, app string, cmd []string, timeout time.Duration) (ExecResult, error)
	// Exec runs a command with streams and returns its exit code; all output has
	// been written by then.
	Exec(ctx context.Context, u manifest.UUID, app string, cmd []string, s Streams) (int32, error)
	// Attach connects streams to the main process until it or the client ends.
	Attach(ctx context.Context, u manifest.UUID, app string, s Streams) error
	// PortForward connects a stream to a port of the pod's loopback.
	PortForward(ctx context.Context, u manifest.UUID, port uint16, stream io.ReadWriteCloser) error
	// ReopenLog returns when there is a new file at the log's path.
	ReopenLog(ctx context.Context, u manifest.UUID, app string) error
}

// ExecResult is how a command ended and what it wrote.
type ExecResult struct {
	Stdout, Stderr []byte
	ExitCode       int32
}

// Streams are a client's ends. Those that the client did not ask for are nil.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
	// TTY: the process has a terminal, and Err is nil.
	TTY bool
	// Resize delivers sizes of the terminal until the client goes; it must be drained.
	Resize <-chan specs.Box
	// CloseIn: the end of In closes the process's standard input for good.
	CloseIn bool
}

// streams are the RPCs that reach into containers.
type streams struct {
	index    *index
	executor Executor
	server   streaming.Server
}

func newStreams(x *index, e Executor, base *url.URL) (*streams, error) {
	s := &streams{index: x, executor: e}
	cfg := streaming.DefaultConfig
	// A concrete port from the beginning: the library would fill it in later,
	// without a lock.
	cfg.Addr, cfg.BaseURL = base.Host, base
	server, err := streaming.NewServer(cfg, &streamRuntime{streams: s})
	if err != nil {
		return nil, fmt.Errorf("streaming server: %w", err)
	}
	s.server = server
	return s, nil
}

// StreamHandler serves the URLs that Exec, Attach and PortForward answer with.
func (s *streams) StreamHandler() http.Handler { return s.server }

// running finds a container that runs; ErrState if it does not.
func (s *streams) running(id string) (*entry, error) {
	e, err := s.index.find(pod.KindContainer, id)
	if err != nil {
		return nil, err
	}
	if !isRunning(e) {
		return nil, fmt.Errorf("container %s is not running: %w", e.id(), errdefs.ErrState)
	}
	return e, nil
}

// ExecSync runs a command and answers with its exit code, which is no error
// whatever it is. When its time is up the answer is DeadlineExceeded.
func (s *streams) ExecSync(ctx context.Context, r *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	e, err := s.running(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	if len(r.GetCmd()) == 0 {
		return nil, fmt.Errorf("the command is missing: %w", errdefs.ErrInvalid)
	}
	timeout := time.Duration(max(0, r.GetTimeout())) * time.Second
	res, err := s.executor.ExecSync(ctx, e.uuid(), e.app().Name, r.GetCmd(), timeout)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ExecSyncResponse{
		Stdout:   res.Stdout[:min(len(res.Stdout), maxOutput)],
		Stderr:   res.Stderr[:min(len(res.Stderr), maxOutput)],
		ExitCode: res.ExitCode,
	}, nil
}

// Exec answers with a URL that can be used once.
func (s *streams) Exec(_ context.Context, r *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	e, err := s.running(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	if len(r.GetCmd()) == 0 {
		return nil, fmt.Errorf("the command is missing: %w", errdefs.ErrInvalid)
	}
	return s.server.GetExec(&runtimeapi.ExecRequest{
		ContainerId: e.id(), Cmd: r.GetCmd(), Tty: r.GetTty(),
		Stdin: r.GetStdin(), Stdout: r.GetStdout(), Stderr: r.GetStderr(),
	})
}

// Attach answers with a URL that can be used once.
func (s *streams) Attach(_ context.Context, r *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	e, err := s.running(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	return s.server.GetAttach(&runtimeapi.AttachRequest{
		ContainerId: e.id(), Tty: r.GetTty(),
		Stdin: r.GetStdin(), Stdout: r.GetStdout(), Stderr: r.GetStderr(),
	})
}

// PortForward answers with a URL that can be used once. Its ports may come with
// the streams instead.
func (s *streams) PortForward(_ context.Context, r *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	e, err := s.ready(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	return s.server.GetPortForward(&runtimeapi.PortForwardRequest{PodSandboxId: e.id(), Port: r.GetPort()})
}

func (s *streams) ready(id string) (*entry, error) {
	e, err := s.index.find(pod.KindSandbox, id)
	if err != nil {
		return nil, err
	}
	if e.phase != pod.Up {
		return nil, fmt.Errorf("sandbox %s is not ready: %w", e.id(), errdefs.ErrState)
	}
	return e, nil
}

// ReopenContainerLog returns when there is a new file at the log's path.
func (s *streams) ReopenContainerLog(ctx context.Context, r *runtimeapi.ReopenContainerLogRequest) (*runtimeapi.ReopenContainerLogResponse, error) {
	e, err := s.running(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	if err := s.executor.ReopenLog(ctx, e.uuid(), e.app().Name); err != nil {
		return nil, err
	}
	return &runtimeapi.ReopenContainerLogResponse{}, nil
}

// streamRuntime is what the streaming library calls once a client has come.
type streamRuntime struct{ *streams }

// Exec is part of streaming.Runtime. A non-zero exit is a bare CodeExitError: the
// library knows it by its type alone.
//
//nolint:revive // the library's signature
func (s *streamRuntime) Exec(ctx context.Context, id string, cmd []string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	e, err := s.running(id)
	if err != nil {
		return err
	}
	io, stop := clientStreams(ctx, in, out, errOut, resize)
	defer stop()
	io.TTY, io.CloseIn = tty, true
	code, err := s.executor.Exec(ctx, e.uuid(), e.app().Name, cmd, io)
	if err != nil {
		return err
	}
	if code != 0 {
		return utilexec.CodeExitError{Err: fmt.Errorf("exit code %d", code), Code: int(code)}
	}
	return nil
}

// Attach is part of streaming.Runtime.
//
//nolint:revive // the library's signature
func (s *streamRuntime) Attach(ctx context.Context, id string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	e, err := s.running(id)
	if err != nil {
		return err
	}
	io, stop := clientStreams(ctx, in, out, errOut, resize)
	defer stop()
	io.TTY, io.CloseIn = e.container.GetTty(), e.container.GetStdinOnce()
	if !e.container.GetStdin() {
		io.In = nil
	}
	return s.executor.Attach(ctx, e.uuid(), e.app().Name, io)
}

// PortForward is part of streaming.Runtime.
func (s *streamRuntime) PortForward(ctx context.Context, id string, port int32, stream io.ReadWriteCloser) error {
	e, err := s.ready(id)
	if err != nil {
		return errors.Join(err, stream.Close())
	}
	if port < 1 || port > 65535 {
		return errors.Join(fmt.Errorf("port %d: %w", port, errdefs.ErrInvalid), stream.Close())
	}
	return s.executor.PortForward(ctx, e.uuid(), uint16(port), stream)
}

// clientStreams keeps nil streams nil, which a typed nil in an interface is not,
// and passes sizes on until stop is called or the client goes.
func clientStreams(ctx context.Context, in io.Reader, out, errOut io.WriteCloser, resize <-chan remotecommand.TerminalSize) (Streams, func()) {
	ctx, stop := context.WithCancel(ctx)
	sizes := make(chan specs.Box)
	go func() {
		defer close(sizes)
		for {
			select {
			case <-ctx.Done():
				return
			case size, ok := <-resize:
				if !ok {
					return
				}
				select {
				case sizes <- specs.Box{Width: uint(size.Width), Height: uint(size.Height)}:
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	s := Streams{In: in, Resize: sizes}
	if out != nil {
		s.Out = out
	}
	if errOut != nil {
		s.Err = errOut
	}
	return s, stop
}
