package imageref

import (
	"fmt"
	"net/url"
	"path"
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
	ACI           Transport = "aci"            // an appc image: appc spec, spec/aci.md
)

// aciSuffix ends the names of appc images.
const aciSuffix = ".aci"

// Location is where an image lies in the file system: TRANSPORT:PATH[:NAME]. The
// zero Location is nowhere.
type Location struct {
	Transport Transport
	Path      string
	// Name chooses from several images: a tag or a whole reference as the layout
	// or the archive has it. Empty is the only one there is, as in an ACI.
	Name string
}

// ParseLocation reads an image string of the command line. It reports whether s
// begins with a transport at all; if it does and names no path, that is
// ErrInvalid.
func ParseLocation(s string) (l Location, ok bool, err error) {
	transport, rest, found := strings.Cut(s, ":")
	l.Transport = Transport(transport)
	if !found || !slices.Contains([]Transport{OCI, OCIArchive, DockerArchive, ACI}, l.Transport) {
		return Location{}, false, nil
	}
	rest = strings.TrimPrefix(rest, "//")
	l.Path = rest
	if l.Transport != ACI {
		l.Path, l.Name, _ = strings.Cut(rest, ":")
	}
	if l.Path == "" && l.Transport == ACI {
		return Location{}, true, fmt.Errorf("image %q: no path: say %s:PATH: %w", s, l.Transport, errdefs.ErrInvalid)
	}
	if l.Path == "" {
		return Location{}, true, fmt.Errorf("image %q: no path: say %s:PATH or %s:PATH:NAME: %w", s, l.Transport, l.Transport, errdefs.ErrInvalid)
	}
	return l, true, nil
}

// ParseFile reads an image string that is a path or a URL of scheme file, which
// in rkt's grammar is an ACI. It reports whether s is one of these at all; one that
// does not end in .aci is ErrInvalid. As in rkt a path is what is absolute, what
// begins with ./ or ../, and, without a colon, what has ./ in it or ends in .aci.
func ParseFile(s string) (l Location, ok bool, err error) {
	file := s
	switch {
	case strings.HasPrefix(s, "file:"):
		u, err := url.Parse(s)
		if err != nil || !path.IsAbs(u.Path) || u.Host != "" && u.Host != "localhost" || u.RawQuery != "" || u.Fragment != "" {
			return Location{}, true, fmt.Errorf("%w image string %q: want file:///PATH%s", errdefs.ErrInvalid, s, aciSuffix)
		}
		file = u.Path
	case path.IsAbs(s), strings.HasPrefix(s, "./"), strings.HasPrefix(s, "../"):
	case strings.Contains(s, ":"):
		return Location{}, false, nil
	case strings.Contains(s, "./"), strings.HasSuffix(s, aciSuffix):
	default:
		return Location{}, false, nil
	}
	if !strings.HasSuffix(file, aciSuffix) {
		return Location{}, true, fmt.Errorf("%w image string %q: a file is an ACI and its name ends in %s: for another say %s:PATH, %s:PATH or %s:PATH", errdefs.ErrInvalid, s, aciSuffix, ACI, OCIArchive, DockerArchive)
	}
	return Location{Transport: ACI, Path: file}, true, nil
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
