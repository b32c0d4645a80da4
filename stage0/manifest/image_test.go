package manifest

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// imageManifest is that of an image with an app of everything, and what is added.
func imageManifest(more string) string {
	return `{"acKind":"ImageManifest","acVersion":"0.8.11","name":"example.com/app",
		"labels":[{"name":"os","value":"linux"},{"name":"arch","value":"amd64"}],
		"app":{"exec":["/a"],"user":"0","group":"0","environment":[{"name":"A","value":"b"}],"isolators":[{"name":"resource/cpu","value":{"request":"1","limit":"2"}}],
			"mountPoints":[{"name":"m","path":"/m","readOnly":true}],"ports":[{"name":"p","protocol":"tcp","port":1,"count":2,"socketActivated":true}],
			"eventHandlers":[{"name":"pre-start","exec":["/b"]}]},
		"annotations":[{"name":"created","value":"2016-10-27T19:32:27Z"}],
		"dependencies":[{"imageName":"example.com/base","imageID":"sha512-00","labels":[{"name":"version","value":"1"}],"size":1}],
		"pathWhitelist":["/a"]` + more + `}`
}

func TestDecodeImage(t *testing.T) {
	im, err := DecodeImage([]byte(imageManifest("")))
	if err != nil {
		t.Fatal(err)
	}
	if im.Name != "example.com/app" || im.App == nil || len(im.App.Isolators) != 1 || im.Dependencies[0].ImageName != "example.com/base" {
		t.Errorf("read as %+v", im)
	}
	for name, tc := range map[string]struct{ text, want string }{
		"no JSON":         {`{`, "unexpected end"},
		"twice":           {`{}{}`, "after top-level value"},
		"null":            {`null`, "ACKind"},
		"a list":          {`[]`, "cannot unmarshal"},
		"kind":            {`{"acKind":"PodManifest"}`, "ACKind"},
		"no version":      {`{"acKind":"ImageManifest","name":"a"}`, "acVersion must be set"},
		"no name":         {`{"acKind":"ImageManifest","acVersion":"0.8.11"}`, "name must be set"},
		"name":            {imageManifest(`,"name":"Not/Legal"`), "ACIdentifier"},
		"user":            {imageManifest(`,"app":{"exec":["/a"],"user":"","group":"0"}`), "user is required"},
		"port":            {imageManifest(`,"app":{"exec":["/a"],"user":"0","group":"0","ports":[{"name":"p","protocol":"tcp","port":0}]}`), "port must be in"},
		"environment":     {imageManifest(`,"app":{"exec":["/a"],"user":"0","group":"0","environment":[{"name":"a b","value":""}]}`), "identifier"},
		"event":           {imageManifest(`,"app":{"exec":["/a"],"user":"0","group":"0","eventHandlers":[{"name":"never","exec":["/b"]}]}`), "never"},
		"isolator, null":  {imageManifest(`,"app":{"exec":["/a"],"user":"0","group":"0","isolators":[{"name":"resource/cpu","value":null}]}`), `isolator "resource/cpu" has no value`},
		"isolator, none":  {`{"app":{"isolators":[{"name":"resource/cpu"}]}}`, `isolator "resource/cpu" has no value`},
		"isolator, twice": {imageManifest(`,"app":{"exec":["/a"],"user":"0","group":"0","isolators":[{"name":"resource/cpu"}]}`), "nil pointer"},
		"os":              {imageManifest(`,"labels":[{"name":"os","value":"plan9"}]`), `bad os "plan9"`},
		"arch":            {imageManifest(`,"labels":[{"name":"os","value":"linux"},{"name":"arch","value":"armv5l"}]`), `bad arch "armv5l"`},
		"label twice":     {imageManifest(`,"labels":[{"name":"a","value":"1"},{"name":"a","value":"2"}]`), "duplicate labels"},
		"dependency":      {imageManifest(`,"dependencies":[{}]`), "imageName"},
		"dependency's id": {imageManifest(`,"dependencies":[{"imageName":"a","imageID":"md5-00"}]`), "unrecognized hash type"},
		"white list":      {imageManifest(`,"pathWhitelist":["a"]`), `"a" is not an absolute path`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := DecodeImage([]byte(tc.text))
			if !errors.Is(err, errdefs.ErrInvalid) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

func TestDecodeImageOfLaterIsolators(t *testing.T) {
	_, err := DecodeImage([]byte(imageManifest(`,"app":{"exec":["/a"],"user":"0","group":"0","isolators":[{"name":"example.com/magic","value":1}]}`)))
	if !errors.Is(err, errdefs.ErrUnsupported) || !strings.Contains(err.Error(), `isolator "example.com/magic" is not known`) {
		t.Errorf("got %v", err)
	}
}

// FuzzDecodeImage holds that a manifest that is read can be written, and is read
// again as the same.
func FuzzDecodeImage(f *testing.F) {
	f.Add([]byte(imageManifest("")))
	f.Add([]byte(imageManifest(`,"app":null,"dependencies":[null],"labels":[null],"annotations":[null]`)))
	f.Add([]byte(imageManifest(`,"app":{"exec":null,"user":"0","group":"0","isolators":[null],"ports":[null],"mountPoints":[null],"eventHandlers":[null]}`)))
	f.Add([]byte(`{"acKind":"ImageManifest","app":{"isolators":[{"name":"os/linux/seccomp-remove-set","value":{"set":null}},{"name":"resource/memory","value":{"limit":"1k"}}]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		im, err := DecodeImage(data)
		if err != nil {
			if !errors.Is(err, errdefs.ErrInvalid) && !errors.Is(err, errdefs.ErrUnsupported) {
				t.Errorf("%v is of no class", err)
			}
			return
		}
		raw, err := json.Marshal(im)
		if err != nil {
			return // appc writes less than it reads: a null has no checks
		}
		if _, err := DecodeImage(raw); err != nil {
			t.Errorf("%s is not read again: %v", raw, err)
		}
	})
}
