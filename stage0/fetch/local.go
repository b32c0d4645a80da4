package fetch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/imageref"
)

// containerdName is the annotation by which containerd and docker name an image
// of a layout in full.
const containerdName = "io.containerd.image.name"

// maxDocument is the largest manifest or index that is read, bytes.
const maxDocument = 8 << 20

// Local is an image in the file system. It is closed after use.
type Local struct {
	files
	at   imageref.Location
	desc ocispec.Descriptor
	// made are the documents that are not among the files.
	made map[digest.Digest][]byte
	// blobs are names of files, where they are not those of a layout.
	blobs map[digest.Digest]string
	name  string
}

var _ Remote = (*Local)(nil)

// OpenLocal finds the image at a location. tmp is where a compressed archive is
// decompressed to. It returns ErrNotFound where there is no such file or image,
// and ErrInvalid for what is not what the transport says, or where the location
// leaves open which of several images is meant.
func OpenLocal(ctx context.Context, at imageref.Location, tmp string) (*Local, error) {
	l, err := openLocal(ctx, at, tmp)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", at, err)
	}
	return l, nil
}

func openLocal(ctx context.Context, at imageref.Location, tmp string) (_ *Local, err error) {
	l := &Local{at: at}
	if at.Transport == imageref.OCI {
		l.files, err = openDirectory(at.Path)
	} else {
		l.files, err = openArchive(ctx, at.Path, tmp)
	}
	if err != nil {
		return nil, err
	}
	if at.Transport == imageref.DockerArchive {
		err = l.findSaved(ctx)
	} else {
		err = l.findInLayout(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// Ref is the name that the image has there, in full: zero if there is none, or
// only a tag.
func (l *Local) Ref() imageref.Ref {
	if !strings.ContainsAny(l.name, "/:") {
		return imageref.Ref{}
	}
	ref, err := imageref.Parse(l.name)
	if err != nil {
		return imageref.Ref{} // a layout may call it anything
	}
	return ref
}

// Location is where the image lies.
func (l *Local) Location() imageref.Location { return l.at }

// Digest is part of Remote.
func (l *Local) Digest() digest.Digest { return l.desc.Digest }

// Manifest is part of Remote.
func (l *Local) Manifest(ctx context.Context, platform *ocispec.Platform) (Manifest, error) {
	m, err := newSearch(l, platform).at(ctx, entry{Descriptor: l.desc}, 0)
	if err != nil {
		return Manifest{}, fmt.Errorf("image %s: %w", l.at, err)
	}
	return m, nil
}

// Blob is part of Remote.
func (l *Local) Blob(_ context.Context, layer ocispec.Descriptor) (io.ReadCloser, error) {
	r, size, err := l.open(l.file(layer.Digest))
	if err == nil && size != layer.Size {
		err = errors.Join(fmt.Errorf("it has %d bytes, %d were promised: %w", size, layer.Size, errdefs.ErrUnverified), r.Close())
	}
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", layer.Digest, explainForeign(layer.URLs, err))
	}
	return r, nil
}

// file is the name of the file that has the bytes of a digest.
func (l *Local) file(d digest.Digest) string {
	if name := l.blobs[d]; name != "" {
		return name
	}
	return "blobs/" + d.Algorithm().String() + "/" + d.Encoded()
}

// read is part of documents.
func (l *Local) read(_ context.Context, desc ocispec.Descriptor, limit int64) ([]byte, error) {
	data, ok := l.made[desc.Digest]
	if !ok {
		var err error
		if data, err = l.readFile(l.file(desc.Digest), limit); err != nil {
			return nil, err
		}
	}
	if got := desc.Digest.Algorithm().FromBytes(data); got != desc.Digest {
		return nil, fmt.Errorf("its digest is %s: %w", got, errdefs.ErrUnverified)
	}
	return data, nil
}

// readDocument is part of documents.
func (l *Local) readDocument(ctx context.Context, desc ocispec.Descriptor) ([]byte, document, error) {
	data, err := l.read(ctx, desc, maxDocument)
	var doc document
	if err == nil {
		doc, err = decodeDocument(data, desc.MediaType)
	}
	if err != nil {
		return nil, document{}, fmt.Errorf("manifest %s: %w", desc.Digest, err)
	}
	return data, doc, nil
}

func (l *Local) readFile(name string, limit int64) (_ []byte, err error) {
	r, size, err := l.open(name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if size > limit {
		return nil, fmt.Errorf("%s has %d bytes, at most %d are read: %w", name, size, limit, errdefs.ErrInvalid)
	}
	data, err := io.ReadAll(io.LimitReader(r, limit))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return data, nil
}

func (l *Local) readJSON(name string, into any) error {
	data, err := l.readFile(name, maxDocument)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("%s: %w: %w", name, err, errdefs.ErrInvalid)
	}
	return nil
}

// findInLayout chooses an entry of the layout's index.
func (l *Local) findInLayout(ctx context.Context) error {
	var layout ocispec.ImageLayout
	if err := l.readJSON(ocispec.ImageLayoutFile, &layout); err != nil {
		return fmt.Errorf("no OCI image layout: %w", err)
	}
	if layout.Version != ocispec.ImageLayoutVersion {
		return fmt.Errorf("OCI image layout of version %q, want %s: %w", layout.Version, ocispec.ImageLayoutVersion, errdefs.ErrUnsupported)
	}
	data, err := l.readFile(ocispec.ImageIndexFile, maxDocument)
	if err != nil {
		return err
	}
	doc, err := decodeDocument(data, ocispec.MediaTypeImageIndex)
	if err == nil && doc.index == nil {
		err = fmt.Errorf("it is no index: %w", errdefs.ErrInvalid)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", ocispec.ImageIndexFile, err)
	}
	var names []string
	var found []ocispec.Descriptor
	for _, d := range doc.index.Manifests {
		own := []string{d.Annotations[containerdName], d.Annotations[ocispec.AnnotationRefName]}
		names = append(names, slices.DeleteFunc(slices.Clone(own), func(s string) bool { return s == "" })...)
		if l.at.Name == "" || slices.Contains(own, l.at.Name) {
			found = append(found, d)
		}
	}
	if err := l.wantOne(len(found), names); err != nil {
		return err
	}
	l.desc = found[0]
	l.name = l.desc.Annotations[containerdName]
	if l.name == "" {
		l.name = l.desc.Annotations[ocispec.AnnotationRefName]
	}
	return ctx.Err()
}

// wantOne complains unless exactly one image was found.
func (l *Local) wantOne(found int, names []string) error {
	list := "none has a name"
	if len(names) > 0 {
		list = "it has " + strings.Join(names[:min(len(names), 20)], ", ")
	}
	switch {
	case found == 1:
		return nil
	case found == 0 && l.at.Name != "":
		return fmt.Errorf("there is no image %q, %s: %w", l.at.Name, list, errdefs.ErrNotFound)
	case found == 0:
		return fmt.Errorf("there is no image in it: %w", errdefs.ErrNotFound)
	}
	return fmt.Errorf("there are %d images, say which by %s:%s:NAME, %s: %w", found, l.at.Transport, l.at.Path, list, errdefs.ErrInvalid)
}
