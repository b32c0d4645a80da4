package network

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"
)

// PluginError is the failure of one plugin. Err is a *types.Error when the plugin
// spoke for itself, ctx's error when it was killed.
type PluginError struct {
	// Plugin is the name of the binary, Command is ADD or DEL.
	Plugin, Command string
	Err             error
}

// Error names plugin and command, then gives the plugin's own words.
func (e *PluginError) Error() string {
	return fmt.Sprintf("plugin %s: %s: %v", e.Plugin, e.Command, e.Err)
}

// Unwrap gives the cause.
func (e *PluginError) Unwrap() error { return e.Err }

// inner takes libcni's frame off: it repeats the plugin's name and the command.
func inner(err error) error {
	var p *PluginError
	if errors.As(err, &p) {
		return p
	}
	return err
}

// runner runs plugins for libcni; its own would leave a hanging plugin's children
// alive and say nothing of who hung.
type runner struct {
	version.PluginDecoder
	lock *os.File // inherited by the plugins; nil: none
}

// Bounds on what a plugin may say, and on how long its output is waited for once it was killed.
const (
	maxOutput = 1 << 20
	killWait  = time.Second
)

// FindInPath is libcni's way to a plugin's path.
func (*runner) FindInPath(plugin string, dirs []string) (string, error) {
	path, err := findPlugin(plugin, dirs)
	if err != nil {
		return "", &PluginError{plugin, "find", err}
	}
	return path, nil
}

func findPlugin(plugin string, dirs []string) (string, error) {
	if plugin == "" || strings.ContainsRune(plugin, filepath.Separator) || plugin == "." || plugin == ".." {
		return "", fmt.Errorf("%q is not a plugin name", plugin)
	}
	for _, dir := range dirs {
		path := filepath.Join(dir, plugin)
		if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("not found in %s", strings.Join(dirs, ", "))
}

// ExecPlugin runs one plugin to its end or ctx's.
func (r *runner) ExecPlugin(ctx context.Context, path string, stdin []byte, env []string) ([]byte, error) {
	command := ""
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, "CNI_COMMAND="); ok {
			command = v
		}
	}
	out, err := r.run(ctx, path, stdin, env)
	// A plugin that is just being replaced is busy for an instant.
	for try := 0; try < 10 && errors.Is(err, unix.ETXTBSY) && ctx.Err() == nil; try++ {
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
		out, err = r.run(ctx, path, stdin, env)
	}
	var said *types.Error
	if command == "DEL" && errors.As(err, &said) && said.Code == types.ErrUnknownContainer {
		// By CNI's specification: nothing is left to clean up.
		return nil, nil
	}
	if err == nil {
		err = checkResult(out)
	}
	if err != nil {
		return nil, &PluginError{filepath.Base(path), command, err}
	}
	return out, nil
}

// checkResult refuses a null where CNI has an object: libcni follows the nil pointer
// that it becomes. What is no result at all libcni says itself.
func checkResult(out []byte) error {
	var r struct {
		Interfaces, IPs, Routes []*json.RawMessage
	}
	if json.Unmarshal(out, &r) != nil {
		return nil
	}
	if slices.Contains(slices.Concat(r.Interfaces, r.IPs, r.Routes), nil) {
		return errors.New("its result has a null among its interfaces, addresses or routes")
	}
	return nil
}

func (r *runner) run(ctx context.Context, path string, stdin []byte, env []string) ([]byte, error) {
	// A plugin does not outlive us: nobody would undo what it goes on to do. The
	// kernel sees to that when the thread ends that started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	stdout, stderr := &capped{}, &capped{}
	c := exec.CommandContext(ctx, path)
	c.Env, c.Stdin, c.Stdout, c.Stderr = env, bytes.NewReader(stdin), stdout, stderr
	// A group of its own, so that the plugins that it started die with it.
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if r.lock != nil {
		c.ExtraFiles = []*os.File{r.lock}
	}
	c.Cancel = func() error { return unix.Kill(-c.Process.Pid, unix.SIGKILL) }
	c.WaitDelay = killWait
	err := c.Run()
	if ctx.Err() != nil && err != nil {
		return nil, fmt.Errorf("killed, it did not end in time: %w", ctx.Err())
	}
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil // it ended well; something that it left behind holds its output
	}
	if err == nil && stdout.Len() >= maxOutput {
		err = fmt.Errorf("said more than %d bytes", maxOutput)
	}
	if err == nil {
		return stdout.Bytes(), nil
	}
	return nil, said(err, stdout.Bytes(), stderr.Bytes())
}

// said prefers the plugin's own words: its error on stdout, else the end of stderr.
func said(err error, stdout, stderr []byte) error {
	var own types.Error
	if json.Unmarshal(stdout, &own) == nil && (own.Msg != "" || own.Code != 0) {
		return &own
	}
	text := strings.TrimSpace(string(stderr))
	if text == "" {
		text = strings.TrimSpace(string(stdout))
	}
	if text == "" {
		return err
	}
	if len(text) > 1024 {
		text = "…" + text[len(text)-1024:]
	}
	return fmt.Errorf("%w: %q", err, text)
}

// capped keeps the first maxOutput bytes and takes the rest without a word, so
// that a talkative plugin neither blocks nor fills the memory.
type capped struct{ bytes.Buffer }

// Write never fails.
func (c *capped) Write(p []byte) (int, error) {
	c.Buffer.Write(p[:min(len(p), maxOutput-c.Len())])
	return len(p), nil
}
