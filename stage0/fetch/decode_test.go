package fetch

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

const (
	zeros     = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
	configRef = `"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"` + zeros + `","size":1}`
	manifest  = `{"schemaVersion":2,` + configRef + `,"layers":[]}`
	index     = `{"schemaVersion":2,"manifests":[]}`
	layerFmt  = `{"schemaVersion":2,` + configRef + `,"layers":[{"mediaType":%q,"digest":%q,"size":%d}]}`
	layerKind = ocispec.MediaTypeImageLayerGzip
)

func TestDecodeDocument(t *testing.T) {
	for _, tc := range []struct {
		name, data, served string
		index              bool
		err                error
	}{
		{name: "manifest", data: manifest},
		{name: "manifest served as octets", data: manifest, served: "application/octet-stream"},
		{name: "manifest that says so", data: strings.Replace(manifest, "{", `{"mediaType":"`+ocispec.MediaTypeImageManifest+`",`, 1)},
		{name: "manifest served as index", data: manifest, served: ocispec.MediaTypeImageIndex},
		{name: "index", data: index, index: true},
		{name: "layer", data: fmt.Sprintf(layerFmt, layerKind, zeros, 5)},
		{name: "manifest that calls itself an index", data: strings.Replace(manifest, "{", `{"mediaType":"`+ocispec.MediaTypeImageIndex+`",`, 1), err: errdefs.ErrInvalid},
		{name: "index that calls itself a manifest", data: strings.Replace(index, "{", `{"mediaType":"`+dockerManifest+`",`, 1), err: errdefs.ErrInvalid},
		{name: "both", data: strings.Replace(manifest, "{", `{"manifests":[],`, 1), err: errdefs.ErrInvalid},
		{name: "neither", data: `{"schemaVersion":2}`, err: errdefs.ErrUnsupported},
		{name: "schema 1", data: `{"schemaVersion":1,"fsLayers":[{}]}`, err: errdefs.ErrUnsupported},
		{name: "schema 3", data: `{"schemaVersion":3}`, err: errdefs.ErrInvalid},
		{name: "not JSON", data: `<html>`, err: errdefs.ErrInvalid},
		{name: "artifact", data: strings.Replace(manifest, "image.config", "empty", 1), err: errdefs.ErrUnsupported},
		{name: "encrypted layer", data: fmt.Sprintf(layerFmt, layerKind+"+encrypted", zeros, 5), err: errdefs.ErrUnsupported},
		{name: "digest that is a path", data: fmt.Sprintf(layerFmt, layerKind, "sha256:../../etc", 5), err: errdefs.ErrInvalid},
		{name: "negative size", data: fmt.Sprintf(layerFmt, layerKind, zeros, -1), err: errdefs.ErrInvalid},
		{name: "too many entries", data: `{"schemaVersion":2,"manifests":[` + strings.Repeat(`{},`, maxDescriptors) + `{}]}`, err: errdefs.ErrInvalid},
		{name: "too many layers", data: `{"schemaVersion":2,` + configRef + `,"layers":[` + strings.Repeat(`{},`, maxDescriptors) + `{}]}`, err: errdefs.ErrInvalid},
		{name: "too many entries before few", data: `{"schemaVersion":2,"manifests":[` + strings.Repeat(`{},`, maxDescriptors) + `{}],"manifests":[]}`, index: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			doc, err := decodeDocument([]byte(tc.data), tc.served)
			if !errors.Is(err, tc.err) {
				t.Fatalf("error %v, want %v", err, tc.err)
			}
			if err == nil && (doc.index != nil) != tc.index {
				t.Errorf("decoded as %+v", doc)
			}
		})
	}
}

func TestDecodeConfig(t *testing.T) {
	one := `{"rootfs":{"type":"layers","diff_ids":["` + zeros + `"]}}`
	for _, tc := range []struct {
		name, data string
		layers     int
		err        error
	}{
		{"good", one, 1, nil},
		{"more layers than diff IDs", one, 2, errdefs.ErrInvalid},
		{"fewer layers than diff IDs", one, 0, errdefs.ErrInvalid},
		{"no layers", `{}`, 0, nil},
		{"another kind of root filesystem", strings.Replace(one, "layers", "magic", 1), 1, errdefs.ErrUnsupported},
		{"diff ID that is none", strings.Replace(one, zeros, "sha256:x", 1), 1, errdefs.ErrInvalid},
		{"not JSON", `x`, 0, errdefs.ErrInvalid},
		{"too long a history", `{"history":[` + strings.Repeat(`{},`, maxHistory) + `{}]}`, 0, errdefs.ErrInvalid},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := decodeConfig([]byte(tc.data), tc.layers); !errors.Is(err, tc.err) {
				t.Errorf("error %v, want %v", err, tc.err)
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	for _, s := range []string{manifest, index, fmt.Sprintf(layerFmt, layerKind, zeros, 5), `{"schemaVersion":1}`, `[]`, `{"schemaVersion":2,"manifests":null,"layers":null}`} {
		f.Add([]byte(s), ocispec.MediaTypeImageManifest, 1)
	}
	f.Fuzz(func(t *testing.T, data []byte, served string, layers int) {
		doc, err := decodeDocument(data, served)
		switch {
		case err == nil && (doc.index == nil) == (doc.manifest == nil):
			t.Fatalf("%q decoded as %+v", data, doc)
		case err != nil && !errors.Is(err, errdefs.ErrInvalid) && !errors.Is(err, errdefs.ErrUnsupported):
			t.Fatalf("%v is of no class", err)
		case doc.manifest != nil:
			for _, l := range doc.manifest.Layers {
				if l.Digest.Validate() != nil || l.Size < 0 {
					t.Fatalf("layer %+v was accepted", l)
				}
			}
		}
		if c, err := decodeConfig(data, layers); err == nil && len(c.RootFS.DiffIDs) != layers {
			t.Fatalf("config with %d diff IDs was accepted for %d layers", len(c.RootFS.DiffIDs), layers)
		}
	})
}
