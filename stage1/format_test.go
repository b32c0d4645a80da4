package stage1

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/gantry-cri/gantry/stage0/format"
	"github.com/gantry-cri/gantry/stage0/format/formattest"
	"github.com/gantry-cri/gantry/stage0/manifest"
	"github.com/gantry-cri/gantry/stage0/pod"
	"github.com/gantry-cri/gantry/stage1/network"
)

// TestNetworkFormat reads the record of each version of network.json.
func TestNetworkFormat(t *testing.T) {
	formattest.Run(t, format.Network, func(t *testing.T, text []byte) []byte {
		pods, err := pod.Open(t.TempDir(), t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		u, err := manifest.NewUUID()
		if err != nil {
			t.Fatal(err)
		}
		file := pods.RunPath(u, networkFile)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		result, err := (&Runner{pods: pods}).Network(u)
		if err != nil {
			t.Fatal(err)
		}
		now, err := json.Marshal(networkContent{format.Network.Current, result})
		if err != nil {
			t.Fatal(err)
		}
		return now
	})
}

// TestIntentFormats holds that what each kind of intent says is read as it was
// written: undo must do without the manifest and today's configuration.
func TestIntentFormats(t *testing.T) {
	var content struct{ Intents []pod.Intent }
	if err := format.Intents.Decode(formattest.Record(t, format.Intents, format.Intents.Current), &content); err != nil {
		t.Fatal(err)
	}
	kinds := map[string]any{
		intentCgroup: &cgroupIntent{}, intentNamespaces: &namespacesIntent{}, intentNetwork: &network.Attachment{},
		intentMount: &mountIntent{}, intentContainer: &containerIntent{},
	}
	for _, in := range content.Intents {
		v := kinds[in.Kind]
		if v == nil {
			t.Errorf("%q is no kind of intent, or there are two of it", in.Kind)
			continue
		}
		delete(kinds, in.Kind)
		if err := json.Unmarshal(in.Data, v); err != nil {
			t.Fatal(err)
		}
		now, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if string(now) != string(in.Data) {
			t.Errorf("%s read and written again is\n%s\nand not\n%s", in.Kind, now, in.Data)
		}
	}
	for kind := range kinds {
		t.Errorf("the record has no intent of kind %s", kind)
	}
}
