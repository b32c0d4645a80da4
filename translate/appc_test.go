package translate

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/appc/spec/schema"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/manifest"
)

const linuxLabels = `,"labels":[{"name":"os","value":"linux"},{"name":"arch","value":"amd64"},{"name":"version","value":"1.0"}]`

func appcOf(t *testing.T, more string) Image {
	t.Helper()
	im, err := manifest.DecodeImage([]byte(`{"acKind":"ImageManifest","acVersion":"0.8.11","name":"example.com/app"` + more + `}`))
	if err != nil {
		t.Fatal(err)
	}
	return Image{ID: "sha256:00", AppcID: "sha512-" + strings.Repeat("0", 128), Appc: im}
}

// TestAppcApp holds that the app of an appc image is taken as it is.
func TestAppcApp(t *testing.T) {
	const app = `{"exec":["/a","b"],"user":"/inspect","group":"7","supplementaryGIDs":[8],"workingDirectory":"/w",
		"environment":[{"name":"A","value":"b"}],"mountPoints":[{"name":"data","path":"/data","readOnly":true}],
		"ports":[{"name":"http","protocol":"tcp","port":80,"count":1,"socketActivated":false}],
		"isolators":[{"name":"os/linux/capabilities-retain-set","value":{"set":["CAP_CHOWN"]}},{"name":"resource/memory","value":{"limit":"64M"}}],
		"userAnnotations":{"a":"b"},"userLabels":{"c":"d"}}`
	img := appcOf(t, linuxLabels+`,"app":`+app)
	ra, err := ImageApp("x", img)
	if err != nil {
		t.Fatal(err)
	}
	got, err := json.Marshal(ra.App)
	if err != nil {
		t.Fatal(err)
	}
	want, err := json.Marshal(img.Appc.App)
	if err != nil || string(got) != string(want) {
		t.Errorf("app %s\nwant %s, %v", got, want, err)
	}
	if version, _ := ra.Image.Labels.Get("version"); ra.Image.Name.String() != "example.com/app" || version != "1.0" || ra.Image.ID.String() != img.AppcID {
		t.Errorf("image %+v", ra.Image)
	}
	if _, err := json.Marshal(schema.AppList{ra}); err != nil {
		t.Error(err)
	}
	// The caller's to change.
	ra.App.Exec[0], ra.App.Isolators = "/changed", slices.Delete(ra.App.Isolators, 0, 1)
	if img.Appc.App.Exec[0] != "/a" || len(img.Appc.App.Isolators) != 2 || img.Appc.App.Isolators[0].Name != "os/linux/capabilities-retain-set" {
		t.Errorf("the image was changed: %+v", img.Appc.App)
	}
}

// TestAppcAppMissing: acceptance case 53, of an image without an app.
func TestAppcAppMissing(t *testing.T) {
	app, _, err := FromImage(appcOf(t, linuxLabels))
	if err != nil || len(app.Exec) != 0 || app.User != "0" || app.Group != "0" {
		t.Errorf("got %+v, %v", app, err)
	}
}

// TestAppcRefused: acceptance case 37, and what would be dropped without a word.
func TestAppcRefused(t *testing.T) {
	app := func(more string) string {
		return linuxLabels + `,"app":{"exec":["/a"],"user":"0","group":"0",` + more + `}`
	}
	for name, tc := range map[string]struct {
		more  string
		class error
		want  string
	}{
		"no labels":     {``, errdefs.ErrInvalid, "missing os label in the image manifest"},
		"no arch":       {`,"labels":[{"name":"os","value":"linux"}]`, errdefs.ErrInvalid, "missing arch label in the image manifest"},
		"freebsd":       {`,"labels":[{"name":"os","value":"freebsd"},{"name":"arch","value":"amd64"}]`, errdefs.ErrUnsupported, `bad os "freebsd"`},
		"s390x":         {`,"labels":[{"name":"os","value":"linux"},{"name":"arch","value":"s390x"}]`, errdefs.ErrUnsupported, `bad arch "s390x"`},
		"event handler": {app(`"eventHandlers":[{"name":"pre-start","exec":["/b"]}]`), errdefs.ErrUnsupported, `event handler "pre-start"`},
		"socket":        {app(`"ports":[{"name":"http","protocol":"tcp","port":80,"socketActivated":true}]`), errdefs.ErrUnsupported, `port "http": socket activation`},
		"seccomp":       {app(`"isolators":[{"name":"os/linux/seccomp-remove-set","value":{"set":["stat"]}}]`), errdefs.ErrUnsupported, `isolator "os/linux/seccomp-remove-set"`},
		"ours":          {app(`"isolators":[{"name":"gantry/oci-adjust","value":{"process":{"noNewPrivileges":false}}}]`), errdefs.ErrUnsupported, `isolator "gantry/oci-adjust"`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ImageApp("x", appcOf(t, tc.more))
			refusal(t, err, tc.class, tc.want)
			if !strings.Contains(err.Error(), `image "example.com/app"`) {
				t.Errorf("%v does not name the image", err)
			}
		})
	}
}
