package images

import (
	"cmp"
	"context"
	"fmt"
	"runtime"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Format is the family of media types that an image is written in.
type Format string

// The formats. The zero Format is OCI.
const (
	OCI    Format = "oci"
	Docker Format = "docker" // Docker schema 2
)

// Compression is how the layers of [Big] and [Busybox] are compressed.
type Compression string

// The compressions. The zero Compression is Gzip.
const (
	Gzip Compression = "gzip" // as gzip -6
	Zstd Compression = "zstd" // as zstd -3
)

// mediaTypes are the types of one format.
type mediaTypes struct {
	index, manifest, config, layer, plainLayer, zstdLayer types.MediaType
}

func (f Format) mediaTypes() mediaTypes {
	if f == Docker {
		return mediaTypes{
			index: types.DockerManifestList, manifest: types.DockerManifestSchema2, config: types.DockerConfigJSON,
			layer: types.DockerLayer, plainLayer: types.DockerUncompressedLayer, zstdLayer: types.DockerUncompressedLayer + ".zstd",
		}
	}
	return mediaTypes{
		index: types.OCIImageIndex, manifest: types.OCIManifestSchema1, config: types.OCIConfigJSON,
		layer: types.OCILayer, plainLayer: types.OCIUncompressedLayer, zstdLayer: types.OCILayerZStd,
	}
}

// Label is the label of the image configuration that [Options.Unique] becomes.
const Label = "dev.gantry.test"

// Options vary how an image is written, not what runs in it.
type Options struct {
	Format      Format
	Compression Compression // of [Big] and [Busybox]
	Unique      string      // goes into the configuration, so that its digest (the image id) is another one

	platform v1.Platform // zero: this machine's
}

// assemble stacks layers below a configuration.
func assemble(o Options, config v1.Config, layers ...v1.Layer) (v1.Image, error) {
	if o.Unique != "" {
		config.Labels = map[string]string{Label: o.Unique}
	}
	file := &v1.ConfigFile{
		Architecture: cmp.Or(o.platform.Architecture, runtime.GOARCH), OS: "linux", Created: v1.Time{Time: epoch}, Config: config,
		RootFS: v1.RootFS{Type: "layers"},
	}
	mt := o.Format.mediaTypes()
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, mt.manifest), mt.config)
	img, err := mutate.ConfigFile(img, file)
	if err != nil {
		return nil, fmt.Errorf("set configuration: %w", err)
	}
	for _, layer := range layers {
		history := v1.History{Created: v1.Time{Time: epoch}, CreatedBy: "gantry testimages"}
		img, err = mutate.Append(img, mutate.Addendum{Layer: layer, History: history})
		if err != nil {
			return nil, fmt.Errorf("append layer: %w", err)
		}
	}
	return img, nil
}

// Index offers img for this machine's platform and, before it, an image that
// cannot run for another platform.
func Index(f Format, img v1.Image) (v1.ImageIndex, error) {
	mt := f.mediaTypes()
	l := newLayerTar()
	l.file("README", 0o644, "Not for this machine.\n")
	layer, err := l.gzipped(mt.layer)
	if err != nil {
		return nil, err
	}
	foreign := v1.Platform{OS: "linux", Architecture: "s390x"}
	native := v1.Platform{OS: "linux", Architecture: runtime.GOARCH}
	other, err := assemble(Options{Format: f, platform: foreign}, v1.Config{Cmd: []string{"/README"}}, layer)
	if err != nil {
		return nil, err
	}
	return mutate.AppendManifests(mutate.IndexMediaType(empty.Index, mt.index),
		mutate.IndexAddendum{Add: other, Descriptor: v1.Descriptor{Platform: &foreign}},
		mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &native}},
	), nil
}

// Push writes an image or an index to a registry; one on loopback is spoken to
// in plain http. It returns the reference by digest.
func Push(ctx context.Context, ref string, what remote.Taggable) (string, error) {
	tag, err := name.ParseReference(ref)
	if err != nil {
		return "", fmt.Errorf("parse %q: %w", ref, err)
	}
	if err := remote.Push(tag, what, remote.WithContext(ctx)); err != nil {
		return "", fmt.Errorf("push %s: %w", ref, err)
	}
	desc, err := remote.Head(tag, remote.WithContext(ctx))
	if err != nil {
		return "", fmt.Errorf("ask for what was pushed as %s: %w", ref, err)
	}
	return tag.Context().Digest(desc.Digest.String()).Name(), nil
}
