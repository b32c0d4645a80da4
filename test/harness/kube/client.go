package kube

import (
	"testing"

	internalapi "k8s.io/cri-api/pkg/apis"
	criclient "k8s.io/cri-client/pkg"

	"github.com/gantry-cri/gantry/test/harness"
)

// RuntimeService opens the kubelet's own client of the socket at endpoint
// (unix://PATH).
func RuntimeService(tb testing.TB, endpoint string) internalapi.RuntimeService {
	tb.Helper()
	s, err := criclient.NewRemoteRuntimeServiceBuilder().WithEndpoint(endpoint).WithConnectionTimeout(harness.CRITimeout).Build(tb.Context())
	if err != nil {
		tb.Fatalf("open runtime service: %v", err)
	}
	return s
}

// ImageService opens the kubelet's own client of the image service.
func ImageService(tb testing.TB, endpoint string) internalapi.ImageManagerService {
	tb.Helper()
	s, err := criclient.NewRemoteImageServiceBuilder().WithEndpoint(endpoint).WithConnectionTimeout(harness.CRITimeout).Build(tb.Context())
	if err != nil {
		tb.Fatalf("open image service: %v", err)
	}
	return s
}
