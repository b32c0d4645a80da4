package harness

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/gantry-cri/gantry/test/images"
)

// Registry is Debian's docker-registry on a loopback port of its own.
type Registry struct {
	*Process
	Addr    string // host:port
	Data    string // directory of its blobs, for tests that damage them
	dir     string
	metrics string // host:port
}

const registryConfig = `version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage:
  filesystem: {rootdirectory: %s}
  delete: {enabled: true}
http:
  addr: %s
`

// registryMetrics follows registryConfig.
const registryMetrics = `  debug: {addr: %s, prometheus: {enabled: true}}
`

// StartRegistry starts an empty registry.
func StartRegistry(tb testing.TB) *Registry {
	tb.Helper()
	r := &Registry{Addr: FreeAddr(tb), dir: Dir(tb), metrics: FreeAddr(tb)}
	r.Data = filepath.Join(r.dir, "data")
	config := fmt.Sprintf(registryConfig+registryMetrics, r.Data, r.Addr, r.metrics)
	if err := os.WriteFile(r.config(), []byte(config), 0o644); err != nil {
		tb.Fatalf("write configuration of registry: %v", err)
	}
	tb.Cleanup(func() { r.Finish(tb) })
	r.Start(tb)
	return r
}

func (r *Registry) config() string { return filepath.Join(r.dir, "config.yaml") }

// Start starts the registry again after Stop, with the same address and data.
func (r *Registry) Start(tb testing.TB) {
	tb.Helper()
	r.Process = StartProcess(tb, r.dir, "registry", []string{"docker-registry", "serve", r.config()})
	r.WaitFor(tb, 20*time.Second, func() error { return httpOK("http://" + r.Addr + "/v2/") })
}

// Ref is the reference of a repository with or without tag in this registry.
func (r *Registry) Ref(repository string) string { return r.Addr + "/" + repository }

// Push pushes an image or index as repository:tag and returns its reference by
// digest.
func (r *Registry) Push(tb testing.TB, repository string, what remote.Taggable) string {
	tb.Helper()
	digest, err := images.Push(tb.Context(), r.Ref(repository), what)
	if err != nil {
		tb.Fatalf("push test image: %v", err)
	}
	return digest
}

// Served is how many bytes of blobs the registry has sent since its start.
func (r *Registry) Served(tb testing.TB) int64 {
	tb.Helper()
	const series = `registry_http_response_size_bytes_sum{handler="blob"} `
	for line := range strings.Lines(httpText(tb, "http://"+r.metrics+"/metrics")) {
		if value, ok := strings.CutPrefix(line, series); ok {
			n, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				tb.Fatalf("metrics of the registry: %q: %v", line, err)
			}
			return int64(n)
		}
	}
	return 0 // nobody has asked for one yet
}

// HangingRegistry listens, accepts connections and never answers. It returns
// its host:port.
func HangingRegistry(tb testing.TB) string {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatalf("listen: %v", err)
	}
	tb.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			tb.Cleanup(func() { c.Close() })
		}
	}()
	return l.Addr().String()
}

// WriteHosts writes DIR/<host:port>/hosts.toml, which says that the registry at
// addr speaks plain http.
func WriteHosts(tb testing.TB, dir, addr string) {
	tb.Helper()
	dir = filepath.Join(dir, addr)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		tb.Fatalf("make directory of hosts.toml: %v", err)
	}
	toml := fmt.Sprintf("server = \"http://%s\"\n", addr)
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(toml), 0o644); err != nil {
		tb.Fatalf("write hosts.toml: %v", err)
	}
}

// httpText is the body of what is at url.
func httpText(tb testing.TB, url string) string {
	tb.Helper()
	resp, err := http.Get(url)
	if err != nil {
		tb.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		tb.Fatalf("%s: %s, err %v", url, resp.Status, err)
	}
	return string(body)
}

func httpOK(url string) error {
	client := http.Client{Timeout: 5 * time.Second}
	resp, err := client.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	return nil
}
