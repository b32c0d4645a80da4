package translate

import (
	"errors"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// refusal says which class and which field an error must name; nil: none.
func refusal(t *testing.T, err, class error, field string) {
	t.Helper()
	if class == nil {
		if err != nil {
			t.Errorf("got %v", err)
		}
		return
	}
	if !errors.Is(err, class) || !strings.Contains(err.Error(), field) {
		t.Errorf("got %v, want %v that names %q", err, class, field)
	}
}

func TestSandboxRefusals(t *testing.T) {
	type config = runtimeapi.PodSandboxConfig
	modes := func(o *runtimeapi.NamespaceOption) func(*config) {
		return func(c *config) { c.Linux.SecurityContext.NamespaceOptions = o }
	}
	sysctl := func(name string, o *runtimeapi.NamespaceOption) func(*config) {
		return func(c *config) {
			c.Linux.Sysctls = map[string]string{name: "1"}
			c.Linux.SecurityContext.NamespaceOptions = o
		}
	}
	port := func(p *runtimeapi.PortMapping) func(*config) {
		return func(c *config) { c.PortMappings = []*runtimeapi.PortMapping{p} }
	}
	mappings := []*runtimeapi.IDMapping{{HostId: 1, Length: 1}}
	for _, c := range []struct {
		name   string
		change func(*config)
		class  error
		field  string
	}{
		{"as it is", func(*config) {}, nil, ""},
		{"no metadata", func(c *config) { c.Metadata = nil }, errdefs.ErrInvalid, "metadata"},
		{"no name", func(c *config) { c.Metadata.Name = "" }, errdefs.ErrInvalid, "metadata.name"},
		{"no uid", func(c *config) { c.Metadata.Uid = "" }, errdefs.ErrInvalid, "metadata.uid"},
		{"no namespace", func(c *config) { c.Metadata.Namespace = "" }, errdefs.ErrInvalid, "metadata.namespace"},
		{"long hostname", func(c *config) { c.Hostname = strings.Repeat("h", 65) }, errdefs.ErrInvalid, "hostname"},
		{"not UTF-8", func(c *config) { c.LogDirectory = "\xff" }, errdefs.ErrInvalid, "UTF-8"},
		{"windows", func(c *config) { c.Windows = &runtimeapi.WindowsPodSandboxConfig{} }, errdefs.ErrUnsupported, "windows"},
		{"network CONTAINER", modes(&runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_CONTAINER}), errdefs.ErrUnsupported, "network"},
		{"ipc TARGET", modes(&runtimeapi.NamespaceOption{Ipc: runtimeapi.NamespaceMode_TARGET}), errdefs.ErrUnsupported, "ipc"},
		{"pid TARGET", modes(&runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET}), errdefs.ErrInvalid, "pid"},
		{"a mode of the future", modes(&runtimeapi.NamespaceOption{Pid: 9}), errdefs.ErrUnsupported, "pid"},
		{"userns NODE", modes(&runtimeapi.NamespaceOption{UsernsOptions: &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_NODE}}), nil, ""},
		{"userns POD", modes(&runtimeapi.NamespaceOption{UsernsOptions: &runtimeapi.UserNamespace{Uids: mappings}}), errdefs.ErrUnsupported, "userns_options"},
		{"userns TARGET", modes(&runtimeapi.NamespaceOption{UsernsOptions: &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_TARGET}}), errdefs.ErrInvalid, "userns_options"},
		{"userns NODE with mappings", modes(&runtimeapi.NamespaceOption{UsernsOptions: &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_NODE, Gids: mappings}}), errdefs.ErrInvalid, "userns_options"},
		{"sysctl of net", sysctl("net.ipv4.ip_forward", nil), nil, ""},
		{"sysctl with slashes", sysctl("net/ipv4/conf/eth0.1/forwarding", nil), nil, ""},
		{"sysctl of ipc", sysctl("kernel.shm_rmid_forced", nil), nil, ""},
		{"sysctl of mqueue", sysctl("fs.mqueue.msg_max", nil), nil, ""},
		{"sysctl of net on the node", sysctl("net.ipv4.ip_forward", &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE}), errdefs.ErrInvalid, "net.ipv4.ip_forward"},
		{"sysctl of ipc on the node", sysctl("kernel.sem", &runtimeapi.NamespaceOption{Ipc: runtimeapi.NamespaceMode_NODE}), errdefs.ErrInvalid, "kernel.sem"},
		{"sysctl of the node", sysctl("vm.swappiness", nil), errdefs.ErrInvalid, "vm.swappiness"},
		{"sysctl that climbs", sysctl("net.//.//.kernel.core_pattern", nil), errdefs.ErrInvalid, "core_pattern"},
		{"sysctl that climbs by slashes", sysctl("net/../kernel/core_pattern", nil), errdefs.ErrInvalid, "core_pattern"},
		{"port 0", port(&runtimeapi.PortMapping{}), errdefs.ErrInvalid, "port_mappings[0].container_port"},
		{"port 65536", port(&runtimeapi.PortMapping{ContainerPort: 65536}), errdefs.ErrInvalid, "container_port"},
		{"host port -1", port(&runtimeapi.PortMapping{ContainerPort: 1, HostPort: -1}), errdefs.ErrInvalid, "host_port"},
		{"host IP", port(&runtimeapi.PortMapping{ContainerPort: 1, HostIp: "localhost"}), errdefs.ErrInvalid, "host_ip"},
		{"protocol", port(&runtimeapi.PortMapping{ContainerPort: 1, Protocol: 7}), errdefs.ErrUnsupported, "protocol"},
		{"group without user", func(c *config) {
			c.Linux.SecurityContext.RunAsGroup = &runtimeapi.Int64Value{Value: 1}
		}, errdefs.ErrInvalid, "run_as_group"},
		{"selinux, which containers ask for", func(c *config) {
			c.Linux.SecurityContext.SelinuxOptions = &runtimeapi.SELinuxOption{Level: "s0"}
		}, nil, ""},
		{"seccomp by a relative path", func(c *config) {
			c.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{ProfileType: profileLocalhost, LocalhostRef: "x"}
		}, errdefs.ErrInvalid, "seccomp"},
		{"apparmor of the node", func(c *config) {
			c.Linux.SecurityContext.Apparmor = &runtimeapi.SecurityProfile{ProfileType: profileLocalhost, LocalhostRef: "x"}
		}, errdefs.ErrUnsupported, "apparmor"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := testSandbox()
			c.change(s)
			_, err := Sandbox(s, "")
			refusal(t, err, c.class, c.field)
		})
	}
}

