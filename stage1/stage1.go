// Package stage1 runs what was prepared. It takes a pod by its UUID, makes what
// the pod needs outside of its directory (namespaces, network, mounts, cgroups,
// a monitor and an OCI container for each app), says so in intents before it does,
// and undoes by replaying them backwards.
//
//	Run:    lock ▶ check ▶ intents ▶ move to run ▶ effects ▶ ready, started
//	Stop:   signal ▶ wait ▶ kill ▶ cgroup.kill ▶ record the exit ▶ undo
//	Settle: what ended without a word gets its exit record, from the monitor's mailbox
//
// The daemon and the command line both call it; neither owns a running pod. It
// does not log.
package stage1

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/util"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/manifest"
	"github.com/gantry-cri/gantry/stage0/pod"
	"github.com/gantry-cri/gantry/stage0/tree"
	"github.com/gantry-cri/gantry/stage1/apparmor"
	"github.com/gantry-cri/gantry/stage1/cgroup"
	"github.com/gantry-cri/gantry/stage1/monitor"
	"github.com/gantry-cri/gantry/stage1/network"
	"github.com/gantry-cri/gantry/stage1/ociruntime"
)

// Config says with what pods are run.
type Config struct {
	Pods *pod.Pods
	// Trees has the extracted layers.
	Trees *tree.Store
	// RunDir is the daemon's run directory; the OCI runtime keeps its state below it.
	RunDir string
	// Driver says who makes cgroups; empty chooses systemd where it is process 1.
	Driver cgroup.Driver
	// Runtimes are the handlers besides the default, by name.
	Runtimes map[string]Handler
	// Runtime is the path of the default OCI runtime; empty chooses crun, else runc.
	Runtime string
	// Conmon and Init are the paths of conmon and catatonit; empty looks in PATH.
	Conmon, Init string
	Network      network.Config
	// Report is told of what went wrong and was put off to a later sweep; it may be nil.
	Report func(u manifest.UUID, what string, err error)
}

// Handler is a stanza of the configuration that a RuntimeClass names.
type Handler struct {
	// Path is the OCI runtime's path; empty chooses as for the default.
	Path string `json:"path"`
}

// Runner runs, stops and looks after the pods of one data directory. Its methods
// may be called by any number of goroutines and processes at once.
type Runner struct {
	cfg     Config
	pods    *pod.Pods
	cgroups *cgroup.Hierarchy
	network *network.Network
	armor   *apparmor.Kernel

	mu       sync.Mutex // guards runtimes
	runtimes map[string]*ociruntime.Client

	starts sync.Map // manifest.UUID → context.CancelCauseFunc: the starts in flight
}

// Deadlines of the steps that a stop or an undo takes, none of which waits for
// somebody's co-operation for longer.
const (
	lockTimeout    = 20 * time.Second
	killTimeout    = 10 * time.Second
	drainTimeout   = 5 * time.Second
	networkTimeout = 30 * time.Second
	startTimeout   = 90 * time.Second
	createTimeout  = 5 * time.Second
	deleteTimeout  = 3 * time.Second
)

// New returns a runner. A missing OCI runtime or network is no error here: Status
// tells, and whatever needs it fails by name.
func New(cfg Config) (*Runner, error) {
	h, err := cgroup.Detect()
	if err != nil {
		return nil, fmt.Errorf("look at cgroups: %w", err)
	}
	if cfg.Driver == "" {
		cfg.Driver = defaultDriver()
	}
	return &Runner{
		cfg:      cfg,
		pods:     cfg.Pods,
		cgroups:  h,
		network:  network.New(cfg.Network),
		armor:    apparmor.New(filepath.Join(cfg.RunDir, "apparmor")),
		runtimes: map[string]*ociruntime.Client{},
	}, nil
}

// defaultDriver is systemd where it is process 1: two writers to one hierarchy
// would undo each other's work.
func defaultDriver() cgroup.Driver {
	if util.IsRunningSystemd() {
		return cgroup.Systemd
	}
	return cgroup.Cgroupfs
}

// runtime finds the OCI runtime of a handler. Only a success is remembered, so
// that an installed runtime is seen without a restart.
func (r *Runner) runtime(ctx context.Context, handler string) (*ociruntime.Client, error) {
	r.mu.Lock()
	c := r.runtimes[handler]
	r.mu.Unlock()
	if c != nil {
		return c, nil
	}
	path := r.cfg.Runtime
	if handler != "" {
		h, ok := r.cfg.Runtimes[handler]
		if !ok {
			return nil, fmt.Errorf("runtime handler %q is not in the configuration: %w", handler, errdefs.ErrInvalid)
		}
		path = h.Path
	}
	found, err := ociruntime.Choose(ctx, path, r.cgroups)
	if err != nil {
		return nil, fmt.Errorf("runtime handler %q: %w", handler, err)
	}
	c = &ociruntime.Client{
		Runtime:       found,
		Root:          filepath.Join(r.cfg.RunDir, "runtime", found.Name),
		SystemdCgroup: r.cfg.Driver == cgroup.Systemd,
	}
	r.mu.Lock()
	r.runtimes[handler] = c
	r.mu.Unlock()
	return c, nil
}

func (r *Runner) report(u manifest.UUID, what string, err error) {
	if r.cfg.Report != nil && err != nil {
		r.cfg.Report(u, what, err)
	}
}

// conmon finds the monitor's program.
func (r *Runner) conmon() (string, error) { return monitor.Find(r.cfg.Conmon) }
