package translate

import (
	"errors"
	"math/rand/v2"
	"testing"

	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// FuzzFromCRI holds that every message of the kubelet, as it comes by the wire, is
// refused with a class, or becomes a manifest that tells the same message again.
func FuzzFromCRI(f *testing.F) {
	add := func(s *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) {
		sandbox, err := proto.Marshal(s)
		if err != nil {
			f.Fatal(err)
		}
		container, err := proto.Marshal(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(sandbox, container)
	}
	add(testSandbox(), testContainer())
	add(&runtimeapi.PodSandboxConfig{}, &runtimeapi.ContainerConfig{})
	for seed := range uint64(8) {
		r := rand.New(rand.NewPCG(seed, 3))
		add(randomSandbox(r), randomContainer(r))
	}
	r := rand.New(rand.NewPCG(0, 4))
	s, c := &runtimeapi.PodSandboxConfig{}, &runtimeapi.ContainerConfig{}
	random(r, s.ProtoReflect(), 0) // without what is refused taken out
	random(r, c.ProtoReflect(), 0)
	add(s, c)
	f.Fuzz(func(t *testing.T, sandbox, container []byte) {
		s, c := &runtimeapi.PodSandboxConfig{}, &runtimeapi.ContainerConfig{}
		known := proto.UnmarshalOptions{DiscardUnknown: true}
		if known.Unmarshal(sandbox, s) != nil || known.Unmarshal(container, c) != nil {
			return // gRPC refuses it
		}
		tellsAgain(t, s, func() (proto.Message, error) {
			pm, err := Sandbox(s, "kata")
			if err != nil {
				return nil, err
			}
			again, handler, err := SandboxConfig(reread(t, pm))
			if err != nil || handler != "kata" {
				t.Fatalf("handler %q, %v", handler, err)
			}
			return again, nil
		})
		tellsAgain(t, c, func() (proto.Message, error) {
			pm, err := Container(s, c, testImage())
			if err != nil {
				return nil, err
			}
			pm = reread(t, pm)
			again, err := ContainerConfig(pm)
			if err != nil {
				t.Fatal(err)
			}
			holder, err := Sandbox(testSandbox(), "")
			if err != nil {
				t.Fatal(err)
			}
			spec, _, err := ToOCI(pm, pm.Apps[0].Name.String(), holder, testNode(), testPlace())
			hasClass(t, err)
			if (spec == nil) != (err != nil) {
				t.Errorf("spec %v, %v", spec, err)
			}
			return again, nil
		})
	})
}

// tellsAgain holds that a message is what its manifest tells, and as it was before.
func tellsAgain(t *testing.T, asked proto.Message, tell func() (proto.Message, error)) {
	t.Helper()
	before := proto.Clone(asked)
	again, err := tell()
	hasClass(t, err)
	if !proto.Equal(asked, before) {
		t.Error("the message was changed")
	}
	if err == nil && !proto.Equal(again, asked) {
		t.Errorf("it tells\n%s\nof\n%s", prototext.Format(again), prototext.Format(asked))
	}
}

// hasClass holds that an error, if it is one, says whose fault it is.
func hasClass(t *testing.T, err error) {
	t.Helper()
	for _, class := range []error{errdefs.ErrInvalid, errdefs.ErrUnsupported, errdefs.ErrNotFound, errdefs.ErrState} {
		if err == nil || errors.Is(err, class) {
			return
		}
	}
	t.Errorf("%v is of no class", err)
}

// FuzzSeccomp holds that a seccomp profile of the node is refused as invalid or
// becomes a filter that says what is done with calls that it does not name.
func FuzzSeccomp(f *testing.F) {
	for _, s := range []string{
		`{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86_64"],"syscalls":[{"names":["read","write"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":1,"op":"SCMP_CMP_EQ"}]}]}`,
		`{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":1,"archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]}],"syscalls":[{"names":["bpf"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_BPF"],"minKernel":"5.8"},"excludes":{"arches":["s390"]}}]}`,
		`{"syscalls":[null],"archMap":[null]}`, `{"defaultAction":"x","syscalls":[{"name":"read","names":["write"]}]}`, `{"syscalls":[{"args":[null],"includes":null,"excludes":{"minKernel":"x"}}]}`,
		`{"architectures":["SCMP_ARCH_X86"],"archMap":[{}]}`, `{}`, `null`, `[]`, ``, `{"listenerPath":"/x","flags":["y"]}`,
	} {
		f.Add([]byte(s))
	}
	c := testContainer()
	c.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{ProfileType: profileLocalhost, LocalhostRef: "/profiles/a.json"}
	pm, err := Container(testSandbox(), c, testImage())
	if err != nil {
		f.Fatal(err)
	}
	sandbox, err := Sandbox(testSandbox(), "")
	if err != nil {
		f.Fatal(err)
	}
	node := testNode()
	f.Fuzz(func(t *testing.T, profile []byte) {
		node.SeccompProfiles["/profiles/a.json"] = profile
		spec, _, err := ToOCI(pm, pm.Apps[0].Name.String(), sandbox, node, testPlace())
		switch {
		case err != nil && !errors.Is(err, errdefs.ErrInvalid):
			t.Errorf("%v is of no class", err)
		case err == nil && spec.Linux.Seccomp == nil:
			t.Error("the profile is no filter")
		case err == nil && spec.Linux.Seccomp.DefaultAction == "":
			t.Error("the filter has no default action")
		}
	})
}
