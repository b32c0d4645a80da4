package translate

import (
	"fmt"
	"math"
	"path"
	"slices"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// invalid refuses a field whose value can never work.
func invalid(field, format string, args ...any) error {
	return fmt.Errorf("%s: %s: %w", field, fmt.Sprintf(format, args...), errdefs.ErrInvalid)
}

// unsupported refuses a field that this version does not honour.
func unsupported(field, format string, args ...any) error {
	return fmt.Errorf("%s: %s: %w", field, fmt.Sprintf(format, args...), errdefs.ErrUnsupported)
}

// first returns the first error of a list.
func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// knownEnum says whether this version's API has a name for the number.
func knownEnum(e protoreflect.Enum) bool {
	return e.Descriptor().Values().ByNumber(e.Number()) != nil
}

func absolute(field, p string) error {
	if !path.IsAbs(p) {
		return invalid(field, "%q is not an absolute path", p)
	}
	if strings.ContainsRune(p, 0) {
		return invalid(field, "%q holds a zero byte", p)
	}
	return nil
}

func allAbsolute(field string, paths []string) error {
	for i, p := range paths {
		if err := absolute(fmt.Sprintf("%s[%d]", field, i), p); err != nil {
			return err
		}
	}
	return nil
}

func checkSandbox(c *runtimeapi.PodSandboxConfig) error {
	m := c.GetMetadata()
	switch {
	case m == nil:
		return invalid("metadata", "missing")
	case m.GetName() == "":
		return invalid("metadata.name", "missing")
	case m.GetUid() == "":
		return invalid("metadata.uid", "missing")
	case m.GetNamespace() == "":
		return invalid("metadata.namespace", "missing")
	case len(c.GetHostname()) > 64:
		return invalid("hostname", "%q is longer than the 64 characters that Linux takes", c.GetHostname())
	case c.GetWindows() != nil:
		return unsupported("windows", "this is a Linux node")
	}
	sec := c.GetLinux().GetSecurityContext()
	err := first(
		checkText(c),
		checkPorts(c.GetPortMappings()),
		checkNamespaces("linux.security_context.namespace_options", sec.GetNamespaceOptions()),
		checkSysctls(c.GetLinux().GetSysctls(), sec.GetNamespaceOptions()),
		checkIDs(sec.GetRunAsUser(), sec.GetRunAsGroup(), sec.GetSupplementalGroups()),
		checkSeccomp(sec.GetSeccomp(), sec.GetSeccompProfilePath()), //nolint:staticcheck // older kubelets send it
		checkSandboxAppArmor(sec.GetApparmor()),
	)
	if err != nil {
		return err
	}
	if sec.GetRunAsGroup() != nil && sec.GetRunAsUser() == nil {
		return invalid("linux.security_context.run_as_group", "given without run_as_user")
	}
	if sec.GetNamespaceOptions().GetPid() == runtimeapi.NamespaceMode_TARGET {
		return invalid("linux.security_context.namespace_options.pid", "a sandbox has no container to target")
	}
	return nil
}

// checkNamespaces refuses modes that mean nothing or that are not there yet.
func checkNamespaces(field string, o *runtimeapi.NamespaceOption) error {
	for _, ns := range []struct {
		name string
		mode runtimeapi.NamespaceMode
	}{{"network", o.GetNetwork()}, {"ipc", o.GetIpc()}} {
		if ns.mode != runtimeapi.NamespaceMode_POD && ns.mode != runtimeapi.NamespaceMode_NODE {
			return unsupported(field+"."+ns.name, "mode %v; POD and NODE are", ns.mode)
		}
	}
	switch o.GetPid() {
	case runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_CONTAINER, runtimeapi.NamespaceMode_NODE:
	case runtimeapi.NamespaceMode_TARGET:
		if o.GetTargetId() == "" {
			return invalid(field+".target_id", "missing with pid TARGET")
		}
	default:
		return unsupported(field+".pid", "mode %v", o.GetPid())
	}
	return checkUserns(field+".userns_options", o.GetUsernsOptions())
}

// checkUserns accepts the node's user namespace alone. No options at all are what
// kubelets without user namespaces send, and mean the same.
func checkUserns(field string, u *runtimeapi.UserNamespace) error {
	switch {
	case u == nil:
		return nil
	case u.GetMode() == runtimeapi.NamespaceMode_POD:
		return unsupported(field+".mode", "POD")
	case u.GetMode() != runtimeapi.NamespaceMode_NODE:
		return invalid(field+".mode", "%v; POD and NODE are possible", u.GetMode())
	case len(u.GetUids()) > 0 || len(u.GetGids()) > 0:
		return invalid(field, "mappings make no sense with mode NODE")
	}
	return nil
}

// checkIDs holds ids to what the kernel takes. The largest number stands for
// "no change" there.
func checkIDs(user, group *runtimeapi.Int64Value, groups []int64) error {
	ok := func(id int64) bool { return id >= 0 && id < math.MaxUint32 }
	const field = "linux.security_context."
	if user != nil && !ok(user.GetValue()) {
		return invalid(field+"run_as_user", "%d is not a user id", user.GetValue())
	}
	if group != nil && !ok(group.GetValue()) {
		return invalid(field+"run_as_group", "%d is not a group id", group.GetValue())
	}
	for i, g := range groups {
		if !ok(g) {
			return invalid(fmt.Sprintf("%ssupplemental_groups[%d]", field, i), "%d is not a group id", g)
		}
	}
	return nil
}

// checkContainer looks at what can be known without the node.
func checkContainer(s *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) error {
	switch {
	case c.GetMetadata().GetName() == "":
		return invalid("metadata.name", "missing")
	case c.GetImage().GetImage() == "":
		return invalid("image", "missing")
	case c.GetWindows() != nil:
		return unsupported("windows", "this is a Linux node")
	case c.GetWorkingDir() != "" && !path.IsAbs(c.GetWorkingDir()):
		return invalid("working_dir", "%q is not an absolute path", c.GetWorkingDir())
	case len(c.GetCDIDevices()) > 0:
		return unsupported("CDI_devices", "%q", c.GetCDIDevices()[0].GetName())
	case !knownEnum(c.GetStopSignal()):
		return unsupported("stop_signal", "number %d", c.GetStopSignal())
	}
	return first(
		checkText(c),
		checkEnvs(c.GetEnvs()),
		checkMounts(c.GetMounts()),
		checkDevices(c.GetDevices()),
		checkResources(c.GetLinux().GetResources()),
		checkSecurity(s, c.GetLinux().GetSecurityContext()),
	)
}

func checkSecurity(s *runtimeapi.PodSandboxConfig, sec *runtimeapi.LinuxContainerSecurityContext) error {
	const field = "linux.security_context."
	switch {
	case sec.GetRunAsUser() != nil && sec.GetRunAsUsername() != "":
		return invalid(field+"run_as_user", "given together with run_as_username")
	case sec.GetRunAsGroup() != nil && sec.GetRunAsUser() == nil && sec.GetRunAsUsername() == "":
		return invalid(field+"run_as_group", "given without run_as_user or run_as_username")
	case sec.GetPrivileged() && !s.GetLinux().GetSecurityContext().GetPrivileged():
		return invalid(field+"privileged", "the sandbox is not privileged")
	case !knownEnum(sec.GetSupplementalGroupsPolicy()):
		return unsupported(field+"supplemental_groups_policy", "number %d", sec.GetSupplementalGroupsPolicy())
	}
	pod, own := s.GetLinux().GetSecurityContext().GetNamespaceOptions(), sec.GetNamespaceOptions()
	if own.GetNetwork() == runtimeapi.NamespaceMode_NODE && pod.GetNetwork() != own.GetNetwork() {
		return invalid(field+"namespace_options.network", "NODE in a sandbox that has a network of its own")
	}
	if own.GetIpc() == runtimeapi.NamespaceMode_NODE && pod.GetIpc() != own.GetIpc() {
		return invalid(field+"namespace_options.ipc", "NODE in a sandbox that has its own IPC namespace")
	}
	return first(
		checkNamespaces(field+"namespace_options", own),
		checkIDs(sec.GetRunAsUser(), sec.GetRunAsGroup(), sec.GetSupplementalGroups()),
		checkCapabilities(sec.GetCapabilities()),
		allAbsolute(field+"masked_paths", sec.GetMaskedPaths()),
		allAbsolute(field+"readonly_paths", sec.GetReadonlyPaths()),
		checkSeccomp(sec.GetSeccomp(), sec.GetSeccompProfilePath()), //nolint:staticcheck // older kubelets send it
		checkAppArmor(sec.GetApparmor(), sec.GetApparmorProfile()),  //nolint:staticcheck // older kubelets send it
	)
}

// checkEnvs refuses names that no process can be given.
func checkEnvs(envs []*runtimeapi.KeyValue) error {
	for i, e := range envs {
		if e.GetKey() == "" || strings.ContainsAny(e.GetKey(), "=\x00") || slices.Contains(e.GetValue(), 0) {
			return invalid(fmt.Sprintf("envs[%d]", i), "%q cannot be an environment variable", e.GetKey())
		}
	}
	return nil
}

// mountOptions are the options of Mount.mount_options that OCI runtimes apply to
// a bind mount.
var mountOptions = []string{
	"noexec", "nodev", "nosuid", "exec", "dev", "suid",
	"noatime", "nodiratime", "relatime", "strictatime",
}

func checkMounts(mounts []*runtimeapi.Mount) error {
	for i, m := range mounts {
		if err := checkMount(fmt.Sprintf("mounts[%d]", i), m); err != nil {
			return err
		}
	}
	return nil
}

func checkMount(field string, m *runtimeapi.Mount) error {
	if m.GetContainerPath() == "" {
		return invalid(field+".container_path", "missing")
	}
	if err := absolute(field+".container_path", m.GetContainerPath()); err != nil {
		return err
	}
	switch {
	case path.Clean(m.GetContainerPath()) == "/":
		return invalid(field+".container_path", "the root filesystem cannot be mounted over")
	case m.GetImage() != nil || m.GetImageSubPath() != "":
		return unsupported(field+".image", "image volumes")
	case len(m.GetUidMappings()) > 0:
		return unsupported(field+".uidMappings", "id-mapped mounts")
	case len(m.GetGidMappings()) > 0:
		return unsupported(field+".gidMappings", "id-mapped mounts")
	case !knownEnum(m.GetPropagation()):
		return unsupported(field+".propagation", "number %d", m.GetPropagation())
	case m.GetRecursiveReadOnly() && !m.GetReadonly():
		return invalid(field+".recursive_read_only", "needs readonly")
	case m.GetRecursiveReadOnly() && m.GetPropagation() != runtimeapi.MountPropagation_PROPAGATION_PRIVATE:
		return invalid(field+".recursive_read_only", "needs propagation PRIVATE")
	}
	for _, o := range m.GetMountOptions() {
		if !slices.Contains(mountOptions, o) {
			return unsupported(field+".mount_options", "%q", o)
		}
	}
	return absolute(field+".host_path", m.GetHostPath())
}

func checkDevices(devices []*runtimeapi.Device) error {
	for i, d := range devices {
		field := fmt.Sprintf("devices[%d]", i)
		if strings.Trim(d.GetPermissions(), "rwm") != "" {
			return invalid(field+".permissions", "%q is not made of r, w and m", d.GetPermissions())
		}
		err := first(absolute(field+".container_path", d.GetContainerPath()), absolute(field+".host_path", d.GetHostPath()))
		if err != nil {
			return err
		}
	}
	return nil
}

func checkResources(r *runtimeapi.LinuxContainerResources) error {
	const field = "linux.resources."
	switch {
	case r.GetOomScoreAdj() < -1000 || r.GetOomScoreAdj() > 1000:
		return invalid(field+"oom_score_adj", "%d is not between -1000 and 1000", r.GetOomScoreAdj())
	case r.GetCpuShares() < 0:
		return invalid(field+"cpu_shares", "%d is negative", r.GetCpuShares())
	case r.GetCpuPeriod() < 0:
		return invalid(field+"cpu_period", "%d is negative", r.GetCpuPeriod())
	}
	return nil
}
