package translate

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/appc/spec/schema"
	"github.com/appc/spec/schema/types"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/manifest"
)

func TestCapabilities(t *testing.T) {
	few := []string{"CAP_CHOWN", "CAP_KILL", "CAP_NET_ADMIN"}
	for _, c := range []struct {
		name  string
		caps  *runtimeapi.Capability
		node  []string
		want  []string
		class error
	}{
		{"default", nil, nil, defaultCapabilities, nil},
		{"default on a node with few", nil, few, []string{"CAP_CHOWN", "CAP_KILL"}, nil},
		{"drop all, add one", &runtimeapi.Capability{AddCapabilities: []string{"net_admin"}, DropCapabilities: []string{"ALL"}}, nil, []string{"CAP_NET_ADMIN"}, nil},
		{"add all, drop one", &runtimeapi.Capability{AddCapabilities: []string{"all"}, DropCapabilities: []string{"CAP_KILL"}}, few, []string{"CAP_CHOWN", "CAP_NET_ADMIN"}, nil},
		{"both all", &runtimeapi.Capability{AddCapabilities: []string{"ALL"}, DropCapabilities: []string{"ALL"}}, nil, []string{}, nil},
		{"one that the node lacks", &runtimeapi.Capability{AddCapabilities: []string{"SYS_TIME"}}, few, nil, errdefs.ErrUnsupported},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg, n := testContainer(), testNode()
			cfg.Linux.SecurityContext.Capabilities = c.caps
			n.Capabilities = c.node
			spec, _, err := toOCI(t, testSandbox(), cfg, n, testPlace())
			refusal(t, err, c.class, "SYS_TIME")
			if err == nil && !slices.Equal(spec.Process.Capabilities.Bounding, c.want) {
				t.Errorf("got %q, want %q", spec.Process.Capabilities.Bounding, c.want)
			}
		})
	}
}

func TestPrivilegedHasWhatTheRuntimeHas(t *testing.T) {
	s, c, n := testSandbox(), testContainer(), testNode()
	s.Linux.SecurityContext.Privileged = true
	c.Linux.SecurityContext = &runtimeapi.LinuxContainerSecurityContext{
		Privileged: true, MaskedPaths: []string{"/proc/kcore"}, ReadonlyPaths: []string{"/proc/sys"},
		Seccomp: &runtimeapi.SecurityProfile{}, Capabilities: &runtimeapi.Capability{DropCapabilities: []string{"ALL"}},
	}
	n.Capabilities, n.AppArmor = []string{"CAP_CHOWN"}, "default"
	spec, _, err := toOCI(t, s, c, n, testPlace())
	if err != nil {
		t.Fatal(err)
	}
	l := spec.Linux
	if l.Seccomp != nil || len(l.MaskedPaths)+len(l.ReadonlyPaths) > 0 || spec.Process.ApparmorProfile != "" {
		t.Errorf("confined: %+v", l)
	}
	if got := spec.Process.Capabilities.Effective; !slices.Equal(got, n.Capabilities) {
		t.Errorf("capabilities %q", got)
	}
	if len(l.Devices) != 1 || l.Devices[0].Path != "/dev/fuse" || len(l.Resources.Devices) != 1 || !l.Resources.Devices[0].Allow {
		t.Errorf("devices %+v, rules %+v", l.Devices, l.Resources.Devices)
	}
}

