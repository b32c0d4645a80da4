package translate

import (
	"slices"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestUnknownFields(t *testing.T) {
	future := protowire.AppendVarint(protowire.AppendTag(nil, 999, protowire.VarintType), 1)
	c := testContainer()
	c.Mounts = []*runtimeapi.Mount{{}, {}}
	c.ProtoReflect().SetUnknown(future)
	c.Linux.SecurityContext.ProtoReflect().SetUnknown(append(future, future...))
	for _, m := range c.Mounts {
		m.ProtoReflect().SetUnknown(future)
	}
	want := []string{"#999", "linux.security_context#999", "mounts#999"}
	if got := UnknownFields(c); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := UnknownFields(testSandbox()); got != nil {
		t.Errorf("got %q of a known message", got)
	}
	var none *runtimeapi.ContainerConfig
	if got := UnknownFields(none); got != nil {
		t.Errorf("got %q of no message", got)
	}
}

func TestRequests(t *testing.T) {
	labelled := func(keys ...string) *runtimeapi.PodSandboxConfig {
		s := testSandbox()
		s.Labels = map[string]string{}
		for _, k := range keys {
			s.Labels[k] = k
		}
		return s
	}
	sandbox := func(s *runtimeapi.PodSandboxConfig, handler string) string {
		r, err := SandboxRequest(s, handler)
		if err != nil {
			t.Fatal(err)
		}
		return string(r[:])
	}
	want := sandbox(labelled("a", "b", "c", "d"), "h")
	for range 50 {
		if sandbox(labelled("d", "c", "b", "a"), "h") != want {
			t.Fatal("equal requests differ")
		}
	}
	if sandbox(labelled("a", "b", "c", "d"), "g") == want || sandbox(labelled("a"), "h") == want {
		t.Error("different requests are equal")
	}
	one, err := ContainerRequest("u", testContainer(), testSandbox())
	if err != nil {
		t.Fatal(err)
	}
	other, err := ContainerRequest("v", testContainer(), testSandbox())
	if err != nil || one == other {
		t.Errorf("sandboxes do not tell requests apart: %v", err)
	}
}