func TestContainerRefusals(t *testing.T) {
	type config = runtimeapi.ContainerConfig
	mount := func(m *runtimeapi.Mount) func(*config) {
		return func(c *config) { c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/a", HostPath: "/b"}, m} }
	}
	sec := func(s *runtimeapi.LinuxContainerSecurityContext) func(*config) {
		return func(c *config) { c.Linux.SecurityContext = s }
	}
	armor := func(kind runtimeapi.SecurityProfile_ProfileType) func(*config) {
		return sec(&runtimeapi.LinuxContainerSecurityContext{Apparmor: &runtimeapi.SecurityProfile{ProfileType: kind, LocalhostRef: "localhost/x"}})
	}
	id := func(v int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: v} }
	for _, c := range []struct {
		name   string
		change func(*config)
		class  error
		field  string
	}{
		{"as it is", func(*config) {}, nil, ""},
		{"no metadata", func(c *config) { c.Metadata = nil }, errdefs.ErrInvalid, "metadata.name"},
		{"no image", func(c *config) { c.Image = nil }, errdefs.ErrInvalid, "image"},
		{"windows", func(c *config) { c.Windows = &runtimeapi.WindowsContainerConfig{} }, errdefs.ErrUnsupported, "windows"},
		{"relative working directory", func(c *config) { c.WorkingDir = "x" }, errdefs.ErrInvalid, "working_dir"},
		{"CDI", func(c *config) { c.CDIDevices = []*runtimeapi.CDIDevice{{Name: "v.com/gpu=0"}} }, errdefs.ErrUnsupported, "CDI_devices"},
		{"signal", func(c *config) { c.StopSignal = 99 }, errdefs.ErrUnsupported, "stop_signal"},
		{"variable without name", func(c *config) { c.Envs = []*runtimeapi.KeyValue{{}} }, errdefs.ErrInvalid, "envs[0]"},
		{"variable with =", func(c *config) { c.Envs = []*runtimeapi.KeyValue{{Key: "a=b"}} }, errdefs.ErrInvalid, "envs[0]"},
		{"variable with a zero byte", func(c *config) { c.Envs = []*runtimeapi.KeyValue{{Key: "a", Value: []byte{0}}} }, errdefs.ErrInvalid, "envs[0]"},
		{"mount without path", mount(&runtimeapi.Mount{HostPath: "/x"}), errdefs.ErrInvalid, "mounts[1].container_path"},
		{"mount at a relative path", mount(&runtimeapi.Mount{ContainerPath: "x", HostPath: "/x"}), errdefs.ErrInvalid, "mounts[1].container_path"},
		{"mount over the root", mount(&runtimeapi.Mount{ContainerPath: "/x/..", HostPath: "/x"}), errdefs.ErrInvalid, "mounts[1].container_path"},
		{"mount of nothing", mount(&runtimeapi.Mount{ContainerPath: "/x"}), errdefs.ErrInvalid, "mounts[1].host_path"},
		{"mount of a relative path", mount(&runtimeapi.Mount{ContainerPath: "/x", HostPath: "x"}), errdefs.ErrInvalid, "mounts[1].host_path"},
		{"mount of an image", mount(&runtimeapi.Mount{ContainerPath: "/x", Image: &runtimeapi.ImageSpec{Image: "i"}}), errdefs.ErrUnsupported, "mounts[1].image"},
		{"uid mappings", mount(&runtimeapi.Mount{ContainerPath: "/x", HostPath: "/x", UidMappings: []*runtimeapi.IDMapping{{}}}), errdefs.ErrUnsupported, "uidMappings"},
		{"gid mappings", mount(&runtimeapi.Mount{ContainerPath: "/x", HostPath: "/x", GidMappings: []*runtimeapi.IDMapping{{}}}), errdefs.ErrUnsupported, "gidMappings"},
		{"recursively read-only and writable", mount(&runtimeapi.Mount{ContainerPath: "/x", HostPath: "/x", RecursiveReadOnly: true}), errdefs.ErrInvalid, "recursive_read_only"},
		{"recursively read-only and shared", mount(&runtimeapi.Mount{
			ContainerPath: "/x", HostPath: "/x", RecursiveReadOnly: true, Readonly: true,
			Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER,
		}), errdefs.ErrInvalid, "recursive_read_only"},
		{"propagation", mount(&runtimeapi.Mount{ContainerPath: "/x", HostPath: "/x", Propagation: 7}), errdefs.ErrUnsupported, "propagation"},
		{"mount option", mount(&runtimeapi.Mount{ContainerPath: "/x", HostPath: "/x", MountOptions: []string{"noexec", "idmap"}}), errdefs.ErrUnsupported, "mount_options"},
		{"device path", func(c *config) { c.Devices = []*runtimeapi.Device{{ContainerPath: "/dev/x"}} }, errdefs.ErrInvalid, "devices[0].host_path"},
		{"device permissions", func(c *config) {
			c.Devices = []*runtimeapi.Device{{ContainerPath: "/dev/x", HostPath: "/dev/x", Permissions: "rx"}}
		}, errdefs.ErrInvalid, "devices[0].permissions"},
		{"oom score", func(c *config) { c.Linux.Resources = &runtimeapi.LinuxContainerResources{OomScoreAdj: 1001} }, errdefs.ErrInvalid, "oom_score_adj"},
		{"negative shares", func(c *config) { c.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuShares: -1} }, errdefs.ErrInvalid, "cpu_shares"},
		{"negative period", func(c *config) { c.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuPeriod: -1} }, errdefs.ErrInvalid, "cpu_period"},
		{"user twice", sec(&runtimeapi.LinuxContainerSecurityContext{RunAsUser: id(1), RunAsUsername: "a"}), errdefs.ErrInvalid, "run_as_user"},
		{"group alone", sec(&runtimeapi.LinuxContainerSecurityContext{RunAsGroup: id(1)}), errdefs.ErrInvalid, "run_as_group"},
		{"negative user", sec(&runtimeapi.LinuxContainerSecurityContext{RunAsUser: id(-1)}), errdefs.ErrInvalid, "run_as_user"},
		{"large group", sec(&runtimeapi.LinuxContainerSecurityContext{RunAsUser: id(1), RunAsGroup: id(1 << 32)}), errdefs.ErrInvalid, "run_as_group"},
		{"negative supplemental group", sec(&runtimeapi.LinuxContainerSecurityContext{SupplementalGroups: []int64{5, -1}}), errdefs.ErrInvalid, "supplemental_groups[1]"},
		{"groups policy", sec(&runtimeapi.LinuxContainerSecurityContext{SupplementalGroupsPolicy: 3}), errdefs.ErrUnsupported, "supplemental_groups_policy"},
		{"privileged in a sandbox that is not", sec(&runtimeapi.LinuxContainerSecurityContext{Privileged: true}), errdefs.ErrInvalid, "privileged"},
		{"target of nothing", sec(&runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET}}), errdefs.ErrInvalid, "target_id"},
		{"the node's network in a pod's", sec(&runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE}}), errdefs.ErrInvalid, "network"},
		{"the node's IPC in a pod's", sec(&runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Ipc: runtimeapi.NamespaceMode_NODE}}), errdefs.ErrInvalid, "ipc"},
		{"userns", sec(&runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{UsernsOptions: &runtimeapi.UserNamespace{}}}), errdefs.ErrUnsupported, "userns_options"},
		{"capability", sec(&runtimeapi.LinuxContainerSecurityContext{Capabilities: &runtimeapi.Capability{DropCapabilities: []string{"all", "bogus"}}}), errdefs.ErrInvalid, "bogus"},
		{"masked path", sec(&runtimeapi.LinuxContainerSecurityContext{MaskedPaths: []string{"proc"}}), errdefs.ErrInvalid, "masked_paths[0]"},
		{"selinux, which the node decides about", sec(&runtimeapi.LinuxContainerSecurityContext{SelinuxOptions: &runtimeapi.SELinuxOption{Type: "t"}}), nil, ""},
		{"seccomp string", sec(&runtimeapi.LinuxContainerSecurityContext{SeccompProfilePath: "bogus"}), errdefs.ErrInvalid, "seccomp"}, //nolint:staticcheck // older kubelets send it
		{"apparmor default", armor(profileDefault), nil, ""},
		{"apparmor unconfined", armor(profileUnconfined), nil, ""},
		{"apparmor of the node", armor(profileLocalhost), nil, ""},
		{"apparmor without a name", sec(&runtimeapi.LinuxContainerSecurityContext{Apparmor: &runtimeapi.SecurityProfile{ProfileType: profileLocalhost, LocalhostRef: "localhost/"}}), errdefs.ErrInvalid, "apparmor.localhost_ref"},
		{"apparmor of a newer API", armor(7), errdefs.ErrUnsupported, "apparmor"},
		{"apparmor string", sec(&runtimeapi.LinuxContainerSecurityContext{ApparmorProfile: "localhost/x"}), nil, ""},                                 //nolint:staticcheck // older kubelets send it
		{"apparmor string that means nothing", sec(&runtimeapi.LinuxContainerSecurityContext{ApparmorProfile: "x"}), errdefs.ErrInvalid, "apparmor"}, //nolint:staticcheck // older kubelets send it
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := testContainer()
			c.change(cfg)
			_, err := Container(testSandbox(), cfg, testImage())
			refusal(t, err, c.class, c.field)
		})
	}
}

func TestContainerWithoutAnythingToRun(t *testing.T) {
	img := testImage()
	img.Config.Config.Entrypoint, img.Config.Config.Cmd = nil, nil
	c := testContainer()
	c.Command = nil
	_, err := Container(testSandbox(), c, img)
	refusal(t, err, errdefs.ErrInvalid, "entry point")
}

func TestContainerNeedsTheImagesID(t *testing.T) {
	img := testImage()
	img.AppcID = ""
	_, err := Container(testSandbox(), testContainer(), img)
	refusal(t, err, errdefs.ErrInvalid, "appc id")
}