func TestUsers(t *testing.T) {
	id := func(v int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: v} }
	type security = runtimeapi.LinuxContainerSecurityContext
	for _, c := range []struct {
		name, image string
		sec         *security
		user, group string // to look up
		node        *User
		want        specs.User
		class       error
	}{
		{"image without user", "", &security{}, "0", "0", nil, specs.User{AdditionalGids: []uint32{0}}, nil},
		{"image's user by number", "1000", &security{}, "1000", "", nil, specs.User{UID: 1000, AdditionalGids: []uint32{0}}, nil},
		{"image's user and group", "www:50", &security{}, "www", "50", &User{UID: 33, GID: 50}, specs.User{UID: 33, GID: 50, AdditionalGids: []uint32{50}}, nil},
		{"CRI's user hides the image's group", "www:50", &security{RunAsUser: id(7)}, "7", "", nil, specs.User{UID: 7, AdditionalGids: []uint32{0}}, nil},
		{"user and group", "www", &security{RunAsUser: id(1000), RunAsGroup: id(1000)}, "1000", "1000", nil, specs.User{UID: 1000, GID: 1000, AdditionalGids: []uint32{1000}}, nil},
		{"root in so many words", "www", &security{RunAsUser: id(0)}, "0", "", nil, specs.User{AdditionalGids: []uint32{0}}, nil},
		{"name and group", "", &security{RunAsUsername: "nobody", RunAsGroup: id(5)}, "nobody", "5", &User{UID: 65534, GID: 5}, specs.User{UID: 65534, GID: 5, AdditionalGids: []uint32{5}}, nil},
		{"merged groups", "u", &security{SupplementalGroups: []int64{1234, 1000}}, "u", "", &User{UID: 1000, GID: 1000, Groups: []uint32{50000}}, specs.User{UID: 1000, GID: 1000, AdditionalGids: []uint32{1000, 1234, 50000}}, nil},
		{"strict groups", "u", &security{SupplementalGroups: []int64{1234}, SupplementalGroupsPolicy: runtimeapi.SupplementalGroupsPolicy_Strict}, "u", "", &User{UID: 1000, GID: 1000, Groups: []uint32{50000}}, specs.User{UID: 1000, GID: 1000, AdditionalGids: []uint32{1000, 1234}}, nil},
		{"name that nobody looked up", "www", &security{}, "www", "", nil, specs.User{}, errdefs.ErrNotFound},
	} {
		t.Run(c.name, func(t *testing.T) {
			img, cfg, n := testImage(), testContainer(), testNode()
			img.Config.Config.User, cfg.Linux.SecurityContext, n.User = c.image, c.sec, c.node
			pm, err := Container(testSandbox(), cfg, img)
			if err != nil {
				t.Fatal(err)
			}
			pm = reread(t, pm)
			needs, err := NeedsOf(pm, "web")
			if err != nil || needs.User != c.user || needs.Group != c.group {
				t.Errorf("looks up %q:%q, want %q:%q (%v)", needs.User, needs.Group, c.user, c.group, err)
			}
			sandbox, err := Sandbox(testSandbox(), "")
			if err != nil {
				t.Fatal(err)
			}
			spec, _, err := ToOCI(pm, "web", sandbox, n, testPlace())
			refusal(t, err, c.class, "www")
			if err != nil {
				return
			}
			got := spec.Process.User
			if got.UID != c.want.UID || got.GID != c.want.GID || !slices.Equal(got.AdditionalGids, c.want.AdditionalGids) {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
}

func TestExecAndEnvironment(t *testing.T) {
	for _, c := range []struct {
		name          string
		command, args []string
		want          []string
	}{
		{"image's", nil, nil, []string{"/entry", "serve"}},
		{"args replace the command", nil, []string{"x"}, []string{"/entry", "x"}},
		{"command replaces both", []string{"/c"}, nil, []string{"/c"}},
		{"command and args", []string{"/c"}, []string{"", "y"}, []string{"/c", "", "y"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := testContainer()
			cfg.Command, cfg.Args = c.command, c.args
			cfg.Envs = []*runtimeapi.KeyValue{
				{Key: "LANG", Value: []byte("1")},
				{Key: "LANG", Value: nil},
				{Key: "odd name", Value: []byte("2")},
				{Key: "HOSTNAME", Value: []byte("h")},
			}
			spec, _, err := toOCI(t, testSandbox(), cfg, testNode(), testPlace())
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(spec.Process.Args, c.want) {
				t.Errorf("got %q, want %q", spec.Process.Args, c.want)
			}
			want := []string{"PATH=/bin", "HOSTNAME=h", "odd name=2", "LANG="}
			if !slices.Equal(spec.Process.Env, want) {
				t.Errorf("environment %q, want %q", spec.Process.Env, want)
			}
			if spec.Process.Cwd != "/srv" {
				t.Errorf("working directory %q", spec.Process.Cwd)
			}
		})
	}
}

func TestEnvironmentThatIsNotText(t *testing.T) {
	c := testContainer()
	c.Envs = []*runtimeapi.KeyValue{{Key: "LANG", Value: []byte{0xff}}}
	_, _, err := toOCI(t, testSandbox(), c, testNode(), testPlace())
	refusal(t, err, errdefs.ErrUnsupported, "LANG")
}

func TestMountsOverStandardOnes(t *testing.T) {
	for _, c := range []struct{ name, at, gone, left string }{
		{"the devices", "/dev/", "/dev /dev/pts /dev/shm /dev/mqueue", "/proc /sys /sys/fs/cgroup /etc/hosts"},
		{"the system's", "/sys", "/sys /sys/fs/cgroup", "/dev /etc/hosts"},
		{"a directory of the pod's files", "/etc", "", "/etc/hostname /etc/hosts /etc/resolv.conf"},
		{"a file", "/etc/resolv.conf", "/etc/resolv.conf", "/etc/hosts"},
		{"shared memory", "/dev/shm", "/dev/shm", "/dev /dev/mqueue"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := testContainer()
			cfg.Mounts = []*runtimeapi.Mount{{ContainerPath: c.at, HostPath: "/mine"}}
			spec, _, err := toOCI(t, testSandbox(), cfg, testNode(), testPlace())
			if err != nil {
				t.Fatal(err)
			}
			var theirs []string
			for _, m := range spec.Mounts {
				if m.Source != "/mine" {
					theirs = append(theirs, m.Destination)
				} else if strings.Count(m.Destination, "/") > 1 && m.Destination != c.at {
					t.Errorf("mount %+v", m)
				}
			}
			for _, p := range strings.Fields(c.gone) {
				if slices.Contains(theirs, p) {
					t.Errorf("%s is still there", p)
				}
			}
			for _, p := range strings.Fields(c.left) {
				if !slices.Contains(theirs, p) {
					t.Errorf("%s is gone", p)
				}
			}
		})
	}
}

func TestRecursiveReadOnlyNeedsTheRuntime(t *testing.T) {
	c, n := testContainer(), testNode()
	c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/x", HostPath: "/y", Readonly: true, RecursiveReadOnly: true}}
	n.RecursiveReadOnly = false
	_, _, err := toOCI(t, testSandbox(), c, n, testPlace())
	refusal(t, err, errdefs.ErrUnsupported, "/x")
}

func TestNamespaces(t *testing.T) {
	pod, own, node := runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_CONTAINER, runtimeapi.NamespaceMode_NODE
	type option = runtimeapi.NamespaceOption
	for _, c := range []struct {
		name               string
		sandbox, container *option
		want               string
		shm                string
	}{
		{"none given", nil, nil, "ipc@ network@ pid@ uts@", "/run/p/shm"},
		{"the usual pod", &option{Pid: own}, &option{Pid: own}, "ipc@ network@ pid uts@", "/run/p/shm"},
		{"container leaves it to the pod", &option{Pid: own}, nil, "ipc@ network@ pid uts@", "/run/p/shm"},
		{"node's network", &option{Network: node, Pid: own}, &option{Pid: own}, "ipc@ pid", "/run/p/shm"},
		{"node's IPC", &option{Ipc: node, Pid: own}, nil, "network@ pid uts@", "/dev/shm"},
		{"node's processes", &option{Pid: node}, &option{Pid: pod}, "ipc@ network@ uts@", "/run/p/shm"},
		{"own processes in a shared pod", &option{}, &option{Pid: own}, "ipc@ network@ pid uts@", "/run/p/shm"},
		{"another's processes", &option{Pid: own}, &option{Pid: runtimeapi.NamespaceMode_TARGET, TargetId: "x"}, "ipc@ network@ pid@ uts@", "/run/p/shm"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, cfg := testSandbox(), testContainer()
			s.Linux.SecurityContext.NamespaceOptions = c.sandbox
			cfg.Linux.SecurityContext.NamespaceOptions = c.container
			spec, _, err := toOCI(t, s, cfg, testNode(), testPlace())
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, ns := range spec.Linux.Namespaces[2:] { // after mount and cgroup
				joined := ""
				if ns.Path != "" {
					joined = "@"
				}
				got = append(got, string(ns.Type)+joined)
			}
			if strings.Join(got, " ") != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
			i := slices.IndexFunc(spec.Mounts, func(m specs.Mount) bool { return m.Destination == "/dev/shm" })
			if spec.Mounts[i].Source != c.shm {
				t.Errorf("shm is %q, want %q", spec.Mounts[i].Source, c.shm)
			}
		})
	}
}

func TestNamespaceThatIsNotThere(t *testing.T) {
	p := testPlace()
	delete(p.Namespaces, specs.PIDNamespace)
	_, _, err := toOCI(t, testSandbox(), testContainer(), testNode(), p)
	refusal(t, err, errdefs.ErrState, "pid")
}

func TestUserNamespace(t *testing.T) {
	ids := []specs.LinuxIDMapping{{HostID: 100000, Size: 65536}}
	i, err := manifest.Isolator(manifest.UserNamespaceName, json.RawMessage(`{"uids":[{"hostID":100000,"size":65536}],"gids":[{"hostID":100000,"size":65536}]}`))
	if err != nil {
		t.Fatal(err)
	}
	app, err := ImageApp("a", Image{AppcID: "sha512-" + strings.Repeat("0", 128), Config: ocispec.Image{Config: ocispec.ImageConfig{Cmd: []string{"/x"}}}})
	if err != nil {
		t.Fatal(err)
	}
	pm := schema.BlankPodManifest()
	pm.Apps, pm.Isolators = schema.AppList{app}, types.Isolators{i}
	p := testPlace()
	if _, _, err := ToOCI(pm, "a", nil, testNode(), p); !errors.Is(err, errdefs.ErrState) {
		t.Errorf("a namespace that is not there: %v", err)
	}
	p.Namespaces[specs.UserNamespace] = "/run/p/ns/user"
	spec, _, err := ToOCI(pm, "a", nil, testNode(), p)
	if err != nil {
		t.Fatal(err)
	}
	l := spec.Linux
	if !slices.Contains(l.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace, Path: "/run/p/ns/user"}) {
		t.Errorf("namespaces %v", l.Namespaces)
	}
	if !slices.Equal(l.UIDMappings, ids) || !slices.Equal(l.GIDMappings, ids) {
		t.Errorf("ids %v, %v", l.UIDMappings, l.GIDMappings)
	}
}

