package stage1

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/stage0/durable"
	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/failpoint"
	"github.com/gantry-cri/gantry/stage0/format"
	"github.com/gantry-cri/gantry/stage0/manifest"
	"github.com/gantry-cri/gantry/stage0/pod"
	"github.com/gantry-cri/gantry/stage1/cgroup"
	"github.com/gantry-cri/gantry/stage1/files"
	"github.com/gantry-cri/gantry/stage1/namespace"
	"github.com/gantry-cri/gantry/stage1/network"
	"github.com/gantry-cri/gantry/translate"
)

const shmSize = 64 << 20

// startShared makes what the apps of a pod share: cgroup, namespaces, network,
// files, and an init where the PID namespace is shared. CNI ADD, the slowest of
// them, runs beside the rest.
func (r *Runner) startShared(ctx context.Context, d *pod.Dir, p *plan) error {
	s := p.shared
	if s.cgroup != "" && r.cfg.Driver == cgroup.Cgroupfs { // systemd makes a slice with its first scope
		if err := errors.Join(r.cgroups.Create(s.cgroup), r.cgroups.SetOwner(s.cgroup, r.pods.RunDir())); err != nil {
			return err
		}
	}
	failpoint.Hit(failpoint.CgroupMade)
	if err := namespace.Make(s.namespaces); err != nil {
		return err
	}
	attached := r.attach(ctx, s.attachment)
	err := r.makeShared(ctx, d, p)
	a := <-attached
	if err = errors.Join(err, a.err); err != nil {
		return err
	}
	if err := r.writeNetwork(d, s, a.result); err != nil {
		return err
	}
	failpoint.Hit(failpoint.NetworkWritten)
	if err := giveToRoot(d, p); err != nil {
		return err
	}
	if err := d.SetReady(); err != nil {
		return err
	}
	failpoint.Hit(failpoint.ReadyWritten)
	return nil
}

type attached struct {
	result network.Result
	err    error
}

func (r *Runner) attach(ctx context.Context, a *network.Attachment) <-chan attached {
	out := make(chan attached, 1)
	if a == nil {
		out <- attached{}
		return out
	}
	go func() {
		ctx, cancel := context.WithTimeout(ctx, networkTimeout)
		defer cancel()
		failpoint.Hit(failpoint.NetworkAdding)
		result, err := r.network.Add(ctx, *a)
		failpoint.Hit(failpoint.NetworkAdded)
		out <- attached{result, err}
	}()
	return out
}

// makeShared makes what does not need the pod's address.
func (r *Runner) makeShared(ctx context.Context, d *pod.Dir, p *plan) error {
	s := p.shared
	hostname := s.namespaces.Hostname
	if hostname == "" {
		name, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("node's host name: %w", err)
		}
		hostname = name
	}
	if err := files.WriteHostname(d.RunPath("hostname"), hostname); err != nil {
		return err
	}
	if err := files.WriteResolvConf(d.RunPath("resolv.conf"), dnsOf(s.config)); err != nil {
		return err
	}
	if !s.hostIPC {
		failpoint.Hit(failpoint.ShmMounting)
		if err := files.MountShm(d.RunPath("shm"), shmSize); err != nil {
			return err
		}
		failpoint.Hit(failpoint.ShmMounted)
	}
	if s.init == nil {
		return nil
	}
	return r.startInit(ctx, d, p)
}

// giveToRoot gives root of a user namespace of the pod's own what the apps share.
func giveToRoot(d *pod.Dir, p *plan) error {
	if p.ids == nil {
		return nil
	}
	uid, gid, err := p.ids.Owner(0, 0)
	if err != nil {
		return err
	}
	for _, name := range []string{"hostname", "resolv.conf", "hosts", "shm"} {
		if err := os.Lchown(d.RunPath(name), int(uid), int(gid)); err != nil {
			return err
		}
	}
	return nil
}

func dnsOf(c *runtimeapi.PodSandboxConfig) *files.DNS {
	dns := c.GetDnsConfig()
	if dns == nil {
		return nil
	}
	return &files.DNS{Servers: dns.GetServers(), Searches: dns.GetSearches(), Options: dns.GetOptions()}
}

// networkFile keeps what the plugins answered, for as long as the boot lasts.
const networkFile = "network.json"

// networkContent is network.json. In version 0 it carried none.
type networkContent struct {
	Schema int `json:"schema"`
	network.Result
}

func (r *Runner) writeNetwork(d *pod.Dir, s *shared, result network.Result) error {
	raw, err := json.Marshal(networkContent{format.Network.Current, result})
	if err != nil {
		return fmt.Errorf("write network result: %w", err)
	}
	if err := durable.WriteFile(d.RunPath(networkFile), raw, 0o644, durable.Kill); err != nil {
		return fmt.Errorf("write network result: %w", err)
	}
	if !s.namespaces.Net {
		return files.CopyHosts(d.RunPath("hosts"))
	}
	return files.WriteHosts(d.RunPath("hosts"), s.namespaces.Hostname, result.IPs)
}

