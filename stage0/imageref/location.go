package imageref

import (
	"fmt"
	"slices"
	"strings"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// Transport is a kind of place in the file system where images lie.
type Transport string

// The transports, named as skopeo and podman name them.
const (
	OCI           Transport = "oci"            // a directory: image-spec, image-layout.md
	OCIArchive    Transport = "oci-archive"    // the same in a tar file
	DockerArchive Transport = "docker-archive" // what docker save writes
)

// Location is where an image lies in the file system: TRANSPORT:PATH[:NAME]. The
// zero Location is nowhere.
type Location struct {
	Transport Transport
	Path      string
	// Name chooses from several images: a tag or a whole reference as the layout
	// or the archive has it. Empty is the only one there is.
	Name string
}

// ParseLocation reads an image string of the command line. It reports whether s
// begins with a transport at all; if it does and names no path, that is
// ErrInvalid.
func ParseLocation(s string) (l Location, ok bool, err error) {
	transport, rest, found := strings.Cut(s, ":")
	l.Transport = Transport(transport)
	if !found || !slices.Contains([]Transport{OCI, OCIArchive, DockerArchive}, l.Transport) {
		return Location{}, false, nil
	}
	rest = strings.TrimPrefix(rest, "//")
	l.Path, l.Name, _ = strings.Cut(rest, ":")
	if l.Path == "" {
		return Location{}, true, fmt.Errorf("image %q: no path: say %s:PATH or %s:PATH:NAME: %w", s, l.Transport, l.Transport, errdefs.ErrInvalid)
	}
	return l, true, nil
}

// IsZero reports whether l is nowhere.
func (l Location) IsZero() bool { return l.Transport == "" }

// String is what ParseLocation reads.
func (l Location) String() string {
	s := string(l.Transport) + ":" + l.Path
	if l.Name != "" {
		s += ":" + l.Name
	}
	return s
}