func TestSeccomp(t *testing.T) {
	localhost := &runtimeapi.SecurityProfile{ProfileType: profileLocalhost, LocalhostRef: "/profiles/a.json"}
	for _, c := range []struct {
		name     string
		profile  *runtimeapi.SecurityProfile
		old      string
		none     bool
		want     specs.LinuxSeccompAction
		warnings int
		class    error
	}{
		{name: "none given is unconfined"},
		{name: "unconfined", profile: &runtimeapi.SecurityProfile{ProfileType: profileUnconfined}, old: "runtime/default"},
		{name: "default", profile: &runtimeapi.SecurityProfile{}, want: specs.ActErrno},
		{name: "default as it was spelt", old: "docker/default", want: specs.ActErrno},
		{name: "the node's", profile: localhost, want: specs.ActLog},
		{name: "the node's as it was spelt", old: "localhost//profiles/a.json", want: specs.ActLog},
		{name: "one that is not there", old: "localhost//absent.json", class: errdefs.ErrNotFound},
		{name: "default on a node without", profile: &runtimeapi.SecurityProfile{}, none: true, warnings: 1},
		{name: "the node's on a node without", profile: localhost, none: true, class: errdefs.ErrUnsupported},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg, n := testContainer(), testNode()
			cfg.Linux.SecurityContext.Seccomp = c.profile
			cfg.Linux.SecurityContext.SeccompProfilePath = c.old //nolint:staticcheck // older kubelets send it
			n.NoSeccomp = c.none
			spec, warnings, err := toOCI(t, testSandbox(), cfg, n, testPlace())
			refusal(t, err, c.class, "seccomp")
			if err != nil {
				return
			}
			var got specs.LinuxSeccompAction
			if spec.Linux.Seccomp != nil {
				got = spec.Linux.Seccomp.DefaultAction
			}
			if got != c.want || len(warnings) != c.warnings {
				t.Errorf("got %q with %q, want %q", got, warnings, c.want)
			}
		})
	}
}

