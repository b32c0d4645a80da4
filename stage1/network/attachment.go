package network

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// Request is what a pod asks of the network.
type Request struct {
	// ContainerID is the pod's id towards the plugins.
	ContainerID string
	// NetNS is the path of the pod's network namespace; it need not be there yet.
	NetNS string
	// PodNamespace, PodName and PodUID are Kubernetes' names; empty where there are none.
	PodNamespace, PodName, PodUID string
	// Ports of the pod; those without a host port are left out.
	Ports []Port
	// DNS is passed to plugins that ask for it; it has no effect on resolv.conf.
	DNS *DNS
	// Annotations of the pod, of which the two bandwidth ones are read.
	Annotations map[string]string
}

// Port maps a port of the node to one of the pod.
type Port struct {
	HostPort, ContainerPort int32
	// Protocol is tcp, udp or sctp in any case; empty: tcp.
	Protocol string
	// HostIP restricts the mapping to one address of the node; empty: all.
	HostIP string
}

// DNS is CRI's DNS configuration in the words of CNI's capability.
type DNS struct {
	Servers  []string `json:"servers,omitempty"`
	Searches []string `json:"searches,omitempty"`
	Options  []string `json:"options,omitempty"`
}

// Attachment is a pod on a network: everything that ADD and, perhaps years and a
// boot later, DEL need. It is a plain value with a stable JSON form.
type Attachment struct {
	Network string `json:"network"`
	// File that the configuration was read from; for messages alone.
	File string `json:"file"`
	// Config is the configuration list as it was when the attachment was planned.
	Config      json.RawMessage `json:"config"`
	BinDirs     []string        `json:"binDirs"`
	ContainerID string          `json:"containerID"`
	NetNS       string          `json:"netns"`
	IfName      string          `json:"ifName"`
	Args        [][2]string     `json:"args,omitempty"`
	// Capabilities are CNI's capability arguments, by capability.
	Capabilities map[string]json.RawMessage `json:"capabilities,omitempty"`
	// Unmet are the capabilities that the pod needs and no plugin of the list has.
	// Some networks do the same without being told so by us (host ports, above all).
	Unmet []string `json:"unmet,omitempty"`
	// CacheDir is where libcni keeps the result of ADD for DEL; it is this attachment's alone.
	CacheDir string `json:"cacheDir"`
}

// Plan makes the attachment of a pod from today's configuration, without any
// effect. ErrNotReady says that there is none, ErrInvalid that the request cannot be met as written.
func (n *Network) Plan(r Request) (Attachment, error) {
	c, err := n.Load()
	if err != nil {
		return Attachment{}, fmt.Errorf("%w: %w", ErrNotReady, err)
	}
	if r.ContainerID == "" || r.NetNS == "" || n.cacheDir == "" {
		return Attachment{}, fmt.Errorf("plan network: container id %q, namespace %q and cache directory %q are needed: %w",
			r.ContainerID, r.NetNS, n.cacheDir, errdefs.ErrInvalid)
	}
	a := Attachment{
		Network: c.Name, File: c.File, Config: c.List, BinDirs: slices.Clone(n.binDirs),
		ContainerID: r.ContainerID, NetNS: r.NetNS, IfName: Interface, CacheDir: n.CachePath(r.ContainerID),
	}
	if a.Args, err = args(r); err != nil {
		return Attachment{}, fmt.Errorf("plan network: %w", err)
	}
	wanted, err := capabilityArgs(r)
	if err != nil {
		return Attachment{}, fmt.Errorf("plan network: %w", err)
	}
	has := c.capabilities()
	for _, name := range slices.Sorted(maps.Keys(wanted)) {
		switch {
		case has[name]:
			if a.Capabilities == nil {
				a.Capabilities = map[string]json.RawMessage{}
			}
			a.Capabilities[name] = wanted[name]
		case name != "dns": // resolv.conf is written whatever the plugins know
			a.Unmet = append(a.Unmet, name)
		}
	}
	return a, nil
}

// args are CNI_ARGS as the field's runtimes pass them.
func args(r Request) ([][2]string, error) {
	out := [][2]string{{"IgnoreUnknown", "1"}}
	for _, kv := range [][2]string{
		{"K8S_POD_NAMESPACE", r.PodNamespace},
		{"K8S_POD_NAME", r.PodName},
		{"K8S_POD_INFRA_CONTAINER_ID", r.ContainerID},
		{"K8S_POD_UID", r.PodUID},
	} {
		if strings.ContainsAny(kv[1], ";=") {
			return nil, fmt.Errorf("%s=%q: ';' and '=' cannot be passed to CNI plugins: %w", kv[0], kv[1], errdefs.ErrInvalid)
		}
		if kv[1] != "" {
			out = append(out, kv)
		}
	}
	return out, nil
}

func capabilityArgs(r Request) (map[string]json.RawMessage, error) {
	values := map[string]any{}
	ports, err := portMappings(r.Ports)
	if err != nil {
		return nil, err
	}
	if len(ports) > 0 {
		values["portMappings"] = ports
	}
	if d := r.DNS; d != nil && len(d.Servers)+len(d.Searches)+len(d.Options) > 0 {
		values["dns"] = d
	}
	bw, err := parseBandwidth(r.Annotations)
	if err != nil {
		return nil, err
	}
	if bw != (bandwidth{}) {
		values["bandwidth"] = bw
	}
	out := make(map[string]json.RawMessage, len(values))
	for name, v := range values {
		if out[name], err = json.Marshal(v); err != nil {
			return nil, fmt.Errorf("capability %s: %w", name, err)
		}
	}
	return out, nil
}

type portMapping struct {
	HostPort      int32  `json:"hostPort"`
	ContainerPort int32  `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP,omitempty"`
}

func portMappings(ports []Port) ([]portMapping, error) {
	var out []portMapping
	for _, p := range ports {
		if p.HostPort <= 0 {
			continue
		}
		m := portMapping{p.HostPort, p.ContainerPort, strings.ToLower(p.Protocol), p.HostIP}
		if m.Protocol == "" {
			m.Protocol = "tcp"
		}
		if !slices.Contains([]string{"tcp", "udp", "sctp"}, m.Protocol) {
			return nil, fmt.Errorf("host port %d: protocol %q: %w", p.HostPort, p.Protocol, errdefs.ErrInvalid)
		}
		if p.HostPort > 65535 || p.ContainerPort < 1 || p.ContainerPort > 65535 {
			return nil, fmt.Errorf("port mapping %d to %d: out of range 1 to 65535: %w", p.HostPort, p.ContainerPort, errdefs.ErrInvalid)
		}
		out = append(out, m)
	}
	return out, nil
}

func (a Attachment) list() (*libcni.NetworkConfigList, error) {
	list, err := libcni.NetworkConfFromBytes(a.Config)
	if err != nil {
		return nil, fmt.Errorf("CNI configuration of %s: %w", a.File, err)
	}
	return list, nil
}

func (a Attachment) runtimeConf(netns string) *libcni.RuntimeConf {
	caps := make(map[string]any, len(a.Capabilities))
	for name, v := range a.Capabilities {
		caps[name] = v
	}
	return &libcni.RuntimeConf{ContainerID: a.ContainerID, NetNS: netns, IfName: a.IfName, Args: a.Args, CapabilityArgs: caps}
}
