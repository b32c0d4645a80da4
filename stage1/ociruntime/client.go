package ociruntime

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

const (
	probeTimeout   = 10 * time.Second
	defaultTimeout = 30 * time.Second
	// pipeDelay is how long a killed runtime's children may hold its stderr.
	pipeDelay = 500 * time.Millisecond
	// maxReason caps what of a runtime's output goes into an error.
	maxReason = 2048
	// maxOutput is the most that is kept of what a runtime says, bytes: a state has the
	// container's annotations.
	maxOutput = 4 << 20
)

// Client runs the commands of a runtime on the containers of one root.
type Client struct {
	Runtime
	// Root is where the runtime keeps its state: a directory of the daemon's run
	// directory, made when it is missing, so that two daemons never meet.
	Root string
	// SystemdCgroup says that the systemd driver is used.
	SystemdCgroup bool
	// Timeout ends a command when the context has no earlier end; zero is 30 s.
	Timeout time.Duration
}

// Args are the arguments that stand before each command.
func (c *Client) Args() []string {
	args := []string{"--root", c.Root}
	if c.SystemdCgroup {
		args = append(args, "--systemd-cgroup")
	}
	return args
}

// Has says whether the runtime keeps a container of this id: a stat, no program.
func (c *Client) Has(id string) bool {
	_, err := os.Stat(filepath.Join(c.Root, id))
	return err == nil
}

// Start lets a created container run.
func (c *Client) Start(ctx context.Context, id string) error {
	_, err := c.run(ctx, nil, "start", id)
	return err
}

// Kill sends a signal to the container's init process. Prefer proc.Signal: this
// is for runtimes whose init is not a process of the node.
func (c *Client) Kill(ctx context.Context, id string, sig unix.Signal) error {
	_, err := c.run(ctx, nil, "kill", id, strconv.Itoa(int(sig)))
	return err
}

// Delete removes the runtime's state and the container's cgroup, and kills a
// container that runs. It is idempotent: what is not there is deleted.
func (c *Client) Delete(ctx context.Context, id string) error {
	_, err := c.run(ctx, nil, "delete", "--force", id)
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil
	}
	return err
}

// State asks the runtime for the container's state.
func (c *Client) State(ctx context.Context, id string) (specs.State, error) {
	out, err := c.run(ctx, nil, "state", id)
	if err != nil {
		return specs.State{}, err
	}
	s, err := parseState(out, id)
	if err != nil {
		return specs.State{}, fmt.Errorf("%s state %s: %w", c.Name, id, err)
	}
	return s, nil
}

// parseState reads an answer and holds it to what every runtime must say: which
// container it is, how it is, and by which process if it runs.
func parseState(out []byte, id string) (specs.State, error) {
	var s specs.State
	if err := json.Unmarshal(out, &s); err != nil {
		return specs.State{}, unreadable(err)
	}
	if s.ID != id || s.Status == "" || s.Pid < 0 || s.Status == specs.StateRunning && s.Pid == 0 {
		return specs.State{}, fmt.Errorf("its answer is of container %.80q, status %.80q, pid %d", s.ID, s.Status, s.Pid)
	}
	return s, nil
}

// unreadable bounds what the decoder of JSON says, which quotes what it could not read.
func unreadable(err error) error { return fmt.Errorf("its answer cannot be read: %.200s", err.Error()) }

// Update changes the limits of the container; what r leaves out stays.
func (c *Client) Update(ctx context.Context, id string, r *specs.LinuxResources) error {
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("%s update %s: %w", c.Name, id, err)
	}
	_, err = c.run(ctx, bytes.NewReader(b), "update", "--resources", "/dev/stdin", id)
	return err
}