func TestDevices(t *testing.T) {
	c, n := testContainer(), testNode()
	n.Devices = map[string][]specs.LinuxDevice{
		"/dev/snd/": {{Path: "/dev/snd/a", Type: "c", Major: 116, Minor: 1}, {Path: "/dev/snd/by-path/b", Type: "c", Major: 116, Minor: 2}},
		"/dev/link": {{Path: "/dev/real", Type: "b", Major: 8, Minor: 0}},
	}
	c.Devices = []*runtimeapi.Device{
		{HostPath: "/dev/snd/", ContainerPath: "/dev/sound", Permissions: "rw"},
		{HostPath: "/dev/link", ContainerPath: "/dev/disk"},
	}
	spec, _, err := toOCI(t, testSandbox(), c, n, testPlace())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range spec.Linux.Devices {
		got = append(got, d.Path)
	}
	if want := []string{"/dev/sound/a", "/dev/sound/by-path/b", "/dev/disk"}; !slices.Equal(got, want) {
		t.Errorf("devices %q, want %q", got, want)
	}
	rules := spec.Linux.Resources.Devices
	if last := rules[len(rules)-1]; last.Access != "rwm" || *last.Major != 8 || rules[0].Allow {
		t.Errorf("rules %+v", rules)
	}
	n.Devices = nil
	_, _, err = toOCI(t, testSandbox(), c, n, testPlace())
	refusal(t, err, errdefs.ErrNotFound, "/dev/snd/")
}

