package podargs

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/appc/spec/schema"
	"github.com/appc/spec/schema/types"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantry-cri/gantry/translate"
)

// testImage is an image with something of all that can be overridden.
func testImage() translate.Image {
	return translate.Image{
		ID:     "sha256:" + strings.Repeat("0", 64),
		AppcID: "sha512-" + strings.Repeat("0", 128),
		Name:   "docker.io/library/foo:latest",
		Config: ocispec.Image{
			Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"},
			Config: ocispec.ImageConfig{
				Entrypoint: []string{"/entry"}, Cmd: []string{"cmd"}, User: "400:500", WorkingDir: "/image",
				Env:          []string{"IMAGE=image", "FILE=image", "SET=image", "APP=image"},
				ExposedPorts: map[string]struct{}{"80/tcp": {}, "53/udp": {}},
				Volumes:      map[string]struct{}{"/data": {}},
				Labels:       map[string]string{"from": "image"},
			},
		},
	}
}

func manifestOf(t *testing.T, words ...string) (*schema.PodManifest, []string, error) {
	t.Helper()
	r, err := parse(words...)
	if err != nil {
		t.Fatal(err)
	}
	pm, notes, err := r.Manifest(slices.Repeat([]translate.Image{testImage()}, len(r.Apps)))
	if err == nil {
		if _, err := json.Marshal(pm); err != nil {
			t.Errorf("the manifest is not valid: %v", err)
		}
	}
	return pm, notes, err
}

// Acceptance case 52, in the documented order.
func TestEnvironment(t *testing.T) {
	t.Setenv("PARENT", "parent")
	t.Setenv("IMAGE", "parent")
	file := writeFile(t, "FILE=file\nSET=file\nAPP=file\n")
	base := map[string]string{"IMAGE": "image", "FILE": "image", "SET": "image", "APP": "image"}
	for _, c := range []struct {
		name string
		line []string
		want map[string]string
	}{
		{"image alone", nil, nil},
		{"file over image", []string{"--set-env-file=" + file}, map[string]string{"FILE": "file", "SET": "file", "APP": "file"}},
		{"set over file", []string{"--set-env-file=" + file, "--set-env=SET=set"}, map[string]string{"FILE": "file", "SET": "set", "APP": "file"}},
		{"app over set", []string{"--set-env=APP=set", "docker:foo", "--environment=APP=app"}, map[string]string{"APP": "app"}},
		{"last of an app wins", []string{"docker:foo", "--environment=APP=1", "--environment=APP=2"}, map[string]string{"APP": "2"}},
		{"inherit fills gaps", []string{"--inherit-env"}, map[string]string{"PARENT": "parent"}},
		{"empty value", []string{"--set-env=SET="}, map[string]string{"SET": ""}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if !slices.Contains(c.line, "docker:foo") {
				c.line = append(c.line, "docker:foo")
			}
			pm, _, err := manifestOf(t, c.line...)
			if err != nil {
				t.Fatal(err)
			}
			want := maps.Clone(base)
			maps.Copy(want, c.want)
			env := pm.Apps[0].App.Environment
			for name, value := range want {
				if got, ok := env.Get(name); !ok || got != value {
					t.Errorf("%s=%q, want %q", name, got, value)
				}
			}
			if _, ok := env.Get("PARENT"); ok != slices.Contains(c.line, "--inherit-env") {
				t.Errorf("PARENT is there: %t", ok)
			}
		})
	}
}

