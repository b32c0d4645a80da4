package bench

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/gantry-cri/gantry/test/bench/result"
	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/images"
)

// callers is how many pull one image at once.
const callers = 20

// bigSpec is the image that is pulled.
var bigSpec = images.BigSpec{MB: 500, Files: 20000, Layers: 6, Seed: 1}

// BenchmarkImage pulls an image of 500 MB with 20,000 files in 6 layers. Its own time,
// as that of all benchmarks here, means nothing.
func BenchmarkImage(b *testing.B) {
	registry := harness.StartRegistry(b)
	limit := buildLimit(b)
	version(b, "gantry", harness.Binary(b), "version")
	version(b, "podman", "podman", "--version")
	version(b, "docker-registry", "docker-registry", "--version")
	version(b, "igzip", "igzip", "--version")
	version(b, "unpigz", "unpigz", "--version")
	for _, c := range []images.Compression{images.Gzip, images.Zstd} {
		big, err := images.Big(b.TempDir(), bigSpec, images.Options{Compression: c})
		if err != nil {
			b.Fatal(err)
		}
		ref := registry.Ref("bench/" + string(c) + ":1")
		registry.Push(b, "bench/"+string(c)+":1", big)
		who := []string{"gantry", "containerd", "podman", "limit"}
		if c == images.Gzip {
			who = slices.Insert(who, 2, "containerd-igzip")
		}
		inTurn(b, "pull-"+string(c), who, func(b *testing.B, s result.Sample) {
			switch s.Who {
			case "limit":
				pullLimit(b, s, limit, registry, blobs(b, registry, "bench/"+string(c), big))
			case "podman":
				podmanPull(b, s, registry, ref)
			default:
				start(b, s.Who, registry).pull(b, s, ref, 1)
			}
		})
	}
	ref := registry.Ref("bench/gzip:1")
	inTurn(b, "callers", []string{"gantry", "containerd"}, func(b *testing.B, s result.Sample) {
		start(b, s.Who, registry).pull(b, s, ref, callers)
	})
	benchPrepare(b, registry, ref)
}

// podmanPull is (*daemon).pull for podman, which is none.
func podmanPull(b *testing.B, s result.Sample, registry *harness.Registry, ref string) {
	b.Helper()
	d := freshDisk(b)
	p := newPodman(b, d)
	readAll(b, registry.Data)
	received, server := registry.Served(b), daemonCPU(b, registry.PID())
	s, _ = measure(b, d, s, p.command("pull", "--quiet", "--tls-verify=false", "docker://"+ref))
	s.Received, s.Server = registry.Served(b)-received, daemonCPU(b, registry.PID())-server
	record(s)
}

// blobs are the URLs of an image's layers.
func blobs(b *testing.B, registry *harness.Registry, repository string, img v1.Image) []string {
	b.Helper()
	layers, err := img.Layers()
	if err != nil {
		b.Fatal(err)
	}
	var urls []string
	for _, l := range layers {
		digest, err := l.Digest()
		if err != nil {
			b.Fatal(err)
		}
		urls = append(urls, fmt.Sprintf("http://%s/v2/%s/blobs/%s", registry.Addr, repository, digest))
	}
	return urls
}

// pullLimit measures what no pull can do without.
func pullLimit(b *testing.B, s result.Sample, program string, registry *harness.Registry, urls []string) {
	b.Helper()
	d := freshDisk(b)
	readAll(b, registry.Data)
	d.begin(b)
	args := []string{"-dir", d.path, "-server", fmt.Sprint(registry.PID())}
	cmd := exec.Command(program, append(args, urls...)...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	stdout, err := cmd.Output()
	if err != nil {
		b.Fatalf("limit: %v: %s", err, stderr.String())
	}
	s.Limit = &result.Limit{}
	decoder := json.NewDecoder(bytes.NewReader(stdout))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(s.Limit); err != nil {
		b.Fatalf("limit prints %q: %v", stdout, err)
	}
	record(s)
}