func TestResources(t *testing.T) {
	type limits = runtimeapi.LinuxContainerResources
	for _, c := range []struct {
		name   string
		limits *limits
		node   Node
		check  func(*specs.LinuxResources) bool
		class  error
		field  string
	}{
		{"nothing", &limits{}, Node{}, func(r *specs.LinuxResources) bool { return r.CPU == nil && r.Memory == nil }, nil, ""},
		{"no swap of its own", &limits{MemoryLimitInBytes: 5}, Node{SwapAccounting: true}, func(r *specs.LinuxResources) bool { return *r.Memory.Swap == 5 }, nil, ""},
		{"swap", &limits{MemoryLimitInBytes: 5, MemorySwapLimitInBytes: 9}, Node{SwapAccounting: true}, func(r *specs.LinuxResources) bool { return *r.Memory.Swap == 9 }, nil, ""},
		{"swap that the node cannot limit", &limits{MemoryLimitInBytes: 5, MemorySwapLimitInBytes: 9}, Node{}, func(r *specs.LinuxResources) bool { return r.Memory.Swap == nil && *r.Memory.Limit == 5 }, nil, ""},
		{"no huge pages", &limits{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB"}}}, Node{}, func(r *specs.LinuxResources) bool { return r.HugepageLimits == nil }, nil, ""},
		{"huge pages", &limits{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 1}}}, Node{HugepageSizes: []string{"2MB"}}, func(r *specs.LinuxResources) bool { return r.HugepageLimits[0].Limit == 1 }, nil, ""},
		{"huge pages without controller", &limits{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 1}}}, Node{}, nil, errdefs.ErrUnsupported, "2MB"},
		{"unified on v1", &limits{Unified: map[string]string{"memory.high": "1"}}, Node{}, nil, errdefs.ErrUnsupported, "unified"},
		{"unlimited quota", &limits{CpuQuota: -1}, Node{}, func(r *specs.LinuxResources) bool { return *r.CPU.Quota == -1 && r.CPU.Period == nil }, nil, ""},
		{"cpuset", &limits{CpusetCpus: "0-1", CpusetMems: "0"}, Node{}, func(r *specs.LinuxResources) bool { return r.CPU.Cpus == "0-1" && r.CPU.Mems == "0" }, nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := Resources(c.limits, c.node)
			refusal(t, err, c.class, c.field)
			if err == nil && !c.check(r) {
				t.Errorf("got %+v", r)
			}
		})
	}
}

