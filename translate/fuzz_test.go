package translate

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/gantry-cri/gantry/stage0/manifest"
)

// nullValue finds the isolators on which appc's own decoder panics.
var nullValue = regexp.MustCompile(`(?i)"value"\s*:\s*null`)

// FuzzToOCI holds that no manifest makes the translation panic, whatever is in its
// isolators.
func FuzzToOCI(f *testing.F) {
	golden, err := filepath.Glob("testdata/*.in.json")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range golden {
		raw, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(raw), `{"resource/cpu":1}`)
	}
	f.Add(`{"metadata":{"name":"a"},"envs":[{"key":"A"},null],"mounts":[{}],"devices":[{"hostPath":"/dev/fuse"}],"linux":{"securityContext":{"privileged":true}}}`, `{"process":null}`)
	f.Add(`{"linux":{"securityContext":{"seccomp":{"profileType":2,"localhostRef":"/profiles/a.json"},"capabilities":{"addCapabilities":["x"]}}}}`, `{"linux":{"resources":null}}`)
	sandbox, err := Sandbox(testSandbox(), "")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, container, adjust string) {
		raw := `{"acKind":"PodManifest","acVersion":"0.8.11","apps":[{"name":"a","image":{"id":"sha512-00"},
			"mounts":[{"volume":"v","path":"/v"}],
			"app":{"exec":["/a"],"user":"0","group":"0","isolators":[
			{"name":"gantry/cri","value":{"apiVersion":"v1","container":` + container + `}},
			{"name":"gantry/oci-adjust","value":` + adjust + `}]}}],
			"volumes":[{"name":"v","kind":"host","source":"/s"}]}`
		if nullValue.MatchString(raw) {
			t.Skip("appc's decoder")
		}
		pm, err := manifest.Decode([]byte(raw))
		if err != nil {
			return
		}
		for _, app := range pm.Apps {
			if _, err := NeedsOf(pm, app.Name.String()); err != nil {
				continue
			}
			spec, _, err := ToOCI(pm, app.Name.String(), sandbox, testNode(), testPlace())
			if (spec == nil) != (err != nil) {
				t.Fatalf("spec %v, error %v", spec, err)
			}
			StopSignal(pm, app.Name.String())
		}
		if _, err := ContainerConfig(pm); err == nil && len(pm.Apps) != 1 {
			t.Fatal("a container with more than one app")
		}
	})
}
