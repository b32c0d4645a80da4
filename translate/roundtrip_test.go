package translate

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// words are strings that have hurt somebody.
var words = []string{
	"", "a", "a--b", "Upper", "io.kubernetes.pod.name", "ünï", "with space", "x=y", "line\nbreak", "<&>\u2028",
	"1", "null", "/abs/path", "/abs//path/", "-dash-", strings.Repeat("l", 300), "{\"k\":[1]}",
}

// random fills a message, every field of it, three times in four.
func random(r *rand.Rand, m protoreflect.Message, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if r.IntN(4) == 0 || depth > 6 {
			continue
		}
		switch {
		case fd.IsMap():
			for range r.IntN(4) {
				m.Mutable(fd).Map().Set(protoreflect.ValueOfString(words[r.IntN(len(words))]).MapKey(), protoreflect.ValueOfString(words[r.IntN(len(words))]))
			}
		case fd.IsList():
			list := m.Mutable(fd).List()
			for range r.IntN(4) {
				if fd.Message() == nil {
					list.Append(scalar(r, fd))
					continue
				}
				item := list.NewElement()
				random(r, item.Message(), depth+1)
				list.Append(item)
			}
		case fd.Message() != nil:
			random(r, m.Mutable(fd).Message(), depth+1)
		default:
			m.Set(fd, scalar(r, fd))
		}
	}
}

func scalar(r *rand.Rand, fd protoreflect.FieldDescriptor) protoreflect.Value {
	switch fd.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(words[r.IntN(len(words))])
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([][]byte{[]byte("v"), {0xff, 0xfe}, []byte("ünï"), nil}[r.IntN(4)])
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(r.IntN(2) == 0)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(protoreflect.EnumNumber(r.IntN(fd.Enum().Values().Len())))
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(r.Int32N(65535))
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(r.Uint32())
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(r.Uint64())
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64([]int64{0, 1, 2, 1000, 262144, 262145, 4096, 1<<62 + 12345, 1000000007}[r.IntN(9)])
	}
	panic(fd.Kind())
}

// pick returns one of its arguments.
func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

// allowNamespaces takes out what is refused.
func allowNamespaces(r *rand.Rand, o *runtimeapi.NamespaceOption) {
	if o == nil {
		return
	}
	o.Network = pick(r, runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_NODE)
	o.Ipc = pick(r, runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_NODE)
	o.Pid = pick(r, runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_CONTAINER, runtimeapi.NamespaceMode_NODE)
	o.UsernsOptions = pick(r, nil, &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_NODE})
}

func allowProfile(r *rand.Rand, p *runtimeapi.SecurityProfile, types ...runtimeapi.SecurityProfile_ProfileType) {
	if p == nil {
		return
	}
	if p.ProfileType = pick(r, types...); p.ProfileType == profileLocalhost {
		p.LocalhostRef = "/profiles/x.json"
	}
}

func randomSandbox(r *rand.Rand) *runtimeapi.PodSandboxConfig {
	c := &runtimeapi.PodSandboxConfig{}
	random(r, c.ProtoReflect(), 0)
	c.Metadata = &runtimeapi.PodSandboxMetadata{Name: "n", Uid: "u", Namespace: "ns", Attempt: r.Uint32()}
	c.Hostname = pick(r, "", "host")
	c.Windows = nil
	for _, p := range c.PortMappings {
		p.ContainerPort = max(p.ContainerPort, 1)
		p.HostIp = pick(r, "", "127.0.0.1", "::1", "0:0:0:0:0:0:0:1", "::ffff:10.0.0.1")
	}
	if l := c.Linux; l != nil {
		l.Sysctls = pick(r, nil, map[string]string{"net.ipv4.ip_forward": "1", "net/ipv4/x.y/z": "<2>"})
		if s := l.SecurityContext; s != nil {
			allowNamespaces(r, s.NamespaceOptions)
			if s.NamespaceOptions.GetNetwork() == runtimeapi.NamespaceMode_NODE {
				l.Sysctls = nil
			}
			allowProfile(r, s.Seccomp, profileDefault, profileUnconfined, profileLocalhost)
			allowProfile(r, s.Apparmor, profileDefault, profileUnconfined)
			s.SeccompProfilePath = pick(r, "", "runtime/default", "localhost//x") //nolint:staticcheck // older kubelets send it
			if s.RunAsUser == nil {
				s.RunAsGroup = nil
			}
			for i := range s.SupplementalGroups {
				s.SupplementalGroups[i] %= 1 << 31
			}
			for _, id := range []*runtimeapi.Int64Value{s.RunAsUser, s.RunAsGroup} {
				if id != nil {
					id.Value %= 1 << 31
				}
			}
		}
	}
	return c
}

