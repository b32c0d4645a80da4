package registrytest

import (
	"bytes"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"
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

// Compressed is part of v1.Layer.
func (l *layer) Compressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(l.blob)), nil
}

// Uncompressed is part of v1.Layer.
func (l *layer) Uncompressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(l.archive)), nil
}
