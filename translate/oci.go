package translate

import (
	"encoding/json"
	"fmt"
	"path"

	"github.com/appc/spec/schema"
	"github.com/appc/spec/schema/types"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/manifest"
)

// ociVersion is the oldest that has all that is written here; crun 1.8 refuses 1.2
// and later.
const ociVersion = "1.0.2"

// ToOCI returns the OCI runtime configuration of one app of a pod. sandbox is the
// manifest of the sandbox that a CRI container joins, nil for a command-line pod.
// The strings are warnings: things that the node cannot do and that do not stop the
// app. errdefs.ErrUnsupported and ErrInvalid refuse what was asked for, ErrNotFound
// and ErrState say that node or place lack something that the app needs.
func ToOCI(pm *schema.PodManifest, app string, sandbox *schema.PodManifest, n Node, p Place) (*specs.Spec, []string, error) {
	o, err := newOCISpec(pm, app, sandbox)
	if err != nil {
		return nil, nil, err
	}
	o.node, o.place = n, p
	if err := o.build(); err != nil {
		return nil, nil, fmt.Errorf("app %s: %w", app, err)
	}
	spec, err := adjust(o.spec, o.ra.App.Isolators)
	if err != nil {
		return nil, nil, fmt.Errorf("app %s: %w", app, err)
	}
	return spec, o.warnings, nil
}

// ociSpec is a configuration in the making, with all that it is made from.
type ociSpec struct {
	pm    *schema.PodManifest
	ra    *schema.RuntimeApp
	cri   *runtimeapi.ContainerConfig  // without what appc carries; nil for command-line pods
	pod   *runtimeapi.PodSandboxConfig // nil for command-line pods
	node  Node
	place Place

	spec     *specs.Spec
	warnings []string
}

// newOCISpec reads the manifests.
func newOCISpec(pm *schema.PodManifest, app string, sandbox *schema.PodManifest) (*ociSpec, error) {
	o := &ociSpec{pm: pm, ra: pm.Apps.Get(types.ACName(app))}
	if o.ra == nil || o.ra.App == nil {
		return nil, fmt.Errorf("the pod has no app %q: %w", app, errdefs.ErrNotFound)
	}
	if err := checkHonoured(app, o.ra.App.Isolators); err != nil {
		return nil, err
	}
	var err error
	if o.cri, err = containerRest(o.ra); err != nil {
		return nil, err
	}
	if o.cri != nil && sandbox == nil {
		return nil, fmt.Errorf("app %s: a CRI container needs its sandbox: %w", app, errdefs.ErrInvalid)
	}
	if sandbox != nil {
		if o.pod, _, err = SandboxConfig(sandbox); err != nil {
			return nil, err
		}
	}
	return o, nil
}

func (o *ociSpec) security() *runtimeapi.LinuxContainerSecurityContext {
	return o.cri.GetLinux().GetSecurityContext()
}

func (o *ociSpec) privileged() bool { return o.security().GetPrivileged() }

func (o *ociSpec) warn(format string, args ...any) {
	o.warnings = append(o.warnings, fmt.Sprintf(format, args...))
}

