// Package ociruntime finds the OCI runtime of the node and runs its commands:
// start, kill, delete, state and update. Creating a container is the monitor's
// (package monitor), running a command in one is package exec's.
//
// Each call here starts a program, some milliseconds: nothing on a hot path asks
// it. How a container is doing is read from /proc, the cgroup and the monitor's
// exit file.
package ociruntime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go/features"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage1/cgroup"
)

// The runtimes that are looked for, the preferred one first.
const (
	crun = "crun"
	runc = "runc"
)

// Runtime is an OCI runtime on this node.
type Runtime struct {
	// Name is what the program calls itself: crun, runc or another.
	Name string
	// Path is absolute.
	Path string
	// Version is as the program prints it, "1.1.5+ds1".
	Version string
	// Reason says in words why this one was chosen.
	Reason string
}

// hybridReason is why crun is passed over; every version of it refuses.
const hybridReason = "crun refuses a hybrid cgroup hierarchy whose v2 part holds controllers (here: %s)"

// Choose finds the runtime: the configured one, a path or a name in PATH, or
// without one crun, else runc. Where crun would refuse the node's cgroups, runc
// is taken and Reason says why. A runtime that is missing or cannot work here is
// ErrUnsupported, and the text says what to install.
func Choose(ctx context.Context, configured string, h *cgroup.Hierarchy) (Runtime, error) {
	return choose(ctx, configured, refusal(h), lookup)
}

// refusal says why crun would refuse the node's cgroups; it is empty where crun works.
func refusal(h *cgroup.Hierarchy) string {
	held := h.UnifiedControllers()
	if h.Mode() != cgroup.Hybrid || len(held) == 0 {
		return ""
	}
	return fmt.Sprintf(hybridReason, strings.Join(held, " "))
}

func choose(ctx context.Context, configured, refused string, find func(string) (string, error)) (Runtime, error) {
	if configured != "" {
		r, err := chooseConfigured(ctx, configured, find)
		if err == nil && r.Name == crun && refused != "" {
			err = fmt.Errorf("the configured OCI runtime %q cannot work here: %s: install runc and configure that: %w",
				configured, refused, errdefs.ErrUnsupported)
		}
		return r, err
	}
	crunPath, crunErr := find(crun)
	if crunErr == nil && refused == "" {
		return probe(ctx, crunPath, "crun is preferred")
	}
	runcPath, runcErr := find(runc)
	switch {
	case runcErr == nil && crunErr == nil:
		return probe(ctx, runcPath, refused)
	case runcErr == nil:
		return probe(ctx, runcPath, "crun is not installed")
	case crunErr == nil:
		return Runtime{}, fmt.Errorf("%s is the only OCI runtime, but %s: install runc: %w", crunPath, refused, errdefs.ErrUnsupported)
	default:
		return Runtime{}, fmt.Errorf("no OCI runtime: neither crun nor runc is in PATH (%s): install one of them: %w",
			os.Getenv("PATH"), errdefs.ErrUnsupported)
	}
}

func chooseConfigured(ctx context.Context, configured string, find func(string) (string, error)) (Runtime, error) {
	path, err := find(configured)
	if err != nil {
		return Runtime{}, fmt.Errorf("the configured OCI runtime %q: %w", configured, err)
	}
	return probe(ctx, path, "it is configured")
}

// lookup finds a program as a shell does; a daemon's PATH often lacks sbin,
// where Debian keeps runc.
func lookup(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil && !strings.ContainsRune(name, '/') {
		for _, dir := range []string{"/usr/local/sbin", "/usr/sbin", "/sbin"} {
			if path, err = exec.LookPath(filepath.Join(dir, name)); err == nil {
				break
			}
		}
	}
	if err != nil {
		return "", fmt.Errorf("%s is not there or not executable: %w", name, errdefs.ErrUnsupported)
	}
	return filepath.Abs(path)
}

// probe asks the program who it is.
func probe(ctx context.Context, path, reason string) (Runtime, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	out, _, err := output(command(ctx, path, "--version"))
	if err != nil {
		return Runtime{}, fmt.Errorf("%s --version: %w", path, err)
	}
	name, version, ok := parseVersion(string(out))
	if !ok {
		return Runtime{}, fmt.Errorf("%s --version says %.80q, not a name and a version: %w", path, firstLine(string(out)), errdefs.ErrUnsupported)
	}
	return Runtime{Name: name, Path: path, Version: version, Reason: reason}, nil
}

// parseVersion reads the first line of --version, "crun version 1.8.1" or "runc version
// 1.1.5+ds1".
func parseVersion(out string) (name, version string, ok bool) {
	f := strings.FieldsFunc(firstLine(out), func(r rune) bool { return strings.ContainsRune(" \t\n\f\r", r) })
	if len(f) != 3 || f[1] != "version" || !isWord(f[0]) || !isWord(f[2]) {
		return "", "", false
	}
	return f[0], f[2], true
}

// isWord says whether s may stand in a record and in a message.
func isWord(s string) bool {
	return len(s) <= 64 && !strings.ContainsFunc(s, func(r rune) bool { return r < '!' || r > '~' })
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// Features asks the runtime what it can do (OCI runtime-spec, features.md).
// ErrUnsupported says that it has no such command, as crun before 1.9.
func (r Runtime) Features(ctx context.Context) (*features.Features, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	out, stderr, err := output(command(ctx, r.Path, "features"))
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		return nil, fmt.Errorf("%s features: %s: %w", r.Path, Reason(stderr), errdefs.ErrUnsupported)
	}
	if err != nil {
		return nil, fmt.Errorf("%s features: %w", r.Path, err)
	}
	f, err := parseFeatures(out)
	if err != nil {
		return nil, fmt.Errorf("%s features: %w", r.Path, err)
	}
	return f, nil
}

// parseFeatures refuses what is JSON and says nothing: every runtime that has the
// command names the versions that it knows.
func parseFeatures(out []byte) (*features.Features, error) {
	var f features.Features
	if err := json.Unmarshal(out, &f); err != nil {
		return nil, unreadable(err)
	}
	if f.OCIVersionMin == "" || f.OCIVersionMax == "" {
		return nil, errors.New("its answer names no version of the specification")
	}
	return &f, nil
}
