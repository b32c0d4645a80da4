package cri

import (
	"context"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestDocumented holds that docs/cri.md tells of each call of CRI once: in a row of a
// table, or, if it is answered Unimplemented, in the list of those.
func TestDocumented(t *testing.T) {
	raw, err := os.ReadFile("../docs/cri.md")
	if err != nil {
		t.Fatal(err)
	}
	_, services, _ := strings.Cut(string(raw), "\n## RuntimeService\n")
	services, _, _ = strings.Cut(services, "\n## AppArmor\n")
	described := namesIn(regexp.MustCompile(`(?m)^\| ([A-Z][A-Za-z, ]+) \|`), services)
	listed := namesIn(regexp.MustCompile("(?m)^Answered `Unimplemented`: ([A-Za-z, ]+)"), services)
	described = slices.DeleteFunc(described, func(n string) bool { return n == "RPC" })
	var answered, refused []string
	for name, err := range answers(t, newRig(t).server) {
		if status.Code(err) == codes.Unimplemented {
			refused = append(refused, name)
		} else {
			answered = append(answered, name)
		}
	}
	for _, c := range []struct {
		what      string
		got, want []string
	}{{"described", described, answered}, {"listed as Unimplemented", listed, refused}} {
		slices.Sort(c.got)
		slices.Sort(c.want)
		if !slices.Equal(c.got, c.want) {
			t.Errorf("%s in docs/cri.md: %v\nanswered so: %v", c.what, c.got, c.want)
		}
	}
}

// namesIn are the names, divided by commas, that a pattern finds.
func namesIn(pattern *regexp.Regexp, text string) (names []string) {
	for _, m := range pattern.FindAllStringSubmatch(text, -1) {
		names = append(names, strings.Split(m[1], ", ")...)
	}
	return names
}

// answers sends an empty request to each call, and has the errors.
func answers(t *testing.T, s *Server) map[string]error {
	errs := map[string]error{}
	for _, d := range []grpc.ServiceDesc{runtimeapi.RuntimeService_ServiceDesc, runtimeapi.ImageService_ServiceDesc} {
		for _, m := range d.Methods {
			_, errs[m.MethodName] = m.Handler(s, t.Context(), func(any) error { return nil }, nil)
		}
		for _, m := range d.Streams {
			errs[m.StreamName] = m.Handler(s, emptyStream{ctx: t.Context()})
		}
	}
	return errs
}

// emptyStream brings an empty request and takes nothing.
type emptyStream struct {
	grpc.ServerStream
	ctx context.Context //nolint:containedctx // the call's, that a stream answers with
}

// Context is part of grpc.ServerStream.
func (s emptyStream) Context() context.Context { return s.ctx }

// RecvMsg is part of grpc.ServerStream.
func (emptyStream) RecvMsg(any) error { return nil }
