package translate

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/appc/spec/schema"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/stage0/manifest"
)

var update = flag.Bool("update", false, "write the golden files")

// goldenIn is testdata/NAME.in.json: a sandbox, perhaps with a container, as CRI
// sends them, or the manifest of a command-line pod and the app to look at. Node
// and Place are laid over testNode and testPlace.
type goldenIn struct {
	Handler   string
	Sandbox   json.RawMessage
	Container json.RawMessage
	Image     ocispec.Image
	Pod       json.RawMessage
	App       string
	Node      json.RawMessage
	Place     json.RawMessage
}

// goldenOCI is testdata/NAME.oci.json.
type goldenOCI struct {
	Needs    *Needs      `json:"needs,omitempty"`
	Warnings []string    `json:"warnings,omitempty"`
	Spec     *specs.Spec `json:"spec"`
}

func TestGolden(t *testing.T) {
	inputs, err := filepath.Glob("testdata/*.in.json")
	if err != nil || len(inputs) == 0 {
		t.Fatalf("no inputs: %v", err)
	}
	for _, in := range inputs {
		name := strings.TrimSuffix(in, ".in.json")
		t.Run(filepath.Base(name), func(t *testing.T) {
			var g goldenIn
			raw, err := os.ReadFile(in)
			if err != nil {
				t.Fatal(err)
			}
			d := json.NewDecoder(bytes.NewReader(raw))
			d.DisallowUnknownFields()
			if err := d.Decode(&g); err != nil {
				t.Fatal(err)
			}
			manifests, oci := translateGolden(t, g)
			golden(t, name+".manifest.json", manifests)
			golden(t, name+".oci.json", oci)
		})
	}
}

func golden(t *testing.T, file string, got any) {
	t.Helper()
	raw, err := json.MarshalIndent(got, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	raw = append(raw, '\n')
	if *update {
		if err := os.WriteFile(file, raw, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(raw, want) {
		t.Errorf("%s differs; go test ./translate -update writes:\n%s", file, raw)
	}
}

func overlay(t *testing.T, raw json.RawMessage, into any) {
	t.Helper()
	if raw == nil {
		return
	}
	if err := json.Unmarshal(raw, into); err != nil {
		t.Fatal(err)
	}
}

func parse[M proto.Message](t *testing.T, raw json.RawMessage, m M) M {
	t.Helper()
	if err := protojson.Unmarshal(raw, m); err != nil {
		t.Fatal(err)
	}
	return m
}

// translateGolden returns the manifests of an input and what runs in the end.
func translateGolden(t *testing.T, g goldenIn) (map[string]*schema.PodManifest, goldenOCI) {
	t.Helper()
	n, p := testNode(), testPlace()
	overlay(t, g.Node, &n)
	overlay(t, g.Place, &p)
	manifests := map[string]*schema.PodManifest{}
	if g.Pod != nil {
		pm, err := manifest.Decode(g.Pod)
		if err != nil {
			t.Fatal(err)
		}
		manifests["pod"] = pm
		return manifests, goldenRun(t, pm, g.App, nil, n, p)
	}
	s := parse(t, g.Sandbox, &runtimeapi.PodSandboxConfig{})
	sandbox, err := Sandbox(s, g.Handler)
	if err != nil {
		t.Fatal(err)
	}
	sandbox = reread(t, sandbox)
	manifests["sandbox"] = sandbox
	if g.Container == nil {
		spec, warnings, err := ToOCIInit(sandbox, n, p)
		if err != nil {
			t.Fatal(err)
		}
		return manifests, goldenOCI{Warnings: warnings, Spec: fixed(spec)}
	}
	img := testImage()
	img.Config = g.Image
	pm, err := Container(s, parse(t, g.Container, &runtimeapi.ContainerConfig{}), img)
	if err != nil {
		t.Fatal(err)
	}
	pm = reread(t, pm)
	manifests["container"] = pm
	return manifests, goldenRun(t, pm, pm.Apps[0].Name.String(), sandbox, n, p)
}

func goldenRun(t *testing.T, pm *schema.PodManifest, app string, sandbox *schema.PodManifest, n Node, p Place) goldenOCI {
	t.Helper()
	needs, err := NeedsOf(pm, app)
	if err != nil {
		t.Fatal(err)
	}
	spec, warnings, err := ToOCI(pm, app, sandbox, n, p)
	if err != nil {
		t.Fatal(err)
	}
	return goldenOCI{Needs: &needs, Warnings: warnings, Spec: fixed(spec)}
}

// fixed takes out of the default seccomp filter what depends on kernel and
// architecture.
func fixed(spec *specs.Spec) *specs.Spec {
	if f := spec.Linux.Seccomp; f != nil {
		f.Syscalls, f.Architectures = nil, nil
	}
	return spec
}
