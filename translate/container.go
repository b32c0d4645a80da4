package translate

import (
	"fmt"
	"maps"
	"math"

	"github.com/appc/spec/schema"
	"github.com/appc/spec/schema/types"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/manifest"
)

// Container returns the manifest of a container: a pod with one app. The sandbox's
// configuration is looked at, not stored. Errors are as with [Sandbox].
func Container(s *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig, img Image) (*schema.PodManifest, error) {
	pm, err := containerManifest(s, c, img)
	if err != nil {
		return nil, fmt.Errorf("container %q: %w", c.GetMetadata().GetName(), err)
	}
	return pm, nil
}

func containerManifest(s *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig, img Image) (*schema.PodManifest, error) {
	if err := checkContainer(s, c); err != nil {
		return nil, err
	}
	ra, err := ImageApp(acName(c.GetMetadata().GetName(), "container"), img)
	if err != nil {
		return nil, err
	}
	rest := proto.Clone(c).(*runtimeapi.ContainerConfig)
	sec := rest.GetLinux().GetSecurityContext()

	app := ra.App
	if app.Exec, err = exec(c, img); err != nil {
		return nil, err
	}
	if c.GetWorkingDir() != "" {
		app.WorkingDirectory = c.GetWorkingDir()
	}
	setUser(&ra, c.GetLinux().GetSecurityContext(), img)
	app.UserLabels, rest.Labels = types.UserLabels(rest.Labels), nil
	app.UserAnnotations, rest.Annotations = types.UserAnnotations(rest.Annotations), nil
	app.Environment = toEnvironment(app.Environment, rest.Envs)
	app.MountPoints = uncovered(app.MountPoints, c.GetMounts())

	pm := schema.BlankPodManifest()
	pm.Isolators = []types.Isolator{}
	pm.Annotations = types.Annotations{}
	pm.Ports = []types.ExposedPort{}
	pm.Volumes, ra.Mounts, rest.Mounts = toVolumes(rest.Mounts, app.MountPoints)

	isolators := resourceIsolators(rest.GetLinux().GetResources())
	if sec != nil {
		ra.ReadOnlyRootFS, sec.ReadonlyRootfs = sec.ReadonlyRootfs, false
		for _, g := range sec.SupplementalGroups {
			app.SupplementaryGIDs = append(app.SupplementaryGIDs, int(g))
		}
		sec.SupplementalGroups = nil
		if sec.NoNewPrivs {
			isolators.add(types.LinuxNoNewPrivilegesName, true)
			sec.NoNewPrivs = false
		}
	}
	raw, err := encodeMessage(rest)
	if err != nil {
		return nil, err
	}
	isolators.add(manifest.CRIName, manifest.CRI{APIVersion: manifest.CRIVersion, Container: raw})
	app.Isolators = isolators.list
	pm.Apps = schema.AppList{ra}
	return pm, isolators.err
}

// exec merges as CRI has it: a command replaces the image's entry point and its
// arguments, arguments alone replace the image's arguments.
func exec(c *runtimeapi.ContainerConfig, img Image) (types.Exec, error) {
	entrypoint, cmd := img.Config.Config.Entrypoint, img.Config.Config.Cmd
	if len(c.GetCommand()) > 0 {
		entrypoint, cmd = c.GetCommand(), c.GetArgs()
	} else if len(c.GetArgs()) > 0 {
		cmd = c.GetArgs()
	}
	var argv types.Exec
	argv = append(append(argv, entrypoint...), cmd...)
	if len(argv) == 0 || argv[0] == "" {
		return nil, invalid("command", "none given, and image %s has no entry point", img.named())
	}
	return argv, nil
}

// resourceIsolators takes out of r what appc's isolators say exactly.
func resourceIsolators(r *runtimeapi.LinuxContainerResources) isolatorList {
	var l isolatorList
	if r == nil {
		return l
	}
	if r.MemoryLimitInBytes > 0 {
		l.add(types.ResourceMemoryName, memoryLimit{Limit: fmt.Sprint(r.MemoryLimitInBytes)})
		r.MemoryLimitInBytes = 0
	}
	if types.LinuxCPUShares(r.CpuShares).AssertValid() == nil {
		l.add(types.LinuxCPUSharesName, r.CpuShares)
		r.CpuShares = 0
	}
	if r.OomScoreAdj != 0 {
		l.add(types.LinuxOOMScoreAdjName, r.OomScoreAdj)
		r.OomScoreAdj = 0
	}
	return l
}