// build fills the configuration in. The order matters in two places: mounts want to
// know whether there is a cgroup namespace, the seccomp filter the capabilities.
func (o *ociSpec) build() error {
	o.spec = &specs.Spec{
		Version: ociVersion,
		Root:    &specs.Root{Path: o.place.Rootfs, Readonly: o.ra.ReadOnlyRootFS},
		Linux:   &specs.Linux{CgroupsPath: o.place.CgroupsPath},
	}
	o.spec.Annotations = o.annotations()
	for _, step := range []func() error{o.process, o.namespaces, o.mounts, o.resources, o.devices, o.confine} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func (o *ociSpec) process() error {
	app := o.ra.App
	if len(app.Exec) == 0 || app.Exec[0] == "" {
		return fmt.Errorf("exec is empty: %w", errdefs.ErrInvalid)
	}
	user, err := processUser(o.ra, o.cri, o.node)
	if err != nil {
		return err
	}
	env, err := processEnv(o.ra, o.cri, o.hostname())
	if err != nil {
		return err
	}
	capabilities, err := processCapabilities(o.ra, o.cri, o.node)
	if err != nil {
		return err
	}
	score := o.oomScoreAdj(oomScoreAdj(o.ra))
	o.spec.Process = &specs.Process{
		Terminal:        o.cri.GetTty(),
		User:            user,
		Args:            app.Exec,
		Env:             env,
		Cwd:             path.Join("/", app.WorkingDirectory),
		Capabilities:    capabilities,
		NoNewPrivileges: noNewPrivileges(o.ra),
		OOMScoreAdj:     &score,
	}
	return nil
}

// hostname is the name that the app finds itself under.
func (o *ociSpec) hostname() string {
	switch {
	case o.pod.GetHostname() != "":
		return o.pod.GetHostname()
	case o.place.UTSName != "":
		return o.place.UTSName
	}
	return o.node.Hostname
}

// oomScoreAdj clamps a score to what the node can set.
func (o *ociSpec) oomScoreAdj(wanted int) int {
	if wanted >= o.node.OOMScoreAdjMin {
		return wanted
	}
	o.warn("oom_score_adj %d was asked for and %d is the lowest that this node can set", wanted, o.node.OOMScoreAdjMin)
	return o.node.OOMScoreAdjMin
}

func (o *ociSpec) resources() error {
	r, err := appResources(o.ra, o.cri, o.node)
	o.spec.Linux.Resources = r
	return err
}

// annotations are those of containerd, which security and log tools read.
func (o *ociSpec) annotations() map[string]string {
	if o.cri == nil {
		return nil
	}
	return criAnnotations(o.pod, o.place.SandboxID, map[string]string{
		"io.kubernetes.cri.container-type": "container",
		"io.kubernetes.cri.container-name": o.cri.GetMetadata().GetName(),
		"io.kubernetes.cri.image-name":     imageName(o.cri.GetImage()),
	})
}

func criAnnotations(pod *runtimeapi.PodSandboxConfig, sandboxID string, more map[string]string) map[string]string {
	more["io.kubernetes.cri.sandbox-id"] = sandboxID
	more["io.kubernetes.cri.sandbox-name"] = pod.GetMetadata().GetName()
	more["io.kubernetes.cri.sandbox-namespace"] = pod.GetMetadata().GetNamespace()
	more["io.kubernetes.cri.sandbox-uid"] = pod.GetMetadata().GetUid()
	return more
}

// imageName is the image as the user wrote it, where CRI says so.
func imageName(i *runtimeapi.ImageSpec) string {
	if i.GetUserSpecifiedImage() != "" {
		return i.GetUserSpecifiedImage()
	}
	return i.GetImage()
}

// namespaces joins or makes the namespaces that the modes of CRI or, for a
// command-line pod, the place name.
func (o *ociSpec) namespaces() error {
	list := []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	if o.cgroupNamespace() {
		list = append(list, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	var more []specs.LinuxNamespace
	if o.cri != nil {
		joined, err := o.criNamespaces()
		if err != nil {
			return err
		}
		more = joined
	} else {
		more = o.placedNamespaces()
	}
	o.spec.Linux.Namespaces = append(list, more...)
	return o.userNamespace()
}

// userNamespace joins the pod's, to which its other namespaces belong. Runtimes want
// the ids told again.
func (o *ociSpec) userNamespace() error {
	ids := manifest.UserNamespaceOf(o.pm.Isolators)
	if ids == nil {
		return nil
	}
	joined := o.place.Namespaces[specs.UserNamespace]
	if joined == "" {
		return fmt.Errorf("the user namespace to join is not known: %w", errdefs.ErrState)
	}
	l := o.spec.Linux
	l.Namespaces = append(l.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace, Path: joined})
	l.UIDMappings, l.GIDMappings = ids.UIDs, ids.GIDs
	return nil
}

// cgroupNamespace says whether the app gets its own: on v1 it would hide nothing
// and confuse, and a privileged container is to see the node.
func (o *ociSpec) cgroupNamespace() bool { return o.node.CgroupV2 && !o.privileged() }

// sandboxModes are the namespace modes of the sandbox.
func (o *ociSpec) sandboxModes() *runtimeapi.NamespaceOption {
	return o.pod.GetLinux().GetSecurityContext().GetNamespaceOptions()
}

// pidMode is the container's say; POD is whatever the sandbox has.
func (o *ociSpec) pidMode() runtimeapi.NamespaceMode {
	if mode := o.security().GetNamespaceOptions().GetPid(); mode != runtimeapi.NamespaceMode_POD {
		return mode
	}
	return o.sandboxModes().GetPid()
}

// criNamespaces follows the modes: network and IPC are the sandbox's, and many
// callers do not repeat them for the container. The UTS namespace is of the
// network's: the host name of a pod in the node's network is the node's.
func (o *ociSpec) criNamespaces() ([]specs.LinuxNamespace, error) {
	sandbox := o.sandboxModes()
	var list []specs.LinuxNamespace
	for _, ns := range []struct {
		kind specs.LinuxNamespaceType
		mode runtimeapi.NamespaceMode
	}{
		{specs.IPCNamespace, sandbox.GetIpc()},
		{specs.NetworkNamespace, sandbox.GetNetwork()},
		{specs.PIDNamespace, o.pidMode()},
		{specs.UTSNamespace, sandbox.GetNetwork()},
	} {
		switch ns.mode {
		case runtimeapi.NamespaceMode_NODE:
		case runtimeapi.NamespaceMode_CONTAINER:
			list = append(list, specs.LinuxNamespace{Type: ns.kind})
		default: // POD and TARGET
			joined := o.place.Namespaces[ns.kind]
			if joined == "" {
				return nil, fmt.Errorf("the %s namespace to join is not known: %w", ns.kind, errdefs.ErrState)
			}
			list = append(list, specs.LinuxNamespace{Type: ns.kind, Path: joined})
		}
	}
	return list, nil
}

func (o *ociSpec) placedNamespaces() []specs.LinuxNamespace {
	var list []specs.LinuxNamespace
	for _, kind := range []specs.LinuxNamespaceType{specs.IPCNamespace, specs.NetworkNamespace, specs.PIDNamespace, specs.UTSNamespace} {
		joined, ok := o.place.Namespaces[kind]
		if !ok && kind != specs.PIDNamespace {
			continue
		}
		list = append(list, specs.LinuxNamespace{Type: kind, Path: joined})
		if kind == specs.UTSNamespace && joined == "" {
			o.spec.Hostname = o.place.UTSName
		}
	}
	return list
}

// nodeIPC says whether the app shares the node's IPC namespace, and its /dev/shm.
func (o *ociSpec) nodeIPC() bool {
	if o.cri != nil {
		return o.sandboxModes().GetIpc() == runtimeapi.NamespaceMode_NODE
	}
	_, own := o.place.Namespaces[specs.IPCNamespace]
	return !own
}

// adjust merges the gantry/oci-adjust isolator over a configuration (RFC 7386).
func adjust(spec *specs.Spec, isolators types.Isolators) (*specs.Spec, error) {
	v, ok := value[*manifest.OCIAdjust](isolators, manifest.OCIAdjustName)
	if !ok {
		return spec, nil
	}
	raw, err := json.Marshal(spec)
	if err != nil {
		return nil, fmt.Errorf("isolator %s: %w", manifest.OCIAdjustName, err)
	}
	merged, err := mergePatch(raw, v.Spec)
	if err != nil {
		return nil, fmt.Errorf("isolator %s: %w: %w", manifest.OCIAdjustName, errdefs.ErrInvalid, err)
	}
	adjusted := &specs.Spec{}
	if err := json.Unmarshal(merged, adjusted); err != nil {
		return nil, fmt.Errorf("isolator %s: %w: %w", manifest.OCIAdjustName, errdefs.ErrInvalid, err)
	}
	return adjusted, nil
}
