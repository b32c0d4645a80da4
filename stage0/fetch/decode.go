package fetch

import (
	"bytes"
	"encoding/json"
	"fmt"
	"mime"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// The media types of Docker's schema 2 beside OCI's. The meaning of the two
// families is the same.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerIndex    = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
	dockerLayer    = "application/vnd.docker.image.rootfs.diff.tar"
)

// indexTypes and manifestTypes are what a document may call itself.
var (
	indexTypes    = map[string]bool{ocispec.MediaTypeImageIndex: true, dockerIndex: true}
	manifestTypes = map[string]bool{ocispec.MediaTypeImageManifest: true, dockerManifest: true}
)

// configTypes are what a manifest may call an image's configuration. The last
// two were written by old versions of docker and by some registries.
var configTypes = map[string]bool{
	ocispec.MediaTypeImageConfig: true,
	dockerConfig:                 true,
	"application/octet-stream":   true,
	"text/html":                  true,
}

// layerTypes are the kinds of layers that a tree can be made of.
var layerTypes = map[string]bool{
	ocispec.MediaTypeImageLayer:                                    true,
	ocispec.MediaTypeImageLayerGzip:                                true,
	ocispec.MediaTypeImageLayerZstd:                                true,
	"application/vnd.oci.image.layer.nondistributable.v1.tar":      true,
	"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip": true,
	"application/vnd.oci.image.layer.nondistributable.v1.tar+zstd": true,
	dockerLayer:           true,
	dockerLayer + ".gzip": true,
	dockerLayer + ".zstd": true,
	"application/vnd.docker.image.rootfs.foreign.diff.tar":      true,
	"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip": true,
}

// errSchema1 says that an image has a format that docker gave up in 2017.
var errSchema1 = fmt.Errorf("docker schema 1 manifests are not supported, push the image again with a current tool: %w", errdefs.ErrUnsupported)

// maxDescriptors bounds how many entries an index or layers a manifest may list.
// overlayfs stacks at most 500 layers.
const maxDescriptors = 1000

// maxHistory bounds what a configuration tells of how it was built.
const maxHistory = 10_000

// document is an index or a manifest: exactly one of the two is set.
type document struct {
	index    *ocispec.Index
	manifest *ocispec.Manifest
}

// decodeDocument reads an index or a manifest. served is the media type under
// which it came, which counts only where the document does not say what it is.
// A document that could be read as either is refused: two readers of the same
// digest must not see two images.
func decodeDocument(data []byte, served string) (document, error) {
	var probe struct {
		SchemaVersion int             `json:"schemaVersion"`
		MediaType     string          `json:"mediaType"`
		Manifests     json.RawMessage `json:"manifests"`
		Config        json.RawMessage `json:"config"`
		Layers        json.RawMessage `json:"layers"`
		FSLayers      json.RawMessage `json:"fsLayers"`
	}
	if err := json.Unmarshal(data, &probe); err != nil {
		return document{}, fmt.Errorf("not a manifest: %w: %w", err, errdefs.ErrInvalid)
	}
	if probe.SchemaVersion == 1 || probe.FSLayers != nil {
		return document{}, errSchema1
	}
	if probe.SchemaVersion != 2 {
		return document{}, fmt.Errorf("not a manifest: schemaVersion is %d, want 2: %w", probe.SchemaVersion, errdefs.ErrInvalid)
	}
	isIndex, isManifest := probe.Manifests != nil, probe.Config != nil || probe.Layers != nil
	if isIndex && isManifest {
		return document{}, fmt.Errorf("ambiguous: both an index and a manifest: %w", errdefs.ErrInvalid)
	}
	kind := probe.MediaType
	if kind == "" && !isIndex && !isManifest {
		kind, _, _ = mime.ParseMediaType(served) // what is no media type is no kind of ours
	}
	switch {
	case indexTypes[kind] && !isManifest, kind == "" && isIndex:
		return decodeIndex(data)
	case manifestTypes[kind] && !isIndex, kind == "" && isManifest:
		return decodeManifest(data)
	case indexTypes[kind] || manifestTypes[kind]:
		return document{}, fmt.Errorf("it calls itself %q, which it is not: %w", kind, errdefs.ErrInvalid)
	}
	return document{}, fmt.Errorf("media type %q is that of no image: %w", kind, errdefs.ErrUnsupported)
}

func decodeIndex(data []byte) (document, error) {
	var x struct {
		ocispec.Index
		Manifests json.RawMessage `json:"manifests"` // in place of the index's own
	}
	if err := json.Unmarshal(data, &x); err != nil {
		return document{}, fmt.Errorf("index: %w: %w", err, errdefs.ErrInvalid)
	}
	err := decodeList(x.Manifests, &x.Index.Manifests, maxDescriptors)
	if err == nil {
		err = checkDescriptors(x.Index.Manifests)
	}
	if err != nil {
		return document{}, fmt.Errorf("index: %w", err)
	}
	return document{index: &x.Index}, nil
}

