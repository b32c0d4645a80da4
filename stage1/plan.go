package stage1

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/appc/spec/schema"
	"github.com/appc/spec/schema/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/idmap"
	"github.com/gantry-cri/gantry/stage0/manifest"
	"github.com/gantry-cri/gantry/stage0/overlay"
	"github.com/gantry-cri/gantry/stage0/pod"
	"github.com/gantry-cri/gantry/stage1/cgroup"
	"github.com/gantry-cri/gantry/stage1/namespace"
	"github.com/gantry-cri/gantry/stage1/network"
	"github.com/gantry-cri/gantry/stage1/ociruntime"
	"github.com/gantry-cri/gantry/translate"
)

// plan is what a start is going to do. It is made by looking alone: when a plan
// is there, every check has passed and nothing has changed.
type plan struct {
	manifest *schema.PodManifest
	// sandbox is the manifest that says whose namespaces the apps live in: a
	// container's sandbox, the pod itself for a sandbox, nil on the command line.
	sandbox   *schema.PodManifest
	sandboxID manifest.ID
	// host is the pod that holds the namespaces.
	host    manifest.UUID
	runtime *ociruntime.Client
	conmon  string
	// ids are those of the user namespace that the apps live in; nil is the node's.
	ids *idmap.Map
	// shared is what this start makes for all apps; nil for a container.
	shared  *shared
	apps    []appPlan
	intents []pod.Intent
}

// shared is what the apps of a pod have in common.
type shared struct {
	config     *runtimeapi.PodSandboxConfig // nil on the command line
	cgroup     string                       // the pod's own; empty when the kubelet made it
	namespaces namespace.Spec
	attachment *network.Attachment // nil without a network of its own
	hostIPC    bool
	init       *appPlan // nil where no PID namespace is shared
}

// appPlan is one OCI container.
type appPlan struct {
	name    string
	record  pod.AppRecord
	id      string // of the OCI container
	cgroup  cgroup.Paths
	log     string        // empty: none
	overlay *overlay.Plan // nil for an init
	stdin   stdin
	// hostPaths are made as directories where the node lacks them, as container
	// runtimes are known to do.
	hostPaths []string
}

// stdin says what conmon does with the container's input.
type stdin struct{ open, once, tty bool }

func (r *Runner) plan(ctx context.Context, d *pod.Dir, opts Options) (*plan, error) {
	pm, err := r.pods.Manifest(d.UUID())
	if err != nil {
		return nil, err
	}
	p := &plan{manifest: pm, host: d.UUID(), ids: manifest.UserNamespaceOf(pm.Isolators)}
	if p.conmon, err = r.conmon(); err != nil {
		return nil, err
	}
	var parent string
	switch d.Record().Kind {
	case pod.KindContainer:
		parent, err = r.planJoin(ctx, d, p)
	case pod.KindSandbox:
		parent, err = r.planSandbox(ctx, d, p)
	default:
		parent, err = r.planPod(ctx, d, p, opts)
	}
	if err != nil {
		return nil, err
	}
	for _, a := range d.Record().Apps {
		app, err := r.planApp(d, p, a, parent)
		if err != nil {
			return nil, fmt.Errorf("app %s: %w", a.Name, err)
		}
		p.apps = append(p.apps, app)
	}
	p.intents, err = r.intentsOf(d, p)
	return p, err
}

// planJoin is for a container: its sandbox must be ready.
func (r *Runner) planJoin(ctx context.Context, d *pod.Dir, p *plan) (parent string, err error) {
	sandbox, err := r.pods.Load(d.Record().Sandbox)
	if err != nil {
		return "", fmt.Errorf("sandbox: %w", err)
	}
	if sandbox.SandboxPhase() != pod.Up {
		return "", fmt.Errorf("sandbox %s is not ready: %w", sandbox.Record.ID, errdefs.ErrState)
	}
	if p.sandbox, err = sandbox.Manifest(); err != nil {
		return "", fmt.Errorf("sandbox: %w", err)
	}
	p.host, p.sandboxID = sandbox.Record.UUID, sandbox.Record.ID
	config, handler, err := translate.SandboxConfig(p.sandbox)
	if err != nil {
		return "", err
	}
	if p.runtime, err = r.runtime(ctx, handler); err != nil {
		return "", err
	}
	parent, _ = r.podParent(config.GetLinux().GetCgroupParent(), p.host)
	return parent, nil
}

