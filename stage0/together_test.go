package stage0_test

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/gantry-cri/gantry/stage0"
	"github.com/gantry-cri/gantry/stage0/credential"
	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/fetch/registrytest"
)

// childEnv has the data directory, the image and the password for a process that
// TestProcessesShareADownload starts.
const childEnv = "GANTRY_TEST_FETCH"

// Processes that pull one image at one time download its layer once, and each of
// them asks the registry for the manifest with credentials of its own: one that is
// refused gets nothing, though the layer is on its way for the others.
func TestProcessesShareADownload(t *testing.T) {
	if said := os.Getenv(childEnv); said != "" {
		fetchAsChild(t, strings.Split(said, " "))
		return
	}
	needRoot(t)
	tokens := registrytest.NewTokens(t)
	reg := registrytest.StartSecure(t, registrytest.Security{Tokens: tokens})
	layer := registrytest.Layer(t, false, registrytest.Tar(t, "a", strings.Repeat("1", 100_000)))
	reg.Push(t, "a/b:1", registrytest.Image(t, registrytest.Spec{Platform: linux, Layers: []v1.Layer{layer}}))
	passwords := []string{registrytest.Password, registrytest.Password, registrytest.Password, "wrong"}
	var proxy *registrytest.Proxy
	proxy = reg.Proxy(t, func(w http.ResponseWriter, q *http.Request, next http.Handler) {
		if strings.HasSuffix(q.URL.Path, digestOf(t, layer)) {
			// Nobody is late: each has asked what the tag means before a byte comes.
			for proxy.Count("HEAD", "/manifests/1") < len(passwords) && q.Context().Err() == nil {
				time.Sleep(10 * time.Millisecond)
			}
		}
		next.ServeHTTP(w, q)
	})
	dir := t.TempDir()
	var g sync.WaitGroup
	for i, password := range passwords {
		g.Go(func() {
			cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
			cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s/a/b:1 %s", childEnv, dir, proxy.Host, password))
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("process %d: %v: %s", i, err, out)
			}
		})
	}
	g.Wait()
	// With a token of its own; the first request of each has none.
	if n := proxy.Count("GET", digestOf(t, layer)); n != 1 {
		t.Errorf("the layer was asked for %d times", n)
	}
	if n := tokens.Issued(); n < 3+1 {
		t.Errorf("%d tokens for the push and three processes", n)
	}
}

func fetchAsChild(t *testing.T, args []string) {
	p, o := newPipeline(t, args[0])
	req := request(t, args[1])
	req.Credentials = credential.For("", credential.Credential{User: registrytest.User, Password: args[2]})
	_, err := p.Fetch(t.Context(), req)
	if args[2] != registrytest.Password {
		if !errors.Is(err, errdefs.ErrDenied) || len(o.layers) != 0 {
			t.Errorf("without access: %v, %v", err, o.layers)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	var states []stage0.LayerState
	for _, l := range o.layers {
		states = append(states, l.State)
	}
	switch states = slices.Compact(states); fmt.Sprint(states) {
	case "[fetching done]", "[waiting present]", "[present]":
	default:
		t.Errorf("the layer was %v", states)
	}
}