func TestOverrides(t *testing.T) {
	for _, c := range []struct {
		name, line string
		check      func(schema.RuntimeApp) bool
	}{
		{"nothing", "foo", func(a schema.RuntimeApp) bool {
			return slices.Equal(a.App.Exec, []string{"/entry", "cmd"}) && a.App.User == "400" && a.App.Group == "500" && a.App.WorkingDirectory == "/image"
		}},
		{"arguments are appended", "foo -- x", func(a schema.RuntimeApp) bool { return slices.Equal(a.App.Exec, []string{"/entry", "cmd", "x"}) }},
		{"exec replaces", "foo --exec=/bin/ls -- x", func(a schema.RuntimeApp) bool { return slices.Equal(a.App.Exec, []string{"/bin/ls", "x"}) }},
		{"exec is one word", "foo --exec /bin/ls_-l", func(a schema.RuntimeApp) bool { return slices.Equal(a.App.Exec, []string{"/bin/ls_-l"}) }},
		{"user alone", "foo --user=nosuch", func(a schema.RuntimeApp) bool { return a.App.User == "nosuch" && a.App.Group == "500" }},
		{"group alone", "foo --group=/etc", func(a schema.RuntimeApp) bool { return a.App.User == "400" && a.App.Group == "/etc" }},
		{"group ids add up", "foo --supplementary-gids=1,2 --supplementary-gids=3", func(a schema.RuntimeApp) bool { return slices.Equal(a.App.SupplementaryGIDs, []int{1, 2, 3}) }},
		{"working directory", "foo --working-dir=/w", func(a schema.RuntimeApp) bool { return a.App.WorkingDirectory == "/w" }},
		{"read-only", "foo --readonly-rootfs=true", func(a schema.RuntimeApp) bool { return a.ReadOnlyRootFS }},
		{"labels replace", "foo --user-label=a=b=c", func(a schema.RuntimeApp) bool {
			return maps.Equal(a.App.UserLabels, types.UserLabels{"a": "b=c"})
		}},
		{"annotations", "foo --user-annotation=A=1 --user-annotation=A=2", func(a schema.RuntimeApp) bool {
			return maps.Equal(a.App.UserAnnotations, types.UserAnnotations{"A": "2"})
		}},
		{"capabilities retained", "foo --caps-retain=CAP_CHOWN,kill,CAP_KILL", func(a schema.RuntimeApp) bool {
			set, ok := a.App.Isolators.GetByName(types.LinuxCapabilitiesRetainSetName).Value().(types.LinuxCapabilitiesSet)
			return ok && slices.Equal(set.Set(), []types.LinuxCapability{"CAP_CHOWN", "CAP_KILL"})
		}},
		{"capabilities removed", "foo --caps-remove=CAP_CHOWN", func(a schema.RuntimeApp) bool {
			return a.App.Isolators.GetByName(types.LinuxCapabilitiesRevokeSetName) != nil
		}},
		{"mounts of the app win", "--volume=v,kind=empty --volume=w,kind=empty --mount=volume=v,target=/x/ foo --mount=volume=w,target=/x", func(a schema.RuntimeApp) bool {
			return slices.Equal(a.Mounts, []schema.Mount{{Volume: "w", Path: "/x"}})
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			pm, _, err := manifestOf(t, docker(c.line)...)
			if err != nil {
				t.Fatal(err)
			}
			if a := pm.Apps[0]; !c.check(a) {
				t.Errorf("got %+v, %+v", a, a.App)
			}
		})
	}
}

// Acceptance case 58: a mount point without a volume is said.
func TestNotes(t *testing.T) {
	for _, c := range []struct {
		name, line string
		notes      int
	}{
		{"nothing for it", "foo", 1},
		{"a volume of its name", "--volume=volume-data,kind=empty foo", 0},
		{"a mount at its path", "--volume=v,kind=empty foo --mount=volume=v,target=/data/", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, notes, err := manifestOf(t, docker(c.line)...)
			if err != nil || len(notes) != c.notes {
				t.Errorf("notes %q, error %v; want %d notes", notes, err, c.notes)
			}
		})
	}
}

// Acceptance case 63: what can be said of ports once the images are known.
func TestPorts(t *testing.T) {
	for _, c := range []struct{ name, line, want string }{
		{"found", "--port=80-tcp:8080 foo", ""},
		{"two host ports", "--port=80-tcp:8080 --port=80-tcp:8081 foo", ""},
		{"IPv6", "--port=80-tcp:[::1]:8080 foo", ""},
		{"other protocol", "--port=80-tcp:8080 --port=53-udp:8080 foo", ""},
		{"unknown", "--port=http:80 foo", `port name "http" could not be found in any apps`},
		{"in two apps", "--port=80-tcp:80 foo bar", `port name "80-tcp" is defined in multiple apps`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, _, err := manifestOf(t, docker(c.line)...)
			if got := errorText(err); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
	port := func(name, spec string) types.ExposedPort {
		p, err := parsePort(name + ":" + spec)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	apps := schema.AppList{{App: &types.App{Ports: []types.Port{{Name: "a", Protocol: "tcp", Port: 80}, {Name: "b", Protocol: "tcp", Port: 81}}}}}
	for _, c := range []struct {
		name, a, b string
		clash      bool
	}{
		{"one address", "10.0.0.1:80", "10.0.0.1:80", true},
		{"every address", "80", "10.0.0.1:80", true},
		{"every IPv6 address", "[::]:80", "[::1]:80", true},
		{"two addresses", "10.0.0.1:80", "10.0.0.2:80", false},
		{"two ports", "80", "81", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := bindPorts([]types.ExposedPort{port("a", c.a), port("b", c.b)}, apps)
			if (err != nil) != c.clash {
				t.Errorf("got %v, clash wanted: %t", err, c.clash)
			}
		})
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestNothingToRun(t *testing.T) {
	r, err := parse("docker:foo")
	if err != nil {
		t.Fatal(err)
	}
	img := testImage()
	img.Config.Config.Entrypoint, img.Config.Config.Cmd = nil, nil
	if _, _, err := r.Manifest([]translate.Image{img}); err == nil || !strings.Contains(err.Error(), "does not say what to run") {
		t.Errorf("got %v", err)
	}
}
