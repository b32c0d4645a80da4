package harness

import (
	"context"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// CRITimeout is the deadline of calls, the kubelet's default.
const CRITimeout = 2 * time.Minute

// Raw are the bare gRPC clients, for tests that choose their own deadlines,
// look at codes or send what the kubelet never would.
type Raw struct {
	runtimeapi.RuntimeServiceClient
	runtimeapi.ImageServiceClient
}

// reconnect looks for a daemon that comes back as often as a test does.
var reconnect = grpc.WithConnectParams(grpc.ConnectParams{
	Backoff:           backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1, MaxDelay: 20 * time.Millisecond},
	MinConnectTimeout: time.Second,
})

// RawClient opens bare clients of the socket at endpoint. It does not wait for
// anyone to listen there.
func RawClient(tb testing.TB, endpoint string) Raw {
	tb.Helper()
	conn, err := grpc.NewClient(endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("localhost"), reconnect)
	if err != nil {
		tb.Fatalf("open %s: %v", endpoint, err)
	}
	tb.Cleanup(func() { conn.Close() })
	return Raw{runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn)}
}

// RemovePods stops and removes every sandbox that the runtime lists, and with
// them their containers.
func RemovePods(tb testing.TB, client Raw) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), CRITimeout)
	defer cancel()
	list, err := client.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		tb.Errorf("list sandboxes to remove: %v", err)
		return
	}
	for _, s := range list.Items {
		if _, err := client.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: s.Id}); err != nil {
			tb.Errorf("stop sandbox %s: %v", s.Id, err)
		}
		if _, err := client.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.Id}); err != nil {
			tb.Errorf("remove sandbox %s: %v", s.Id, err)
		}
	}
}
