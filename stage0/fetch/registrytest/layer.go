package registrytest

import (
	"bytes"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// layer is a v1.Layer in memory.
type layer struct {
	archive, blob  []byte
	kind           types.MediaType
	digest, diffID v1.Hash
}

// Digest is part of v1.Layer.
func (l *layer) Digest() (v1.Hash, error) { return l.digest, nil }

// DiffID is part of v1.Layer.
func (l *layer) DiffID() (v1.Hash, error) { return l.diffID, nil }

// Size is part of v1.Layer.
func (l *layer) Size() (int64, error) { return int64(len(l.blob)), nil }

// MediaType is part of v1.Layer.
func (l *layer) MediaType() (types.MediaType, error) { return l.kind, nil }

// foreignLayer is a layer that its manifest would fetch from elsewhere.
type foreignLayer struct {
	v1.Layer
	kind types.MediaType
	urls []string
}

// MediaType is part of v1.Layer.
func (l *foreignLayer) MediaType() (types.MediaType, error) { return l.kind, nil }

// Descriptor is what the manifest has of it.
func (l *foreignLayer) Descriptor() (*v1.Descriptor, error) {
	d, err := partial.Descriptor(l.Layer)
	if err != nil {
		return nil, err
	}
	d.MediaType, d.URLs = l.kind, l.urls
	return d, nil
}

// Compressed is part of v1.Layer.
func (l *layer) Compressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(l.blob)), nil
}

// Uncompressed is part of v1.Layer.
func (l *layer) Uncompressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(l.archive)), nil
}
