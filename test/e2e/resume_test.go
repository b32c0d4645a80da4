package e2e

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/images"
)

// TestPullResumesAfterKill kills the daemon in the middle of a layer. The kubelet asks
// again, and the registry is asked for the rest alone.
func TestPullResumesAfterKill(t *testing.T) {
	n := startNode(t, harness.GantryOptions{Config: "spoolAbove: 1000000\n"})
	img := must(images.Big(t.TempDir(), images.BigSpec{MB: 6, Files: 10, Layers: 2, Seed: 4}, images.Options{Unique: "resume"}))(t)
	n.registry.Push(t, "resume:1", img)
	layers := must(img.Layers())(t)
	layer := slices.MaxFunc(layers, func(a, b v1.Layer) int { return int(must(a.Size())(t) - must(b.Size())(t)) })
	digest, size := must(layer.Digest())(t), must(layer.Size())(t)
	var mu sync.Mutex
	var asked []string
	addr := proxy(t, n.registry.Addr, func(r *http.Response) error {
		if r.Request.Method != http.MethodGet || !strings.HasSuffix(r.Request.URL.Path, digest.String()) {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		if asked = append(asked, r.Request.Header.Get("Range")); len(asked) == 1 {
			r.Body = struct {
				io.Reader
				io.Closer
			}{io.MultiReader(io.LimitReader(r.Body, size/2), blocked(t)), r.Body}
		}
		return nil
	})
	harness.WriteHosts(t, n.RegistryDir, addr)
	spool := filepath.Join(n.Dir, "tmp", "spool-sha256-"+digest.Hex)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = n.PullImage(callContext(t, callTimeout), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: addr + "/resume:1"}}) // the daemon dies
	}()
	had := func() int64 {
		info, err := os.Stat(spool)
		if err != nil {
			return 0
		}
		return info.Size()
	}
	harness.Eventually(t, patience, func() string {
		if had() < size/3 {
			return fmt.Sprintf("the spool has %d of %d bytes", had(), size)
		}
		return ""
	})
	n.Restart(t)
	<-gone
	want := fmt.Sprintf("bytes=%d-", had())
	n.pull(t, addr+"/resume:1")
	mu.Lock()
	defer mu.Unlock()
	if len(asked) != 2 || asked[1] != want {
		t.Errorf("asked for %q, want %q", asked, want)
	}
	if had() > 0 {
		t.Error("the spool is still there")
	}
}
