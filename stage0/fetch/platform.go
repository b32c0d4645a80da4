package fetch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

const (
	// maxDepth is how deep an index may lie within others.
	maxDepth = 3
	// maxDocuments is how many manifests and indexes are read to find one image.
	maxDocuments = 32
)

// errNoPlatform says that another entry of the index may still do.
var errNoPlatform = fmt.Errorf("no image for this platform: %w", errdefs.ErrUnsupported)

// ParsePlatform reads OS/ARCH or OS/ARCH/VARIANT, such as linux/arm/v7. It takes what
// uname calls an architecture too. Anything else is ErrInvalid; whether there is such a
// platform, the images say.
func ParsePlatform(s string) (ocispec.Platform, error) {
	// The library completes a word that stands alone by this machine's platform, and
	// knows of versions of an operating system, which no image for Linux has.
	if !strings.Contains(s, "/") || strings.ContainsAny(s, "()+") {
		return ocispec.Platform{}, fmt.Errorf("platform %q: want OS/ARCH or OS/ARCH/VARIANT: %w", s, errdefs.ErrInvalid)
	}
	p, err := platforms.Parse(s)
	if err != nil {
		return ocispec.Platform{}, fmt.Errorf("platform: %w: %w", err, errdefs.ErrInvalid)
	}
	return p, nil
}

// Fit says how well an image of one platform does for another.
type Fit int

// The degrees.
const (
	Unfit  Fit = iota // it does not run there
	Lesser            // it runs there, but another would fit better
	Fits              // it is for that platform, or does not say for which
)

// FitOf says how well an image does for a platform; nil is the node's own, for which the
// variant of the processor does not count: it only has to run. The better one that there
// may be of a Lesser one, its source knows.
func FitOf(image ocispec.Platform, platform *ocispec.Platform) Fit {
	want := wanted(platform)
	switch {
	case image.Architecture == "":
		return Fits
	case !platforms.Only(want).Match(image):
		return Unfit
	case platform != nil && !platforms.OnlyStrict(want).Match(image),
		platforms.Normalize(image).Architecture != platforms.Normalize(want).Architecture: //nolint:misspell // containerd spells it so
		return Lesser
	}
	return Fits
}

// PlatformName spells a platform as ParsePlatform reads it; nil is the node's own.
func PlatformName(platform *ocispec.Platform) string {
	p := wanted(platform)
	return platforms.Format(ocispec.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant})
}

// wanted is the platform that is asked for; nil is the node's own.
func wanted(platform *ocispec.Platform) ocispec.Platform {
	if platform == nil {
		return platforms.DefaultSpec()
	}
	return *platform
}

// Manifest is part of Remote.
func (m *remote) Manifest(ctx context.Context, platform *ocispec.Platform) (Manifest, error) {
	return newSearch(m, platform).at(ctx, entry{Descriptor: m.desc}, 0)
}

// documents reads the small objects of an image, and verifies them.
type documents interface {
	read(ctx context.Context, desc ocispec.Descriptor, limit int64) ([]byte, error)
	readDocument(ctx context.Context, desc ocispec.Descriptor) ([]byte, document, error)
}

// search looks for one platform's manifest.
type search struct {
	documents documents
	want      ocispec.Platform
	match     platforms.MatchComparer
	read      int // documents so far
}

// newSearch looks for a platform; nil is the node's own.
func newSearch(in documents, platform *ocispec.Platform) *search {
	want := wanted(platform)
	return &search{documents: in, want: want, match: platforms.Only(want)}
}

// entry is an object that may be or lead to the manifest. vouched tells that an
// index named its platform, so that the config is not asked.
type entry struct {
	ocispec.Descriptor
	vouched bool
}

// at reads the document and, when it is an index, goes on to the best of its
// entries; those of other platforms are never asked for.
func (s *search) at(ctx context.Context, e entry, depth int) (Manifest, error) {
	if s.read++; s.read > maxDocuments || depth > maxDepth {
		return Manifest{}, fmt.Errorf("index is too deep or too wide: %w", errdefs.ErrInvalid)
	}
	data, doc, err := s.documents.readDocument(ctx, e.Descriptor)
	if err != nil {
		return Manifest{}, err
	}
	if doc.manifest != nil {
		return s.image(ctx, e, data, doc.manifest)
	}
	for _, c := range s.candidates(doc.index.Manifests, e.vouched) {
		found, err := s.at(ctx, c, depth+1)
		if !errors.Is(err, errNoPlatform) {
			return found, err
		}
	}
	return Manifest{}, fmt.Errorf("index %s: want %s, it has %s: %w", e.Digest, platforms.Format(s.want), offered(doc.index.Manifests), errNoPlatform)
}

// candidates returns the entries that may do, the best first, and last those
// that do not say what they are for.
func (s *search) candidates(ds []ocispec.Descriptor, vouched bool) []entry {
	var named, unnamed []entry
	for _, d := range ds {
		switch {
		case d.MediaType != "" && !indexTypes[d.MediaType] && !manifestTypes[d.MediaType]:
		case d.Platform == nil:
			unnamed = append(unnamed, entry{d, vouched})
		case s.match.Match(*d.Platform):
			named = append(named, entry{d, true})
		}
	}
	slices.SortStableFunc(named, func(a, b entry) int {
		switch {
		case s.match.Less(*a.Platform, *b.Platform):
			return -1
		case s.match.Less(*b.Platform, *a.Platform):
			return 1
		}
		return 0
	})
	return append(named, unnamed...)
}

// offered lists the platforms of an index for an error message.
func offered(ds []ocispec.Descriptor) string {
	var names []string
	for _, d := range ds {
		if d.Platform != nil && d.Platform.OS != "unknown" {
			names = append(names, platforms.Format(*d.Platform))
		}
	}
	slices.Sort(names)
	names = slices.Compact(names)
	if len(names) == 0 {
		return "none"
	}
	if len(names) > 20 {
		names = append(names[:20], "…")
	}
	return strings.Join(names, ", ")
}

// image reads the configuration and holds it against manifest and platform.
func (s *search) image(ctx context.Context, e entry, data []byte, man *ocispec.Manifest) (Manifest, error) {
	raw, err := s.documents.read(ctx, man.Config, maxConfig)
	if err != nil {
		return Manifest{}, fmt.Errorf("config %s: %w", man.Config.Digest, err)
	}
	c, err := decodeConfig(raw, len(man.Layers))
	if err != nil {
		return Manifest{}, fmt.Errorf("manifest %s: %w", e.Digest, err)
	}
	found := Manifest{
		Digest: e.Digest, Bytes: data,
		ConfigID: man.Config.Digest, Config: raw,
		Platform: c.Platform,
		Layers:   man.Layers,
		DiffIDs:  c.RootFS.DiffIDs,
	}
	// An index has chosen by what it says; there are configurations that say otherwise.
	if e.Platform != nil && (e.vouched || c.Architecture == "") {
		found.Platform = *e.Platform
	}
	// Some tools of old left both empty.
	if !e.vouched && c.Architecture != "" && !s.match.Match(c.Platform) {
		return Manifest{}, fmt.Errorf("manifest %s is for %s, want %s: %w", e.Digest, platforms.Format(c.Platform), platforms.Format(s.want), errNoPlatform)
	}
	return found, nil
}

var _ Remote = (*remote)(nil)