func decodeManifest(data []byte) (document, error) {
	var raw struct {
		ocispec.Manifest
		Layers json.RawMessage `json:"layers"` // in place of the manifest's own
	}
	if err := json.Unmarshal(data, &raw); err != nil {
		return document{}, fmt.Errorf("manifest: %w: %w", err, errdefs.ErrInvalid)
	}
	m := raw.Manifest
	if err := decodeList(raw.Layers, &m.Layers, maxDescriptors); err != nil {
		return document{}, fmt.Errorf("manifest: %w", err)
	}
	if m.ArtifactType != "" || !configTypes[m.Config.MediaType] {
		what := m.ArtifactType
		if what == "" {
			what = m.Config.MediaType
		}
		return document{}, fmt.Errorf("it is an artifact of type %q, not an image: %w", what, errdefs.ErrUnsupported)
	}
	if err := checkDescriptors(append([]ocispec.Descriptor{m.Config}, m.Layers...)); err != nil {
		return document{}, fmt.Errorf("manifest: %w", err)
	}
	if m.Config.Digest.Algorithm() != digest.SHA256 {
		return document{}, fmt.Errorf("manifest: config digest %s: image ids are SHA-256: %w", m.Config.Digest, errdefs.ErrUnsupported)
	}
	for _, l := range m.Layers {
		if !layerTypes[l.MediaType] {
			return document{}, fmt.Errorf("manifest: layer %s is of type %q: %w", l.Digest, l.MediaType, errdefs.ErrUnsupported)
		}
	}
	return document{manifest: &m}, nil
}

// decodeList decodes a list that has at most limit elements, and looks at their
// number first: eight mebibytes of "{}," would become half a gibibyte of descriptors.
func decodeList[T any](list json.RawMessage, into *[]T, limit int) error {
	if len(list) == 0 {
		return nil
	}
	d := json.NewDecoder(bytes.NewReader(list))
	if first, err := d.Token(); err == nil && first == json.Delim('[') {
		var element json.RawMessage
		for n := 0; d.More(); n++ {
			if n == limit {
				return fmt.Errorf("it lists more than %d things: %w", limit, errdefs.ErrInvalid)
			}
			if err := d.Decode(&element); err != nil {
				return fmt.Errorf("%w: %w", err, errdefs.ErrInvalid)
			}
		}
	}
	if err := json.Unmarshal(list, into); err != nil {
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalid)
	}
	return nil
}

// checkDescriptors holds what others say about bytes to its form, so that it can
// be used in paths and as a limit.
func checkDescriptors(ds []ocispec.Descriptor) error {
	for _, d := range ds {
		if err := d.Digest.Validate(); err != nil {
			return fmt.Errorf("digest %q: %w: %w", d.Digest, err, errdefs.ErrInvalid)
		}
		if d.Size < 0 {
			return fmt.Errorf("size of %s is %d: %w", d.Digest, d.Size, errdefs.ErrInvalid)
		}
	}
	return nil
}

// decodeConfig reads an image's configuration, whose bytes were verified, and
// holds it against its manifest.
func decodeConfig(data []byte, layers int) (ocispec.Image, error) {
	var raw struct {
		ocispec.Image
		History json.RawMessage `json:"history"` // in place of the image's own
	}
	if err := json.Unmarshal(data, &raw); err != nil {
		return ocispec.Image{}, fmt.Errorf("config: %w: %w", err, errdefs.ErrInvalid)
	}
	c := raw.Image
	if err := decodeList(raw.History, &c.History, maxHistory); err != nil {
		return ocispec.Image{}, fmt.Errorf("config: %w", err)
	}
	if c.RootFS.Type != "layers" && (c.RootFS.Type != "" || layers > 0) {
		return ocispec.Image{}, fmt.Errorf("config: root filesystem of type %q: %w", c.RootFS.Type, errdefs.ErrUnsupported)
	}
	if len(c.RootFS.DiffIDs) != layers {
		return ocispec.Image{}, fmt.Errorf("config: %d diff IDs for the manifest's %d layers: %w", len(c.RootFS.DiffIDs), layers, errdefs.ErrInvalid)
	}
	for _, d := range c.RootFS.DiffIDs {
		if err := d.Validate(); err != nil {
			return ocispec.Image{}, fmt.Errorf("config: diff ID %q: %w: %w", d, err, errdefs.ErrInvalid)
		}
	}
	return c, nil
}
