package e2e

import (
	"encoding/base64"
	"os"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
)

// TestPullCredentials pulls with credentials in the request, from a registry that wants
// a password and from one that wants tokens. What one request brought helps no other
// one, though the image is there, and no secret is logged or returned.
func TestPullCredentials(t *testing.T) {
	n := startNode(t, harness.GantryOptions{Config: "verbosity: 6\n"})
	basic, tokens := n.registry.Basic(t), n.registry.Tokens(t)
	right := func(server string) *runtimeapi.AuthConfig {
		return &runtimeapi.AuthConfig{Username: harness.User, Password: harness.Password, ServerAddress: server}
	}
	encoded := base64.StdEncoding.EncodeToString([]byte(harness.User + ":" + harness.Password))
	for _, tc := range []struct {
		name, registry string
		auth           *runtimeapi.AuthConfig
		code           codes.Code
	}{
		{"basic, none", basic, nil, codes.PermissionDenied},
		{"basic, wrong", basic, &runtimeapi.AuthConfig{Username: harness.User, Password: "hunter2-wrong"}, codes.PermissionDenied},
		{"basic, right", basic, right(""), codes.OK},
		{"basic, right and the image is there", basic, right(""), codes.OK},
		{"basic, none and the image is there", basic, nil, codes.PermissionDenied},
		{"basic, encoded", basic, &runtimeapi.AuthConfig{Auth: encoded}, codes.OK},
		{"basic, for this server", basic, right("http://" + basic + "/v2/"), codes.OK},
		{"basic, for another server", basic, right("other.test"), codes.PermissionDenied},
		{"basic, no base64", basic, &runtimeapi.AuthConfig{Auth: "hunter2-%"}, codes.InvalidArgument},
		{"tokens, none", tokens.Addr, nil, codes.PermissionDenied},
		{"tokens, wrong", tokens.Addr, &runtimeapi.AuthConfig{Username: harness.User, Password: "hunter2-wrong"}, codes.PermissionDenied},
		{"tokens, right", tokens.Addr, right(""), codes.OK},
		{"tokens, none and the image is there", tokens.Addr, nil, codes.PermissionDenied},
		{"tokens, encoded", tokens.Addr, &runtimeapi.AuthConfig{Auth: encoded}, codes.OK},
		{"tokens, for another server", tokens.Addr, right("other.test"), codes.PermissionDenied},
		{"tokens, identity", tokens.Addr, &runtimeapi.AuthConfig{IdentityToken: harness.Refresh}, codes.OK},
		{"tokens, of the registry", tokens.Addr, &runtimeapi.AuthConfig{RegistryToken: tokens.Token("busybox")}, codes.OK},
		{"tokens, of another repository", tokens.Addr, &runtimeapi.AuthConfig{RegistryToken: tokens.Token("other")}, codes.PermissionDenied},
	} {
		t.Run(tc.name, func(t *testing.T) {
			harness.WriteHosts(t, n.RegistryDir, tc.registry)
			issued := tokens.Issued.Load()
			_, err := n.PullImage(callContext(t, callTimeout), &runtimeapi.PullImageRequest{
				Image: &runtimeapi.ImageSpec{Image: tc.registry + "/busybox:1"}, Auth: tc.auth,
			})
			wantCode(t, err, tc.code)
			if err != nil && strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the error has a secret: %v", err)
			}
			if asked := tokens.Issued.Load() > issued; asked != (tc.registry == tokens.Addr && err == nil && tc.auth.GetRegistryToken() == "") {
				t.Errorf("a token was issued: %t", asked)
			}
		})
	}
	log, err := os.ReadFile(n.Log)
	if err != nil || !strings.Contains(string(log), "PullImage") || strings.Contains(string(log), "hunter2") || strings.Contains(string(log), encoded) {
		t.Errorf("the daemon's log knows no PullImage, or a secret (%v)", err)
	}
}
