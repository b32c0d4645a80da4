package translate

import (
	"fmt"
	"maps"

	"github.com/appc/spec/schema"
	"github.com/appc/spec/schema/types"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/manifest"
)

// Sandbox returns the manifest of a sandbox: a pod without apps. What cannot work
// is refused with errdefs.ErrInvalid, what this version cannot do with
// errdefs.ErrUnsupported, both by the name of the field.
func Sandbox(c *runtimeapi.PodSandboxConfig, handler string) (*schema.PodManifest, error) {
	if err := checkSandbox(c); err != nil {
		return nil, fmt.Errorf("sandbox: %w", err)
	}
	pm := schema.BlankPodManifest()
	pm.Apps = schema.AppList{}
	pm.Volumes = []types.Volume{}
	pm.Annotations = types.Annotations{}
	rest := proto.Clone(c).(*runtimeapi.PodSandboxConfig)

	pm.UserLabels, rest.Labels = types.UserLabels(rest.Labels), nil
	pm.UserAnnotations, rest.Annotations = types.UserAnnotations(rest.Annotations), nil
	pm.Ports, rest.PortMappings = toPorts(rest.PortMappings)

	var isolators isolatorList
	if l := rest.Linux; len(l.GetSysctls()) > 0 {
		isolators.add(types.UnixSysctlName, l.Sysctls)
		l.Sysctls = nil
	}
	raw, err := encodeMessage(rest)
	if err != nil {
		return nil, fmt.Errorf("sandbox: %w", err)
	}
	isolators.add(manifest.CRIName, manifest.CRI{APIVersion: manifest.CRIVersion, RuntimeHandler: handler, Sandbox: raw})
	pm.Isolators = isolators.list
	return pm, isolators.err
}

// SandboxConfig returns the message and the handler that a sandbox was made from.
// errdefs.ErrInvalid says that the pod is not a sandbox or that the manifest is damaged.
func SandboxConfig(pm *schema.PodManifest) (*runtimeapi.PodSandboxConfig, string, error) {
	cri, ok := manifest.CRIOf(pm.Isolators)
	if !ok || cri.Sandbox == nil {
		return nil, "", fmt.Errorf("the pod has no isolator %s of a sandbox: %w", manifest.CRIName, errdefs.ErrInvalid)
	}
	c := &runtimeapi.PodSandboxConfig{}
	if err := decodeMessage(cri.Sandbox, c); err != nil {
		return nil, "", err
	}
	c.Labels = maps.Clone(pm.UserLabels)
	c.Annotations = maps.Clone(pm.UserAnnotations)
	ports, err := fromPorts(pm.Ports, c.PortMappings)
	if err != nil {
		return nil, "", err
	}
	c.PortMappings = ports
	if sysctls, ok := value[*types.UnixSysctl](pm.Isolators, types.UnixSysctlName); ok {
		if c.Linux == nil {
			c.Linux = &runtimeapi.LinuxPodSandboxConfig{}
		}
		c.Linux.Sysctls = maps.Clone(*sysctls)
	}
	return c, cri.RuntimeHandler, nil
}

// SandboxSysctls returns the sysctls that are set in a pod's namespaces, their
// names with dots.
func SandboxSysctls(pm *schema.PodManifest) map[string]string {
	sysctls, ok := value[*types.UnixSysctl](pm.Isolators, types.UnixSysctlName)
	if !ok {
		return nil
	}
	dotted := make(map[string]string, len(*sysctls))
	for k, v := range *sysctls {
		dotted[dottedSysctl(k)] = v
	}
	return dotted
}