// run runs one command; the container's id is its last or second argument.
func (c *Client) run(ctx context.Context, stdin io.Reader, args ...string) ([]byte, error) {
	timeout := c.Timeout
	if timeout == 0 {
		timeout = defaultTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cmd := command(ctx, c.Path, append(append(c.Args(), "--log-format", "json"), args...)...)
	cmd.Stdin = stdin
	out, stderr, err := output(cmd)
	if err == nil {
		return out, nil
	}
	id := args[1]
	if args[0] == "delete" || args[0] == "update" {
		id = args[len(args)-1]
	}
	return nil, c.explain(ctx, err, stderr, args[0], id)
}

// explain makes one error of how a command ended and what it said.
func (c *Client) explain(ctx context.Context, err error, stderr []byte, verb, id string) error {
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s %s %s: the runtime %s is gone: %w", c.Name, verb, id, c.Path, err)
	}
	if !c.Has(id) {
		return fmt.Errorf("%s %s: container %s: %w", c.Name, verb, id, errdefs.ErrNotFound)
	}
	if reason := Reason(stderr); reason != "" {
		return fmt.Errorf("%s %s %s: %s: %w", c.Name, verb, id, reason, err)
	}
	return fmt.Errorf("%s %s %s: %w", c.Name, verb, id, err)
}

// command prepares a program that a signal to our terminal does not reach and
// that is killed with the context.
func command(ctx context.Context, path string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = Environ()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = pipeDelay
	return cmd
}

// output runs a program and returns what it said. One that said more than maxOutput
// has failed.
func output(cmd *exec.Cmd) (stdout, stderr []byte, err error) {
	out, errs := &capped{}, &capped{}
	cmd.Stdout, cmd.Stderr = out, errs
	err = cmd.Run()
	if err == nil && out.more {
		err = fmt.Errorf("it said more than %d bytes", maxOutput)
	}
	return out.kept.Bytes(), errs.kept.Bytes(), err
}

// capped keeps the first maxOutput bytes and takes the rest without a word, so that a
// talkative program neither blocks nor fills the memory.
type capped struct {
	kept bytes.Buffer
	more bool // something was not kept
}

// Write never fails.
func (c *capped) Write(p []byte) (int, error) {
	room := maxOutput - c.kept.Len()
	c.more = c.more || len(p) > room
	c.kept.Write(p[:min(len(p), room)])
	return len(p), nil
}

// Environ is the environment that a runtime is started with: ours without what
// would make it talk to somebody (systemd's notify and listen sockets).
func Environ() []string {
	var env []string
	for _, e := range os.Environ() {
		name, _, _ := strings.Cut(e, "=")
		switch name {
		case "PATH", "HOME", "LANG", "LC_ALL", "XDG_RUNTIME_DIR", "DBUS_SYSTEM_BUS_ADDRESS":
			env = append(env, e)
		}
	}
	return env
}

// Reason takes the cause of a failure out of what a runtime wrote to its log or
// its stderr: the messages of JSON lines of level error, else the last lines as
// they are. It is empty if there is nothing.
func Reason(log []byte) string {
	var errs, lines []string
	for line := range bytes.Lines(log) {
		line = bytes.TrimSpace(line)
		var entry struct{ Level, Msg string }
		if json.Unmarshal(line, &entry) == nil && entry.Msg != "" {
			if entry.Level == "error" || entry.Level == "fatal" {
				errs = append(errs, entry.Msg)
			}
			continue
		}
		if len(line) > 0 {
			lines = append(lines, string(line))
		}
	}
	if len(errs) == 0 {
		errs = lines[max(0, len(lines)-5):]
	}
	// A runtime may say the same to its log and to stderr.
	reason := strings.TrimSpace(strings.ToValidUTF8(strings.Join(dedup(errs), "; "), "�"))
	if len(reason) > maxReason {
		reason = strings.ToValidUTF8(reason[:maxReason], "") + "…" // no half a character
	}
	return reason
}

func dedup(list []string) []string {
	var out []string
	for _, s := range list {
		if len(out) == 0 || out[len(out)-1] != s {
			out = append(out, s)
		}
	}
	return out
}
