package cri

import (
	"context"
	"encoding/json"
	"runtime"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/stage0/pod"
)

// RuntimeName begins every container's id in the Kubernetes API ("gantry://…").
// It can never change on a node with pods.
const RuntimeName = "gantry"

// Node tells what this node can do, from memory and a few small files.
type Node interface {
	Status(ctx context.Context) NodeStatus
	// Details are shown by the verbose status, each under its name.
	Details(ctx context.Context) map[string]any
}

// NodeStatus says whether and with what this node can run pods.
type NodeStatus struct {
	// RuntimeErr says why no pod can run, NetworkErr why none can have a network;
	// nil is ready.
	RuntimeErr, NetworkErr error
	// Runtime is the OCI runtime that was chosen, and why, for people.
	Runtime string
	// Systemd says that systemd makes the cgroups; else they are made as directories.
	Systemd bool
	// Handlers are the runtime handlers; the default one has the empty name.
	Handlers []Handler
}

// Handler is a runtime handler and what it can do.
type Handler struct {
	Name                              string
	RecursiveReadOnly, UserNamespaces bool
}

// node are the RPCs about the node.
type node struct {
	facts   Node
	version string
	info    any
}

// Version answers at once. All of its fields must be set, or the kubelet refuses.
func (n *node) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{
		Version:           "0.1.0", // of the kubelet's runtime API, never changed
		RuntimeName:       RuntimeName,
		RuntimeVersion:    n.version,
		RuntimeApiVersion: "v1",
	}, nil
}

// Status says whether pods can run and whether they can have a network. What is
// missing is a condition, never an error.
func (n *node) Status(ctx context.Context, r *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	s := n.facts.Status(ctx)
	resp := &runtimeapi.StatusResponse{
		Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
			condition(runtimeapi.RuntimeReady, "RuntimeNotReady", s.RuntimeErr),
			condition(runtimeapi.NetworkReady, "NetworkPluginNotReady", s.NetworkErr),
		}},
		Features: &runtimeapi.RuntimeFeatures{SupplementalGroupsPolicy: true},
	}
	for _, h := range s.Handlers {
		resp.RuntimeHandlers = append(resp.RuntimeHandlers, &runtimeapi.RuntimeHandler{
			Name: h.Name,
			Features: &runtimeapi.RuntimeHandlerFeatures{
				RecursiveReadOnlyMounts: h.RecursiveReadOnly,
				UserNamespaces:          h.UserNamespaces,
			},
		})
	}
	if r.GetVerbose() {
		info := map[string]any{"config": n.info, "golang": runtime.Version(), "ociRuntime": s.Runtime, "lastCNILoadStatus": "OK"}
		if s.NetworkErr != nil {
			info["lastCNILoadStatus"] = s.NetworkErr.Error()
		}
		for k, v := range n.facts.Details(ctx) {
			info[k] = v
		}
		resp.Info = textsOf(info)
	}
	return resp, nil
}

func condition(kind, reason string, err error) *runtimeapi.RuntimeCondition {
	c := &runtimeapi.RuntimeCondition{Type: kind, Status: err == nil}
	if err != nil {
		c.Reason, c.Message = reason, err.Error()
	}
	return c
}

// RuntimeConfig names the cgroup driver, so that the kubelet uses the same.
func (n *node) RuntimeConfig(ctx context.Context, _ *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	driver := runtimeapi.CgroupDriver_CGROUPFS
	if n.facts.Status(ctx).Systemd {
		driver = runtimeapi.CgroupDriver_SYSTEMD
	}
	return &runtimeapi.RuntimeConfigResponse{Linux: &runtimeapi.LinuxRuntimeConfiguration{CgroupDriver: driver}}, nil
}

// UpdateRuntimeConfig is told the node's pod CIDR, which the CNI configuration
// knows by itself.
func (n *node) UpdateRuntimeConfig(ctx context.Context, r *runtimeapi.UpdateRuntimeConfigRequest) (*runtimeapi.UpdateRuntimeConfigResponse, error) {
	klog.FromContext(ctx).V(4).Info("Ignored the pod CIDR", "cidr", r.GetRuntimeConfig().GetNetworkConfig().GetPodCidr())
	return &runtimeapi.UpdateRuntimeConfigResponse{}, nil
}

// jsonText is JSON that is written already.
type jsonText = json.RawMessage

// asJSON is a CRI message as JSON.
func asJSON(m proto.Message) jsonText {
	raw, err := protojson.Marshal(m)
	if err != nil {
		return jsonText("null")
	}
	return raw
}

// infoOf is the info of a verbose answer: one JSON object under one key, which is
// what crictl's inspect commands print.
func infoOf(v map[string]any) map[string]string {
	return textsOf(map[string]any{"info": v})
}

// textsOf writes each value as JSON; strings stay as they are.
func textsOf(values map[string]any) map[string]string {
	texts := map[string]string{}
	for k, v := range values {
		if s, ok := v.(string); ok {
			texts[k] = s
			continue
		}
		raw, err := json.Marshal(v)
		if err != nil {
			raw = []byte("null")
		}
		texts[k] = string(raw)
	}
	return texts
}

// info is what inspectp shows. What is not there any more is left out.
func (s *sandboxes) info(e *entry) map[string]string {
	v := map[string]any{
		"config":          asJSON(e.sandbox),
		"sandboxMetadata": asJSON(e.sandbox.GetMetadata()),
		"runtimeHandler":  e.handler,
		"uuid":            e.uuid(),
		"place":           e.place,
		"pid":             0, // there is no process of the sandbox itself
	}
	if spaces, err := s.inspector.Namespaces(e.uuid()); err == nil {
		v["namespaces"] = spaces
		v["netNamespaceClosed"] = len(spaces) == 0
		// People look for the paths in the runtimeSpec, where other runtimes have
		// those of their pause container.
		list := []map[string]string{}
		for _, k := range []struct{ kind, oci string }{{"net", "network"}, {"ipc", "ipc"}, {"uts", "uts"}} {
			for kind, path := range spaces {
				if string(kind) == k.kind {
					list = append(list, map[string]string{"type": k.oci, "path": path})
				}
			}
		}
		v["runtimeSpec"] = map[string]any{"linux": map[string]any{"namespaces": list}}
	}
	if spec, err := s.inspector.Spec(e.uuid(), pod.InitApp); err == nil {
		v["initSpec"] = spec
	}
	if len(e.network.Raw) > 0 {
		v["cniResult"] = e.network.Raw
	}
	return infoOf(v)
}

// info is what inspect shows.
func (c *containers) info(e *entry) map[string]string {
	v := map[string]any{
		"sandboxID":  c.sandboxID(e),
		"config":     asJSON(e.container),
		"uuid":       e.uuid(),
		"place":      e.place,
		"phase":      e.phase,
		"pid":        0,
		"monitorPid": 0,
		"cgroup":     e.started.Cgroup,
		"layers":     e.app().Layers,
		"privileged": e.container.GetLinux().GetSecurityContext().GetPrivileged(),
	}
	if isRunning(e) {
		v["pid"], v["monitorPid"] = e.started.Init.PID, e.started.Monitor.PID
	}
	if spec, err := c.inspector.Spec(e.uuid(), e.app().Name); err == nil {
		v["runtimeSpec"] = spec
	}
	return infoOf(v)
}
