package cri

import (
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/format"
	"github.com/gantry-cri/gantry/stage0/format/formattest"
	"github.com/gantry-cri/gantry/stage0/manifest"
)

// TestResourcesFormat reads the record of each version of resources.json, whose
// contents are CRI's.
func TestResourcesFormat(t *testing.T) {
	r := newRig(t)
	u, _ := manifest.ID(r.container(r.sandbox("a"), "c")).UUID()
	formattest.Run(t, format.Resources, func(t *testing.T, text []byte) []byte {
		if err := os.WriteFile(r.pods.Path(u, "resources.json"), text, 0o600); err != nil {
			t.Fatal(err)
		}
		var res resources
		if err := r.pods.Resources(u, &res); err != nil || res.GetCpuShares() != 307 {
			t.Fatalf("resources %v, %v", res, err)
		}
		now, err := json.Marshal(struct {
			Schema    int       `json:"schema"`
			Resources resources `json:"resources"`
		}{format.Resources.Current, res})
		if err != nil {
			t.Fatal(err)
		}
		return append(now, '\n')
	})
}

// TestLaterPodIsNotLeftOut holds that a server which cannot read a pod of a later
// version does not begin: the kubelet would start what it does not see again.
func TestLaterPodIsNotLeftOut(t *testing.T) {
	r := newRig(t)
	id := r.container(r.sandbox("a"), "c")
	u, _ := manifest.ID(id).UUID()
	if err := os.WriteFile(r.pods.Path(u, "exit.json"), []byte(`{"schema":99}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err := r.open(); !errors.Is(err, errdefs.ErrUnsupported) || !strings.Contains(err.Error(), string(u)) {
		t.Errorf("server %v, %v; want the pod's name and ErrUnsupported", s, err)
	}
	if err := os.WriteFile(r.pods.Path(u, "exit.json"), []byte(`torn`), 0o600); err != nil {
		t.Fatal(err)
	}
	r.serve()
	if _, containers := r.listed(); len(containers) != 1 {
		t.Errorf("with a torn record: %v", containers)
	}
}