func (r *Runner) planSandbox(ctx context.Context, d *pod.Dir, p *plan) (parent string, err error) {
	p.sandbox, p.sandboxID = p.manifest, d.Record().ID
	config, handler, err := translate.SandboxConfig(p.manifest)
	if err != nil {
		return "", err
	}
	if p.runtime, err = r.runtime(ctx, handler); err != nil {
		return "", err
	}
	own := config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	hostNet := own.GetNetwork() == runtimeapi.NamespaceMode_NODE
	s := &shared{config: config, hostIPC: own.GetIpc() == runtimeapi.NamespaceMode_NODE}
	s.namespaces = namespace.Spec{
		Dir:      d.RunPath("ns"),
		Net:      !hostNet,
		IPC:      !s.hostIPC,
		UTS:      !hostNet,
		Hostname: config.GetHostname(),
		Sysctls:  translate.SandboxSysctls(p.manifest),
	}
	p.shared = s
	parent, s.cgroup = r.podParent(config.GetLinux().GetCgroupParent(), d.UUID())
	if _, err := cgroup.ParentPath(r.cfg.Driver, parent); err != nil {
		return "", err
	}
	if !hostNet {
		if s.attachment, err = r.attachment(d, sandboxNetwork(config)); err != nil {
			return "", err
		}
	}
	if own.GetPid() == runtimeapi.NamespaceMode_POD {
		if s.init, err = r.planInit(d, parent); err != nil {
			return "", err
		}
	}
	return parent, nil
}

// planPod is for a pod of the command line, which has namespaces of its own.
func (r *Runner) planPod(ctx context.Context, d *pod.Dir, p *plan, opts Options) (parent string, err error) {
	if p.runtime, err = r.runtime(ctx, ""); err != nil {
		return "", err
	}
	hostNet := opts.Network == NetworkHost
	if hostNet && p.ids != nil {
		// /sys shows a network, and only who owns that can mount it.
		return "", fmt.Errorf("a user namespace in the node's network: %w", errdefs.ErrUnsupported)
	}
	s := &shared{}
	s.namespaces = namespace.Spec{Dir: d.RunPath("ns"), Net: !hostNet, IPC: true, UTS: !hostNet, Users: p.ids}
	if !hostNet {
		s.namespaces.Hostname = "gantry-" + string(d.UUID())
	}
	p.shared = s
	if opts.Network == NetworkDefault {
		if s.attachment, err = r.attachment(d, network.Request{Ports: podPorts(p.manifest)}); err != nil {
			return "", err
		}
	} else if len(p.manifest.Ports) > 0 {
		return "", fmt.Errorf("ports cannot be exposed with network %q: %w", opts.Network, errdefs.ErrInvalid)
	}
	parent, s.cgroup = r.podParent("", d.UUID())
	return parent, nil
}

// podParent returns the parent of a pod's cgroups as the driver spells it. Where
// nobody asked for one it is a cgroup of the pod's own, which lies at path own.
func (r *Runner) podParent(asked string, host manifest.UUID) (parent, own string) {
	if asked != "" {
		return asked, ""
	}
	if r.cfg.Driver == cgroup.Systemd {
		slice := "gantry-" + host.Hex() + ".slice"
		return slice, "/gantry.slice/" + slice
	}
	parent = "/gantry/" + string(host)
	return parent, parent
}

func (r *Runner) attachment(d *pod.Dir, req network.Request) (*network.Attachment, error) {
	req.ContainerID = string(d.Record().ID)
	req.NetNS = namespace.Pin(d.RunPath("ns"), namespace.Net)
	a, err := r.network.Plan(req)
	if err != nil {
		return nil, fmt.Errorf("network: %w", err)
	}
	return &a, nil
}

func sandboxNetwork(c *runtimeapi.PodSandboxConfig) network.Request {
	req := network.Request{
		PodName:      c.GetMetadata().GetName(),
		PodNamespace: c.GetMetadata().GetNamespace(),
		PodUID:       c.GetMetadata().GetUid(),
		Annotations:  c.GetAnnotations(),
	}
	for _, m := range c.GetPortMappings() {
		req.Ports = append(req.Ports, network.Port{
			HostPort:      m.GetHostPort(),
			ContainerPort: m.GetContainerPort(),
			Protocol:      m.GetProtocol().String(),
			HostIP:        m.GetHostIp(),
		})
	}
	if dns := c.GetDnsConfig(); dns != nil {
		req.DNS = &network.DNS{Servers: dns.GetServers(), Searches: dns.GetSearches(), Options: dns.GetOptions()}
	}
	return req
}

