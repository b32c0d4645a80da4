// Package fetch opens images at their source and reads them: Registry is a
// container registry (OCI distribution API) with containerd's client, Local an
// image in the file system (OCI layout, docker save).
//
// A source is asked in this order: Resolve finds out what a reference stands for
// now; Remote.Manifest chooses the platform and returns manifest and
// configuration; Remote.Blob streams one layer. Whatever comes out of Manifest
// has been checked against the digests and sizes that lead to it. What comes out
// of Blob has not: its reader is whoever hashes it, and gets no byte beyond the
// size that the manifest promises.
//
// Every wait ends: resolving has a deadline, reading a limit to how long it may
// get no byte. Both end as ErrUnavailable that names the URL. The classes are
//
//	ErrUnavailable  no connection, no answer in time, 429, 5xx, broken transfer
//	ErrDenied       401, 403
//	ErrNotFound     404: no such repository, tag, manifest or blob
//	ErrUnverified   a digest or a size is not what was promised
//	ErrUnsupported  no image of this platform, a schema 1 manifest, an artifact, an unknown kind of layer
//	ErrInvalid      the request or the hosts.toml makes no sense, or the manifest contradicts itself
package fetch

import (
	"context"
	"io"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Remote is an image at its source, as a reference was resolved. It may be used
// by several goroutines, and is closed after use.
type Remote interface {
	// Digest is that of what the reference stands for: a manifest or an index.
	Digest() digest.Digest
	// Manifest reads the image of a platform; nil is the node's own.
	Manifest(ctx context.Context, platform *ocispec.Platform) (Manifest, error)
	// Blob opens a layer of the manifest. The reader fails rather than be silent
	// for ever, and ends with ErrUnverified when the source has fewer or more
	// bytes than the descriptor says. The caller closes it.
	Blob(ctx context.Context, layer ocispec.Descriptor) (io.ReadCloser, error)
	// Close gives up the connections that are kept for the next request.
	Close() error
}

// Resumable is a Remote that gives a part of a layer for less than the whole.
type Resumable interface {
	// BlobFrom is Remote.Blob without the first bytes, as many as from says, which is
	// not more than the layer's size. A source that will not give a part is read from
	// the beginning.
	BlobFrom(ctx context.Context, layer ocispec.Descriptor, from int64) (io.ReadCloser, error)
}

// Manifest is one platform's image: the bytes as the source served them, checked
// against their digests, and what they say.
type Manifest struct {
	Digest   digest.Digest // of Bytes
	Bytes    []byte
	ConfigID digest.Digest // of Config: the image id
	Config   []byte
	Platform ocispec.Platform
	// Layers are the manifest's, bottom first; DiffIDs are the configuration's,
	// as many.
	Layers  []ocispec.Descriptor
	DiffIDs []digest.Digest
}
