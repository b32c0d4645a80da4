package translate

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/appc/spec/schema"
	"github.com/appc/spec/schema/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

func TestFromImage(t *testing.T) {
	img := testImage()
	img.Config.Config.ExposedPorts = map[string]struct{}{"443": {}, "53/udp": {}, "80/tcp": {}, "8000-8010/tcp": {}, "$PORT": {}, "0/tcp": {}}
	img.Config.Config.Volumes = map[string]struct{}{"/var/lib/Data": {}, "/var/lib/data": {}, "/": {}}
	img.Config.Config.WorkingDir = "app"
	img.Config.Config.Env = append(img.Config.Config.Env, "LANG=de", "noequals")
	app, labels, err := FromImage(img)
	if err != nil {
		t.Fatal(err)
	}
	var ports []string
	for _, p := range app.Ports {
		ports = append(ports, p.Name.String()+" "+p.Protocol)
	}
	if want := []string{"53-udp udp", "80-tcp tcp", "443 tcp", "8000-8010-tcp tcp"}; !slices.Equal(ports, want) {
		t.Errorf("ports %q, want %q", ports, want)
	}
	if got := app.Ports[3].Count; got != 11 {
		t.Errorf("count %d, want 11", got)
	}
	var points []string
	for _, p := range app.MountPoints {
		points = append(points, p.Name.String()+" "+p.Path)
	}
	if want := []string{"volume-var-lib-data /var/lib/Data", "volume-var-lib-data-2 /var/lib/data"}; !slices.Equal(points, want) {
		t.Errorf("mount points %q, want %q", points, want)
	}
	if app.WorkingDirectory != "/app" || app.UserLabels["org.example/Maintainer"] != "me" {
		t.Errorf("working directory %q, labels %v", app.WorkingDirectory, app.UserLabels)
	}
	if v, _ := app.Environment.Get("LANG"); v != "de" || len(app.Environment) != 2 {
		t.Errorf("environment %v", app.Environment)
	}
	want := types.Labels{{Name: "arch", Value: "amd64"}, {Name: "os", Value: "linux"}, {Name: "version", Value: "1.2"}}
	if !slices.Equal(labels, want) {
		t.Errorf("labels %v, want %v", labels, want)
	}
	if _, err := json.Marshal(app); err != nil {
		t.Error(err)
	}
}

func TestImageUsers(t *testing.T) {
	for _, c := range []struct{ name, user, wantUser, wantGroup string }{
		{"none", "", "0", "0"},
		{"number", "1000", "1000", "1000"},
		{"both", "1000:50", "1000", "50"},
		{"names", "www:web", "www", "web"},
		{"group alone", ":web", "0", "web"},
		{"user and colon", "www:", "www", "www"},
	} {
		t.Run(c.name, func(t *testing.T) {
			img := testImage()
			img.Config.Config.User = c.user
			app, _, err := FromImage(img)
			if err != nil {
				t.Fatal(err)
			}
			if app.User != c.wantUser || app.Group != c.wantGroup {
				t.Errorf("got %s:%s, want %s:%s", app.User, app.Group, c.wantUser, c.wantGroup)
			}
		})
	}
}

func TestImageApp(t *testing.T) {
	for _, c := range []struct{ name, image, identifier, version string }{
		{"tag", "docker.io/library/web:1.2", "docker.io/library/web", "1.2"},
		{"port and no tag", "127.0.0.1:5117/Team/small", "127.0.0.1_5117/team/small", ""},
		{"digest", "quay.io/a/b@sha256:00", "quay.io/a/b", ""},
		{"no name", "", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			img := testImage()
			img.Name = c.image
			ra, err := ImageApp("x", img)
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			if ra.Image.Name != nil {
				got = ra.Image.Name.String()
			}
			version, _ := ra.Image.Labels.Get("version")
			if got != c.identifier || version != c.version {
				t.Errorf("got %q %q", got, version)
			}
			if _, err := json.Marshal(ra); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestImageOfAnotherSystem(t *testing.T) {
	img := testImage()
	img.Config.OS = "windows"
	_, _, err := FromImage(img)
	refusal(t, err, errdefs.ErrUnsupported, "windows")
}

func TestStopSignal(t *testing.T) {
	for _, c := range []struct {
		name, image string
		cri         runtimeapi.Signal
		want        string
	}{
		{"neither", "", 0, "SIGTERM"},
		{"the image's", "SIGQUIT", 0, "SIGQUIT"},
		{"the image's without SIG", "usr1", 0, "SIGUSR1"},
		{"the image's as a number", "3", 0, "3"},
		{"CRI's first", "SIGQUIT", runtimeapi.Signal_SIGNAL_SIGUSR2, "SIGUSR2"},
		{"a real-time signal", "", runtimeapi.Signal_SIGNAL_SIGRTMINPLUS3, "SIGRTMIN+3"},
		{"and from the other end", "", runtimeapi.Signal_SIGNAL_SIGRTMAXMINUS3, "SIGRTMAX-3"},
	} {
		t.Run(c.name, func(t *testing.T) {
			img := testImage()
			img.Config.Config.StopSignal = c.image
			cfg := testContainer()
			cfg.StopSignal = c.cri
			pm, err := Container(testSandbox(), cfg, img)
			if err != nil {
				t.Fatal(err)
			}
			if got := StopSignal(reread(t, pm), "web"); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
	if got := StopSignal(schema.BlankPodManifest(), "absent"); got != "SIGTERM" {
		t.Errorf("absent app: %s", got)
	}
}

func TestACName(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"legal", "web-1", "web-1"},
		{"two dashes", "a--b", "a-b"},
		{"upper case", "Web_Server.x", "web-server-x"},
		{"edges", "-/a/-", "a"},
		{"nothing left", "…", "fallback"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := acName(c.in, "fallback"); got.String() != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}
