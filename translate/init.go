package translate

import (
	"fmt"
	"path"

	"github.com/appc/spec/schema"
	"github.com/appc/spec/schema/types"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

const (
	// initUser is who a sandbox's init is, as in the pause image.
	initUser = 65535
	// initOOMScoreAdj protects it as the kubelet protects a sandbox.
	initOOMScoreAdj = -998
)

// ToOCIInit returns the OCI runtime configuration of the init of a PID namespace
// that the containers of a sandbox share: no capabilities, nothing to write to.
// The sandbox's seccomp profile and user apply to it. The strings are warnings.
func ToOCIInit(sandbox *schema.PodManifest, n Node, p Place) (*specs.Spec, []string, error) {
	pod, _, err := SandboxConfig(sandbox)
	if err != nil {
		return nil, nil, err
	}
	if len(p.InitArgs) == 0 || !path.IsAbs(p.InitArgs[0]) {
		return nil, nil, fmt.Errorf("the sandbox's init has no absolute path: %w", errdefs.ErrInvalid)
	}
	sec := pod.GetLinux().GetSecurityContext()
	// The init is a container of its own with nothing but the sandbox's say on it.
	o := &ociSpec{
		pm: sandbox, pod: pod, node: n, place: p,
		ra: &schema.RuntimeApp{Name: "init", ReadOnlyRootFS: true, App: &types.App{}},
		cri: &runtimeapi.ContainerConfig{Linux: &runtimeapi.LinuxContainerConfig{
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
			},
		}},
	}
	if err := o.buildInit(sec); err != nil {
		return nil, nil, fmt.Errorf("init of the sandbox: %w", err)
	}
	return o.spec, o.warnings, nil
}

func (o *ociSpec) buildInit(sec *runtimeapi.LinuxSandboxSecurityContext) error {
	none := []string{}
	score := o.oomScoreAdj(initOOMScoreAdj)
	user := specs.User{UID: initUser, GID: initUser}
	if sec.GetRunAsUser() != nil {
		user = specs.User{UID: uint32(sec.GetRunAsUser().GetValue()), GID: uint32(sec.GetRunAsGroup().GetValue())}
	}
	o.spec = &specs.Spec{
		Version: ociVersion,
		Root:    &specs.Root{Path: o.place.Rootfs, Readonly: true},
		Process: &specs.Process{
			User: user,
			Args: o.place.InitArgs,
			Env:  []string{"PATH=" + defaultPath},
			Cwd:  "/",
			Capabilities: &specs.LinuxCapabilities{
				Bounding: none, Effective: none, Inheritable: none, Permitted: none, Ambient: none,
			},
			NoNewPrivileges: true,
			OOMScoreAdj:     &score,
		},
		Annotations: criAnnotations(o.pod, o.place.SandboxID, map[string]string{"io.kubernetes.cri.container-type": "sandbox"}),
		Linux: &specs.Linux{
			CgroupsPath:   o.place.CgroupsPath,
			Resources:     &specs.LinuxResources{Devices: defaultDeviceRules()},
			MaskedPaths:   defaultMasked,
			ReadonlyPaths: defaultReadonly,
		},
	}
	if err := o.namespaces(); err != nil {
		return err
	}
	o.spec.Mounts = []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "noexec", "strictatime", "mode=755", "size=64k"}},
	}
	if o.place.InitBinary != "" {
		o.spec.Mounts = append(o.spec.Mounts, specs.Mount{
			Destination: o.place.InitArgs[0], Type: "bind", Source: o.place.InitBinary,
			Options: []string{"bind", "rprivate", "ro", "nosuid", "nodev"},
		})
	}
	filter, err := profile(sec.GetSeccomp(), sec.GetSeccompProfilePath()) //nolint:staticcheck // older kubelets send it
	if err != nil {
		return fmt.Errorf("seccomp: %w", err)
	}
	return o.seccomp(filter)
}
