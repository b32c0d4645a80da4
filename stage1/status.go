package stage1

import (
	"context"
	"fmt"
	"path/filepath"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/stage0/manifest"
	"github.com/gantry-cri/gantry/stage0/pod"
	"github.com/gantry-cri/gantry/stage1/cgroup"
	"github.com/gantry-cri/gantry/stage1/namespace"
	"github.com/gantry-cri/gantry/stage1/ociruntime"
	"github.com/gantry-cri/gantry/translate"
)

// NodeStatus says whether and with what this node can run pods.
type NodeStatus struct {
	// Runtime is the default OCI runtime and why it was chosen; RuntimeErr says
	// why there is none, or what else is missing to run a pod.
	Runtime    ociruntime.Runtime
	RuntimeErr error
	// NetworkErr says why pods cannot be attached to a network.
	NetworkErr error
	Driver     cgroup.Driver
	Cgroups    cgroup.Mode
	// RecursiveReadOnly says that mounts can be made read-only with all below them.
	RecursiveReadOnly bool
	// AppArmor says what AppArmor does for containers, for people.
	AppArmor string
	// Handlers are the names of the configured handlers besides the default.
	Handlers []string
}

// Status looks at what pods need. It answers from what is known and from a few
// file reads; the runtime's version is asked for once.
func (r *Runner) Status(ctx context.Context) NodeStatus {
	s := NodeStatus{Driver: r.cfg.Driver, Cgroups: r.cgroups.Mode(), NetworkErr: r.network.Status(), RecursiveReadOnly: recursiveReadOnly(), AppArmor: r.armor.Status()}
	c, err := r.runtime(ctx, "")
	if err == nil {
		s.Runtime = c.Runtime
		_, err = r.conmon()
	}
	s.RuntimeErr = err
	for name := range r.cfg.Runtimes {
		s.Handlers = append(s.Handlers, name)
	}
	return s
}

// CheckHandler says whether a runtime handler is configured; ErrInvalid if not.
func (r *Runner) CheckHandler(ctx context.Context, handler string) error {
	_, err := r.runtime(ctx, handler)
	return err
}

// Stats reads what an app uses; app empty means the pod's own cgroup, the one
// that the kubelet made for it or that we did. ErrNotFound says that there is none.
func (r *Runner) Stats(u manifest.UUID, app string) (cgroup.Stats, error) {
	if app != "" {
		s, err := r.pods.Started(u, app)
		if err != nil {
			return cgroup.Stats{}, err
		}
		return r.cgroups.Stats(s.Cgroup)
	}
	p, err := r.pods.Load(u)
	if err != nil {
		return cgroup.Stats{}, err
	}
	asked := ""
	if p.Record.Kind == pod.KindSandbox {
		pm, err := p.Manifest()
		if err != nil {
			return cgroup.Stats{}, err
		}
		config, _, err := translate.SandboxConfig(pm)
		if err != nil {
			return cgroup.Stats{}, err
		}
		asked = config.GetLinux().GetCgroupParent()
	}
	parent, _ := r.podParent(asked, u)
	path, err := cgroup.ParentPath(r.cfg.Driver, parent)
	if err != nil {
		return cgroup.Stats{}, err
	}
	return r.cgroups.Stats(path)
}

// NetworkStats reads the counters of the pod's interfaces, lo left out. It is
// empty for a pod in the node's network.
func (r *Runner) NetworkStats(u manifest.UUID) ([]namespace.InterfaceStat, error) {
	pin := namespace.Pin(r.pods.RunPath(u, "ns"), namespace.Net)
	pinned, err := namespace.IsPinned(pin)
	if err != nil || !pinned {
		return nil, err
	}
	return namespace.InterfaceStats(pin)
}

// Namespaces are the paths of the pod's pinned namespaces, by kind.
func (r *Runner) Namespaces(u manifest.UUID) (map[namespace.Kind]string, error) {
	pins := map[namespace.Kind]string{}
	for _, k := range []namespace.Kind{namespace.Net, namespace.IPC, namespace.UTS} {
		path := namespace.Pin(r.pods.RunPath(u, "ns"), k)
		pinned, err := namespace.IsPinned(path)
		if err != nil {
			return nil, err
		}
		if pinned {
			pins[k] = path
		}
	}
	return pins, nil
}

// UpdateResources sets the limits of a running app; fields that are zero stay as
// they are. It does not keep them.
func (r *Runner) UpdateResources(ctx context.Context, u manifest.UUID, app string, limits *runtimeapi.LinuxContainerResources) error {
	_, c, err := r.running(u, app)
	if err != nil {
		return err
	}
	node, err := r.node(ctx, translate.Needs{}, "")
	if err != nil {
		return err
	}
	resources, err := translate.Resources(limits, node)
	if err != nil {
		return err
	}
	return c.client().Update(ctx, c.ID, resources)
}

// LogPath is where the output of an app goes, absolute; empty if nowhere.
func (r *Runner) LogPath(p *pod.Pod, app string) (string, error) {
	if p.Record.Kind != pod.KindContainer {
		return r.pods.Path(p.Record.UUID, "log", app+".log"), nil
	}
	pm, err := p.Manifest()
	if err != nil {
		return "", err
	}
	c, err := translate.ContainerConfig(pm)
	if err != nil {
		return "", err
	}
	sandbox, err := r.pods.Manifest(p.Record.Sandbox)
	if err != nil {
		return "", fmt.Errorf("sandbox: %w", err)
	}
	return containerLog(sandbox, c)
}

// Upper is the directory that holds what an app has written to its root filesystem.
func (r *Runner) Upper(u manifest.UUID, app string) string {
	return filepath.Join(r.pods.Path(u), "upper", app)
}

// WatchInit tells when a sandbox's init ends, which makes the sandbox not ready.
// The channel is closed then, or when ctx ends; nil without an init.
func (r *Runner) WatchInit(ctx context.Context, u manifest.UUID) (<-chan struct{}, error) {
	s, err := r.pods.Started(u, pod.InitApp)
	if isNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	out := make(chan struct{})
	go func() {
		defer close(out)
		if waitEnd(ctx, s.Init) {
			r.report(u, "could not say that the sandbox is not ready", r.pods.ClearReady(u))
		}
	}()
	return out, nil
}