func TestWhatIsNotHonouredIsRefused(t *testing.T) {
	for _, c := range []struct{ name, isolators, field string }{
		{"seccomp set", `[{"name":"os/linux/seccomp-remove-set","value":{"set":["stat"]}}]`, "seccomp-remove-set"},
		{"selinux", `[{"name":"os/linux/selinux-context","value":{"user":"u","role":"r","type":"t","level":"l"}}]`, "selinux-context"},
		{"bandwidth", `[{"name":"resource/block-bandwidth","value":{"default":true,"limit":"1"}}]`, "block-bandwidth"},
	} {
		t.Run(c.name, func(t *testing.T) {
			pm := commandLinePod(t, c.isolators)
			_, _, err := ToOCI(pm, "a", nil, testNode(), testPlace())
			refusal(t, err, errdefs.ErrUnsupported, c.field)
		})
	}
}

func TestSELinuxLabelsAreRefusedWhereTheyMeanSomething(t *testing.T) {
	pm := commandLinePod(t, `[{"name":"gantry/cri","value":{"apiVersion":"v1","container":{"metadata":{"name":"a"},"linux":{"securityContext":{"selinuxOptions":{"type":"spc_t"}}}}}}]`)
	sandbox, err := Sandbox(&runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "p", Namespace: "n", Uid: "u"}}, "")
	if err != nil {
		t.Fatal(err)
	}
	n := testNode()
	if _, _, err := ToOCI(pm, "a", sandbox, n, testPlace()); err != nil {
		t.Errorf("without SELinux: %v", err)
	}
	n.SELinux = true
	_, _, err = ToOCI(pm, "a", sandbox, n, testPlace())
	refusal(t, err, errdefs.ErrUnsupported, "selinux_options")
}

func commandLinePod(t *testing.T, isolators string) *schema.PodManifest {
	t.Helper()
	pm, err := manifest.Decode([]byte(`{"acKind":"PodManifest","acVersion":"0.8.11","volumes":null,"annotations":null,"ports":null,"isolators":null,
		"apps":[{"name":"a","image":{"id":"sha512-00"},"app":{"exec":["/a"],"user":"0","group":"0","isolators":` + isolators + `}}]}`))
	if err != nil {
		t.Fatal(err)
	}
	return pm
}