// Network is what the plugins answered when the pod was attached; the zero value
// for a pod in the node's network. ErrNotFound says that the pod was not started in this boot.
func (r *Runner) Network(u manifest.UUID) (network.Result, error) {
	raw, err := os.ReadFile(r.pods.RunPath(u, networkFile))
	if errors.Is(err, os.ErrNotExist) {
		return network.Result{}, fmt.Errorf("network of pod %s: %w", u, errdefs.ErrNotFound)
	}
	if err != nil {
		return network.Result{}, fmt.Errorf("read network result: %w", err)
	}
	var result network.Result
	if err := format.Network.Decode(raw, &result); err != nil {
		return network.Result{}, fmt.Errorf("network of pod %s: %w", u, err)
	}
	if slices.Contains(result.IPs, netip.Addr{}) {
		return network.Result{}, fmt.Errorf("network of pod %s: %s has an address that is none", u, networkFile)
	}
	return result, nil
}

// initPath is where a sandbox's init sees its own program.
const initPath = "/catatonit"

// planInit finds the program that reaps a shared PID namespace: never our own.
func (r *Runner) planInit(d *pod.Dir, parent string) (*appPlan, error) {
	if _, err := r.initProgram(); err != nil {
		return nil, err
	}
	a := &appPlan{name: pod.InitApp, id: string(d.Record().ID)}
	var err error
	a.cgroup, err = cgroup.ContainerPath(r.cfg.Driver, parent, a.id)
	return a, err
}

func (r *Runner) initProgram() (string, error) {
	name := r.cfg.Init
	if name == "" {
		name = "catatonit"
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("a shared PID namespace needs catatonit, install it: %w: %w", errdefs.ErrUnsupported, err)
	}
	return filepath.Abs(path)
}

func (r *Runner) startInit(ctx context.Context, d *pod.Dir, p *plan) error {
	a := p.shared.init
	program, err := r.initProgram()
	if err != nil {
		return err
	}
	profiles, err := translate.InitNeeds(p.manifest)
	if err != nil {
		return err
	}
	node, err := r.node(ctx, translate.Needs{SeccompProfiles: profiles}, "")
	if err != nil {
		return err
	}
	pins, err := r.joined(p)
	if err != nil {
		return err
	}
	spec, _, err := translate.ToOCIInit(p.manifest, node, translate.Place{
		SandboxID:   a.id,
		Rootfs:      r.pods.AppRunPath(d.UUID(), a.name, "rootfs"),
		Namespaces:  pins,
		CgroupsPath: a.cgroup.OCI,
		InitArgs:    []string{initPath, "-P"},
		InitBinary:  program,
	})
	if err != nil {
		return err
	}
	started, err := r.launch(ctx, d, p, a, spec)
	if err != nil {
		return fmt.Errorf("init of the shared PID namespace: %w", err)
	}
	return d.WriteStarted(a.name, started)
}

// joined are the namespaces that a container joins: the pins of the pod that
// holds them, and the PID namespace of its init or of another container.
func (r *Runner) joined(p *plan) (map[specs.LinuxNamespaceType]string, error) {
	joined := map[specs.LinuxNamespaceType]string{}
	dir := r.pods.RunPath(p.host, "ns")
	for t, k := range map[specs.LinuxNamespaceType]namespace.Kind{
		specs.UserNamespace:    namespace.User,
		specs.NetworkNamespace: namespace.Net,
		specs.IPCNamespace:     namespace.IPC,
		specs.UTSNamespace:     namespace.UTS,
	} {
		pinned, err := namespace.IsPinned(namespace.Pin(dir, k))
		if err != nil {
			return nil, err
		}
		if pinned {
			joined[t] = namespace.Pin(dir, k)
		}
	}
	if p.shared != nil {
		return joined, nil
	}
	pid, err := r.joinedPID(p)
	if err != nil {
		return nil, err
	}
	if pid != "" {
		joined[specs.PIDNamespace] = pid
	}
	return joined, nil
}

func (r *Runner) joinedPID(p *plan) (string, error) {
	c, err := translate.ContainerConfig(p.manifest)
	if err != nil {
		return "", err
	}
	switch opts := c.GetLinux().GetSecurityContext().GetNamespaceOptions(); opts.GetPid() {
	case runtimeapi.NamespaceMode_POD:
		return r.pidNamespace(p.host, pod.InitApp)
	case runtimeapi.NamespaceMode_TARGET:
		target, err := r.pods.Resolve(opts.GetTargetId())
		if err != nil {
			return "", fmt.Errorf("target of the PID namespace: %w", err)
		}
		t, err := r.pods.Load(target)
		if err != nil {
			return "", fmt.Errorf("target of the PID namespace: %w", err)
		}
		if t.Record.Sandbox != p.host || len(t.Record.Apps) == 0 {
			return "", fmt.Errorf("target %q is not a container of the same sandbox: %w", opts.GetTargetId(), errdefs.ErrInvalid)
		}
		return r.pidNamespace(target, t.Record.Apps[0].Name)
	}
	return "", nil
}

func (r *Runner) pidNamespace(u manifest.UUID, app string) (string, error) {
	s, err := r.pods.Started(u, app)
	if err != nil {
		return "", err
	}
	if !s.Init.Alive() {
		return "", fmt.Errorf("process 1 of the PID namespace to join has ended: %w", errdefs.ErrState)
	}
	return fmt.Sprintf("/proc/%d/ns/pid", s.Init.PID), nil
}