// containerRest decodes the gantry/cri isolator of an app: a ContainerConfig
// without what appc carries. It is nil for an app that did not come through CRI.
func containerRest(ra *schema.RuntimeApp) (*runtimeapi.ContainerConfig, error) {
	cri, ok := manifest.CRIOf(ra.App.Isolators)
	if !ok {
		return nil, nil
	}
	if cri.Container == nil {
		return nil, fmt.Errorf("app %s: isolator %s holds no container: %w", ra.Name, manifest.CRIName, errdefs.ErrInvalid)
	}
	c := &runtimeapi.ContainerConfig{}
	if err := decodeMessage(cri.Container, c); err != nil {
		return nil, fmt.Errorf("app %s: %w", ra.Name, err)
	}
	return c, nil
}

// ContainerConfig returns the message that a container was made from, without
// anything that came from the image. errdefs.ErrInvalid says that the pod is not a
// container or that the manifest is damaged.
func ContainerConfig(pm *schema.PodManifest) (*runtimeapi.ContainerConfig, error) {
	if len(pm.Apps) != 1 || pm.Apps[0].App == nil {
		return nil, fmt.Errorf("a container's pod has one app, not %d: %w", len(pm.Apps), errdefs.ErrInvalid)
	}
	ra := &pm.Apps[0]
	c, err := containerRest(ra)
	if err != nil {
		return nil, err
	}
	if c == nil {
		return nil, fmt.Errorf("app %s has no isolator %s: %w", ra.Name, manifest.CRIName, errdefs.ErrInvalid)
	}
	c.Labels = maps.Clone(ra.App.UserLabels)
	c.Annotations = maps.Clone(ra.App.UserAnnotations)
	fromEnvironment(ra.App.Environment, c.Envs)
	if c.Mounts, err = fromVolumes(pm, ra, c.Mounts); err != nil {
		return nil, err
	}
	restoreSecurity(ra, c)
	return c, restoreResources(ra, c)
}

// restoreSecurity puts back what appc carries of the security context.
func restoreSecurity(ra *schema.RuntimeApp, c *runtimeapi.ContainerConfig) {
	if ra.ReadOnlyRootFS {
		security(c).ReadonlyRootfs = true
	}
	for _, g := range ra.App.SupplementaryGIDs {
		security(c).SupplementalGroups = append(security(c).SupplementalGroups, int64(g))
	}
	if noNewPrivileges(ra) {
		security(c).NoNewPrivs = true
	}
}

// noNewPrivileges says whether an app's isolator asks for it.
func noNewPrivileges(ra *schema.RuntimeApp) bool {
	v, ok := value[*types.LinuxNoNewPrivileges](ra.App.Isolators, types.LinuxNoNewPrivilegesName)
	return ok && bool(*v)
}

// restoreResources puts back what appc's isolators carry of the limits.
func restoreResources(ra *schema.RuntimeApp, c *runtimeapi.ContainerConfig) error {
	isolators := ra.App.Isolators
	if v, ok := value[*types.LinuxOOMScoreAdj](isolators, types.LinuxOOMScoreAdjName); ok {
		resources(c).OomScoreAdj = int64(*v)
	}
	if v, ok := value[*types.LinuxCPUShares](isolators, types.LinuxCPUSharesName); ok {
		resources(c).CpuShares = int64(*v)
	}
	limit, ok, err := memoryOf(isolators)
	if ok {
		resources(c).MemoryLimitInBytes = limit
	}
	return err
}

// memoryOf returns the limit of the resource/memory isolator in bytes.
func memoryOf(isolators types.Isolators) (limit int64, ok bool, err error) {
	v, ok := value[*types.ResourceMemory](isolators, types.ResourceMemoryName)
	if !ok || v.Limit() == nil {
		return 0, false, nil
	}
	limit = v.Limit().Value()
	if limit <= 0 || limit == math.MaxInt64 && v.Limit().CmpInt64(math.MaxInt64) != 0 {
		return 0, false, fmt.Errorf("isolator %s: a limit of %s: %w", types.ResourceMemoryName, v.Limit(), errdefs.ErrInvalid)
	}
	return limit, true, nil
}

func linux(c *runtimeapi.ContainerConfig) *runtimeapi.LinuxContainerConfig {
	if c.Linux == nil {
		c.Linux = &runtimeapi.LinuxContainerConfig{}
	}
	return c.Linux
}

func security(c *runtimeapi.ContainerConfig) *runtimeapi.LinuxContainerSecurityContext {
	if linux(c).SecurityContext == nil {
		c.Linux.SecurityContext = &runtimeapi.LinuxContainerSecurityContext{}
	}
	return c.Linux.SecurityContext
}

func resources(c *runtimeapi.ContainerConfig) *runtimeapi.LinuxContainerResources {
	if linux(c).Resources == nil {
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{}
	}
	return c.Linux.Resources
}
