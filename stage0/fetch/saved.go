package fetch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantry-cri/gantry/stage0/imageref"
)

// savedList is the file in which docker save lists the images of an archive
// (moby, image/spec/spec.md, "Combined Image JSON + Filesystem Changeset Format").
const savedList = "manifest.json"

// saved is one entry of the list. Names are those of members of the archive.
type saved struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// findSaved chooses an image of what docker save wrote, and makes the manifest
// that docker would have pushed: an archive has none.
func (l *Local) findSaved(ctx context.Context) error {
	var raw json.RawMessage
	if err := l.readJSON(savedList, &raw); err != nil {
		return fmt.Errorf("not written by docker save: %w", err)
	}
	var list []saved
	if err := decodeList(raw, &list, maxDescriptors); err != nil {
		return fmt.Errorf("%s: %w", savedList, err)
	}
	var names []string
	var found []saved
	for _, s := range list {
		names = append(names, s.RepoTags...)
		if l.at.Name == "" || slices.ContainsFunc(s.RepoTags, l.means) {
			found = append(found, s)
		}
	}
	if err := l.wantOne(len(found), names); err != nil {
		return err
	}
	l.name = l.at.Name
	if tags := found[0].RepoTags; l.name == "" && len(tags) > 0 {
		l.name = tags[0]
	}
	return l.describe(ctx, found[0])
}

// means reports whether the location's name is that of an image, however much of
// it is written out.
func (l *Local) means(tag string) bool {
	a, errA := imageref.Parse(l.at.Name)
	b, errB := imageref.Parse(tag)
	return l.at.Name == tag || errA == nil && errB == nil && a == b
}

// describe makes a manifest of the image (image manifest version 2, schema 2).
func (l *Local) describe(ctx context.Context, s saved) error {
	config, err := l.readFile(s.Config, maxConfig)
	if err != nil {
		return fmt.Errorf("config: %w", err)
	}
	image, err := decodeConfig(config, len(s.Layers))
	if err != nil {
		return err
	}
	id := digest.FromBytes(config)
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: dockerManifest,
		Config:    ocispec.Descriptor{MediaType: dockerConfig, Digest: id, Size: int64(len(config))},
	}
	l.blobs = map[digest.Digest]string{}
	for i, name := range s.Layers {
		layer, err := l.describeLayer(ctx, name, image.RootFS.DiffIDs[i])
		if err != nil {
			return fmt.Errorf("layer %s: %w", name, err)
		}
		m.Layers = append(m.Layers, layer)
		l.blobs[layer.Digest] = name
	}
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	l.desc = ocispec.Descriptor{MediaType: dockerManifest, Digest: digest.FromBytes(data), Size: int64(len(data))}
	l.made = map[digest.Digest][]byte{id: config, l.desc.Digest: data}
	return nil
}

// describeLayer says what a layer's file is: a plain tar, whose digest is the diff
// ID, or, as some tools write it, a compressed one that is hashed here.
func (l *Local) describeLayer(ctx context.Context, name string, diffID digest.Digest) (_ ocispec.Descriptor, err error) {
	r, size, err := l.open(name)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	magic := make([]byte, 4)
	n, err := io.ReadFull(r, magic)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return ocispec.Descriptor{}, err
	}
	desc := ocispec.Descriptor{MediaType: dockerLayer, Digest: diffID, Size: size}
	if unpacker(magic[:n]) == nil {
		return desc, nil
	}
	if desc.MediaType = dockerLayer + ".zstd"; magic[0] == 0x1f {
		desc.MediaType = dockerLayer + ".gzip"
	}
	sum := digest.Canonical.Digester()
	_, _ = sum.Hash().Write(magic[:n]) // a hash never fails
	if err := copyUntilDone(ctx, sum.Hash(), r); err != nil {
		return ocispec.Descriptor{}, err
	}
	desc.Digest = sum.Digest()
	return desc, nil
}