func TestDamagedManifests(t *testing.T) {
	for _, c := range []struct{ name, isolators string }{
		{"a message of another kind", `[{"name":"gantry/cri","value":{"apiVersion":"v1","sandbox":{}}}]`},
		{"a field of the future", `[{"name":"gantry/cri","value":{"apiVersion":"v1","container":{"teleport":true}}}]`},
		{"not an object to merge", `[{"name":"gantry/oci-adjust","value":[1]}]`},
		{"a merge that is no OCI", `[{"name":"gantry/oci-adjust","value":{"mounts":7}}]`},
		{"no memory", `[{"name":"resource/memory","value":{"limit":"-5"}}]`},
		{"too many CPUs", `[{"name":"resource/cpu","value":{"limit":"9E"}}]`},
		{"no such capability", `[{"name":"os/linux/capabilities-retain-set","value":{"set":["CAP_BOGUS"]}}]`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, _, err := ToOCI(commandLinePod(t, c.isolators), "a", nil, testNode(), testPlace())
			refusal(t, err, errdefs.ErrInvalid, "")
		})
	}
	pm := commandLinePod(t, "[]")
	_, _, err := ToOCI(pm, "b", nil, testNode(), testPlace())
	refusal(t, err, errdefs.ErrNotFound, `"b"`)
	_, err = ContainerConfig(pm)
	refusal(t, err, errdefs.ErrInvalid, "gantry/cri")
	_, _, err = SandboxConfig(pm)
	refusal(t, err, errdefs.ErrInvalid, "gantry/cri")
}

func TestAppArmor(t *testing.T) {
	type security = runtimeapi.LinuxContainerSecurityContext
	set := func(kind runtimeapi.SecurityProfile_ProfileType, ref string) *runtimeapi.SecurityProfile {
		return &runtimeapi.SecurityProfile{ProfileType: kind, LocalhostRef: ref}
	}
	for _, c := range []struct {
		name  string
		sec   *security
		node  string // its default
		want  string
		class error
	}{
		{"nothing said", &security{}, "the-default", "the-default", nil},
		{"default", &security{Apparmor: set(profileDefault, "")}, "the-default", "the-default", nil},
		{"default, old string", &security{ApparmorProfile: "runtime/default"}, "the-default", "the-default", nil}, //nolint:staticcheck // older kubelets send it
		{"default on a node without", &security{Apparmor: set(profileDefault, "")}, "", "", nil},
		{"unconfined", &security{Apparmor: set(profileUnconfined, "")}, "the-default", "", nil},
		{"unconfined, old string", &security{ApparmorProfile: "unconfined"}, "the-default", "", nil}, //nolint:staticcheck // older kubelets send it
		{"of the node", &security{Apparmor: set(profileLocalhost, "mine")}, "the-default", "mine", nil},
		{"of the node, with prefix", &security{Apparmor: set(profileLocalhost, "localhost/mine")}, "the-default", "mine", nil},
		{"of the node, old string", &security{ApparmorProfile: "localhost/mine"}, "the-default", "mine", nil},                                 //nolint:staticcheck // older kubelets send it
		{"the new field wins", &security{Apparmor: set(profileLocalhost, "mine"), ApparmorProfile: "unconfined"}, "the-default", "mine", nil}, //nolint:staticcheck // older kubelets send it
		{"not loaded", &security{Apparmor: set(profileLocalhost, "other")}, "the-default", "", errdefs.ErrState},
		{"privileged", &security{Privileged: true, Apparmor: set(profileDefault, "")}, "the-default", "", nil},
		{"privileged, by name", &security{Privileged: true, Apparmor: set(profileLocalhost, "mine")}, "the-default", "mine", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, cfg, n := testSandbox(), testContainer(), testNode()
			s.Linux.SecurityContext.Privileged = c.sec.Privileged
			cfg.Linux.SecurityContext, n.AppArmor, n.AppArmorProfiles = c.sec, c.node, []string{"mine"}
			spec, _, err := toOCI(t, s, cfg, n, testPlace())
			refusal(t, err, c.class, "other")
			if err == nil && spec.Process.ApparmorProfile != c.want {
				t.Errorf("profile %q, want %q", spec.Process.ApparmorProfile, c.want)
			}
		})
	}
}
