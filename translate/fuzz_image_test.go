package translate

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/appc/spec/schema"
	"github.com/appc/spec/schema/types"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/manifest"
)

// FuzzImageApp holds that every image's configuration either becomes an app that a
// pod manifest can have, or is refused for what it is.
func FuzzImageApp(f *testing.F) {
	for _, config := range []string{
		`{}`,
		`{"os":"linux","architecture":"arm","variant":"v7","config":{"User":"a:b","Env":["A=1","A","=","a.b=c","A=2"],"Cmd":["x"],"Entrypoint":[""],"WorkingDir":"../x"}}`,
		`{"config":{"ExposedPorts":{"80/tcp":{},"1-70000/udp":{},"/":{},"443":{},"8-9/SCTP":{}},"Volumes":{"/a":{},"a/":{},"":{},"/A/b":{},"/\u0000":{}},"Labels":{"":"x","a":""},"StopSignal":"rtmin+3"}}`,
		`{"os":"windows"}`,
	} {
		f.Add([]byte(config), "docker.io/library/a:1")
	}
	f.Add([]byte(`{"config":null}`), "@:/")
	f.Fuzz(func(t *testing.T, config []byte, name string) {
		img := Image{Name: name, ID: "x", AppcID: "sha512-00"}
		if json.Unmarshal(config, &img.Config) != nil {
			return
		}
		ra, err := ImageApp(types.ACName("a"), img)
		if err != nil {
			if !errors.Is(err, errdefs.ErrInvalid) && !errors.Is(err, errdefs.ErrUnsupported) {
				t.Errorf("%v is of no class", err)
			}
			return
		}
		pm := schema.PodManifest{ACKind: schema.PodManifestKind, ACVersion: schema.AppContainerVersion, Apps: schema.AppList{ra}}
		raw, err := json.Marshal(pm)
		if err != nil {
			t.Fatalf("%s becomes no manifest: %v", config, err)
		}
		got, err := manifest.Decode(raw)
		if err != nil {
			t.Fatalf("%s is not read again: %v", raw, err)
		}
		StopSignal(got, "a")
	})
}