func randomContainer(r *rand.Rand) *runtimeapi.ContainerConfig {
	c := &runtimeapi.ContainerConfig{}
	random(r, c.ProtoReflect(), 0)
	c.Metadata = &runtimeapi.ContainerMetadata{Name: pick(r, "a--b", "Web", "ünï", "x"), Attempt: r.Uint32()}
	if c.Image == nil {
		c.Image = &runtimeapi.ImageSpec{}
	}
	c.Image.Image = "sha256:abc"
	c.WorkingDir = pick(r, "", "/work")
	c.Windows, c.CDIDevices = nil, nil
	if len(c.Command) > 0 {
		c.Command[0] = "/bin/x"
	}
	for _, e := range c.Envs {
		e.Key = pick(r, "PATH", "odd name", "LANG", "A", "b.c-d", "9x")
	}
	for _, m := range c.Mounts {
		m.HostPath = pick(r, "/host", "/host//path/", "/")
		m.ContainerPath = pick(r, "/data", "/data/x/", "/VAR/Lib", "/…")
		m.Image, m.ImageSubPath, m.UidMappings, m.GidMappings = nil, "", nil, nil
		m.MountOptions = pick(r, nil, []string{"noexec", "nosuid"})
		if m.RecursiveReadOnly = m.RecursiveReadOnly && m.Readonly; m.RecursiveReadOnly {
			m.Propagation = 0
		}
	}
	for _, d := range c.Devices {
		d.ContainerPath, d.HostPath, d.Permissions = "/dev/x", "/dev/fuse", pick(r, "", "rw", "rwm")
	}
	if res := c.GetLinux().GetResources(); res != nil {
		res.OomScoreAdj = pick[int64](r, 0, -1000, 1000, -997)
		res.MemoryLimitInBytes = pick(r, res.MemoryLimitInBytes, -1)
	}
	if s := c.GetLinux().GetSecurityContext(); s != nil {
		allowSecurity(r, s)
	}
	return c
}

func allowSecurity(r *rand.Rand, s *runtimeapi.LinuxContainerSecurityContext) {
	allowNamespaces(r, s.NamespaceOptions)
	if o := s.NamespaceOptions; o != nil { // testSandbox has namespaces of its own
		o.Network, o.Ipc = runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_POD
	}
	s.Privileged = false
	s.Capabilities = pick(r, nil, &runtimeapi.Capability{AddCapabilities: []string{"ALL", "net_admin"}, DropCapabilities: []string{"CAP_CHOWN"}})
	s.MaskedPaths, s.ReadonlyPaths = pick(r, nil, []string{"/proc/x"}), pick(r, nil, []string{"/proc/y", "/proc/z"})
	allowProfile(r, s.Seccomp, profileDefault, profileUnconfined, profileLocalhost)
	allowProfile(r, s.Apparmor, profileDefault, profileUnconfined, profileLocalhost)
	s.SeccompProfilePath, s.ApparmorProfile = pick(r, "", "unconfined"), pick(r, "", "runtime/default", "localhost/x") //nolint:staticcheck // older kubelets send it
	switch r.IntN(3) {
	case 0:
		s.RunAsUser, s.RunAsGroup, s.RunAsUsername = nil, nil, ""
	case 1:
		s.RunAsUser, s.RunAsUsername = &runtimeapi.Int64Value{Value: 1000}, ""
	default:
		s.RunAsUser, s.RunAsUsername = nil, "www"
	}
	if s.RunAsGroup != nil {
		s.RunAsGroup.Value = 7
	}
	for i := range s.SupplementalGroups {
		s.SupplementalGroups[i] %= 1 << 31
	}
}

