package cri

import (
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// TestCreateChecksProfiles refuses a container whose profile is not loaded, and
// leaves no pod behind.
func TestCreateChecksProfiles(t *testing.T) {
	r := newRig(t)
	box := r.sandbox("a")
	r.checkErr = fmt.Errorf("AppArmor profile %q is not loaded: %w", "x", errdefs.ErrState)
	resp, err := r.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{
		PodSandboxId: box,
		Config:       containerConfig("c"),
	})
	if status.Code(err) != codes.FailedPrecondition || resp.GetContainerId() != "" {
		t.Errorf("%v, %v", resp, err)
	}
	if pods, err := r.pods.List(); err != nil || len(pods) != 1 {
		t.Errorf("pods: %v, %v", pods, err)
	}
}