// podPorts joins the ports that a pod exposes with the apps' declarations of them.
func podPorts(pm *schema.PodManifest) []network.Port {
	var ports []network.Port
	for _, e := range pm.Ports {
		port := e.PodPort
		if port == nil {
			port = declaredPort(pm, e.Name)
		}
		if port == nil {
			continue
		}
		m := network.Port{HostPort: int32(e.HostPort), ContainerPort: int32(port.Port), Protocol: port.Protocol}
		if e.HostIP != nil {
			m.HostIP = e.HostIP.String()
		}
		ports = append(ports, m)
	}
	return ports
}

func declaredPort(pm *schema.PodManifest, name types.ACName) *types.Port {
	for _, a := range pm.Apps {
		for _, p := range a.App.Ports {
			if p.Name == name {
				return &p
			}
		}
	}
	return nil
}

func (r *Runner) planApp(d *pod.Dir, p *plan, a pod.AppRecord, parent string) (appPlan, error) {
	id := d.Record().ID
	if d.Record().Kind == pod.KindPod {
		id = appID(d.Record(), a.Name)
	}
	app := appPlan{
		name:   a.Name,
		record: a,
		id:     string(id),
		overlay: &overlay.Plan{
			Lower:  r.cfg.Trees.Lower(a.Layers),
			Upper:  d.Path("upper", a.Name),
			Work:   d.Path("work", a.Name),
			Target: r.pods.AppRunPath(d.UUID(), a.Name, "rootfs"),
			IDs:    p.ids,
		},
	}
	var err error
	if app.cgroup, err = cgroup.ContainerPath(r.cfg.Driver, parent, app.id); err != nil {
		return appPlan{}, err
	}
	for _, name := range a.Layers {
		if _, err := os.Stat(r.cfg.Trees.Path(name)); err != nil {
			return appPlan{}, fmt.Errorf("layer tree %s of image %s is missing: %w", name, a.ImageName, errdefs.ErrNotFound)
		}
	}
	if d.Record().Kind != pod.KindContainer {
		app.log = d.Path("log", a.Name+".log")
		return app, nil
	}
	c, err := translate.ContainerConfig(p.manifest)
	if err != nil {
		return appPlan{}, err
	}
	app.stdin = stdin{open: c.GetStdin(), once: c.GetStdinOnce(), tty: c.GetTty()}
	if app.log, err = containerLog(p.sandbox, c); err != nil {
		return appPlan{}, err
	}
	app.hostPaths = mountSources(c)
	return app, nil
}

// mountSources are the paths of the node that a container's mounts name.
func mountSources(c *runtimeapi.ContainerConfig) []string {
	var paths []string
	for _, m := range c.GetMounts() {
		if m.GetHostPath() != "" {
			paths = append(paths, m.GetHostPath())
		}
	}
	return paths
}

// containerLog joins the sandbox's log directory and the container's log path.
func containerLog(sandbox *schema.PodManifest, c *runtimeapi.ContainerConfig) (string, error) {
	config, _, err := translate.SandboxConfig(sandbox)
	if err != nil {
		return "", err
	}
	if config.GetLogDirectory() == "" || c.GetLogPath() == "" {
		return "", nil
	}
	return filepath.Join(config.GetLogDirectory(), c.GetLogPath()), nil
}

// intentsOf says what a start will make, in its order.
func (r *Runner) intentsOf(d *pod.Dir, p *plan) ([]pod.Intent, error) {
	var all []pod.Intent
	var errs []error
	add := func(kind, app string, data any) {
		in, err := pod.NewIntent(kind, app, data)
		all, errs = append(all, in), append(errs, err)
	}
	if s := p.shared; s != nil {
		if s.cgroup != "" {
			add(intentCgroup, "", cgroupIntent{Path: s.cgroup, Driver: r.cfg.Driver})
		}
		add(intentNamespaces, "", namespacesIntent{Dir: s.namespaces.Dir})
		if s.attachment != nil {
			add(intentNetwork, "", *s.attachment)
		}
		if !s.hostIPC {
			add(intentMount, "", mountIntent{Target: d.RunPath("shm")})
		}
		if s.init != nil {
			add(intentContainer, s.init.name, r.containerIntent(p, s.init))
		}
	}
	for i := range p.apps {
		a := &p.apps[i]
		add(intentMount, a.name, mountIntent{Target: a.overlay.Target})
		add(intentContainer, a.name, r.containerIntent(p, a))
	}
	return all, errors.Join(errs...)
}

func (r *Runner) containerIntent(p *plan, a *appPlan) containerIntent {
	return containerIntent{ID: a.id, Cgroup: a.cgroup.Path, Driver: r.cfg.Driver, Runtime: p.runtime.Runtime, Root: p.runtime.Root}
}