func TestSandboxRoundTrip(t *testing.T) {
	for seed := range uint64(500) {
		r := rand.New(rand.NewPCG(seed, 1))
		want := randomSandbox(r)
		asked := proto.Clone(want)
		pm, err := Sandbox(want, "kata")
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if !proto.Equal(asked, want) {
			t.Fatalf("seed %d: the request was changed", seed)
		}
		got, handler, err := SandboxConfig(reread(t, pm))
		if err != nil || handler != "kata" {
			t.Fatalf("seed %d: handler %q, %v", seed, handler, err)
		}
		if !proto.Equal(got, want) {
			t.Fatalf("seed %d:\n got %s\nwant %s", seed, prototext.Format(got), prototext.Format(want))
		}
		if len(pm.Ports) != len(want.PortMappings) {
			t.Fatalf("seed %d: %d ports of %d", seed, len(pm.Ports), len(want.PortMappings))
		}
	}
}

func TestContainerRoundTrip(t *testing.T) {
	for seed := range uint64(1000) {
		r := rand.New(rand.NewPCG(seed, 2))
		want := randomContainer(r)
		asked := proto.Clone(want)
		pm, err := Container(testSandbox(), want, testImage())
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if !proto.Equal(asked, want) {
			t.Fatalf("seed %d: the request was changed", seed)
		}
		pm = reread(t, pm)
		for range 2 { // reading does not change the manifest
			got, err := ContainerConfig(pm)
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if !proto.Equal(got, want) {
				t.Fatalf("seed %d:\n got %s\nwant %s", seed, prototext.Format(got), prototext.Format(want))
			}
		}
		checkVolumes(t, want, pm)
		sandbox, err := Sandbox(testSandbox(), "")
		if err != nil {
			t.Fatal(err)
		}
		n := testNode()
		n.HugepageSizes = append([]string{}, words...)
		n.SeccompProfiles["/profiles/x.json"] = []byte(`{"defaultAction":"SCMP_ACT_LOG"}`)
		n.AppArmorProfiles = []string{"/profiles/x.json", "x"}
		_, _, err = ToOCI(pm, pm.Apps[0].Name.String(), sandbox, n, testPlace())
		if err != nil && !strings.Contains(err.Error(), "not UTF-8") {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

func TestTranslationIsDeterministic(t *testing.T) {
	once := func() string {
		r := rand.New(rand.NewPCG(7, 7))
		s := randomSandbox(r)
		sandbox, err := Sandbox(s, "h")
		if err != nil {
			t.Fatal(err)
		}
		pm, err := Container(testSandbox(), randomContainer(r), testImage())
		if err != nil {
			t.Fatal(err)
		}
		spec, warnings, err := toOCI(t, testSandbox(), testContainer(), testNode(), testPlace())
		if err != nil {
			t.Fatal(err)
		}
		raw, err := json.Marshal([]any{sandbox, pm, spec, warnings})
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	want := once()
	for i := range 20 {
		if got := once(); got != want {
			t.Fatalf("run %d differs:\n%s\n%s", i, got, want)
		}
	}
}

func ExampleContainerConfig() {
	c := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "a--b"},
		Image:    &runtimeapi.ImageSpec{Image: "sha256:abc"},
		Args:     []string{"--verbose"},
	}
	pm, err := Container(testSandbox(), c, testImage())
	if err != nil {
		panic(err)
	}
	asked, err := ContainerConfig(pm)
	if err != nil {
		panic(err)
	}
	fmt.Println(pm.Apps[0].Name, pm.Apps[0].App.Exec)
	fmt.Println(asked.Metadata.Name, asked.Command, asked.Args)
	// Output:
	// a-b [/entry --verbose]
	// a--b [] [--verbose]
}
