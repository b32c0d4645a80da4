package podargs

import (
	"cmp"
	"path"
	"strings"

	"github.com/appc/spec/schema/types"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/imageref"
)

// unsupportedError says that an image is of a kind that this version cannot
// fetch, and perhaps how it might be spelt instead.
type unsupportedError struct{ text, hint string }

// Error names the image and its kind.
func (e unsupportedError) Error() string { return e.text }

// Is puts the error in the class errdefs.ErrUnsupported.
func (e unsupportedError) Is(target error) bool { return target == errdefs.ErrUnsupported }

// Hint says what to try instead; empty is nothing.
func (e unsupportedError) Hint() string { return e.hint }

// kinds of images that rkt and its successors know and this version does not, by scheme.
var kinds = map[string]string{
	"http": "URL", "https": "URL", "cimd": "cimd", "docker-daemon": "docker daemon",
}

// Image says which image is meant: exactly one of the three is set.
type Image struct {
	// Ref is the name of an image of a registry.
	Ref imageref.Ref
	// ID is that of an image in the store (sha256:… or sha512-…).
	ID string
	// At is where an image lies in the file system.
	At imageref.Location
}

// String is the image as messages name it.
func (i Image) String() string {
	switch {
	case i.ID != "":
		return i.ID
	case !i.At.IsZero():
		return i.At.String()
	}
	return i.Ref.String()
}

// CheckPlatform refuses to ask for a platform, nil for none, where there is no choice:
// an ACI is for the one that it names.
func (i Image) CheckPlatform(asked *ocispec.Platform) error {
	if asked != nil && i.At.Transport == imageref.ACI {
		return invalid("--platform: %s is an ACI, which is for one platform", i)
	}
	return nil
}

// ParseImage reads an image of the command line: docker://REF, docker:REF,
// oci:PATH, oci-archive:PATH, docker-archive:PATH, aci:PATH, the path or file: URL of
// an ACI, or the id of an image in the store. Other kinds are refused by name.
func ParseImage(s string) (Image, error) {
	if isImageID(s) {
		return Image{ID: s}, nil
	}
	if at, ok, err := imageref.ParseLocation(s); ok {
		return Image{At: at}, err
	}
	if at, ok, err := imageref.ParseFile(s); ok {
		return Image{At: at}, err
	}
	if kind := kindOf(s); kind != "" {
		e := unsupportedError{text: quote(s) + ": images of kind " + kind + " are not supported yet"}
		if kind == appcName {
			e.hint = "for an image of a registry say docker://" + s
		}
		return Image{}, e
	}
	ref, err := imageref.ParseArgument(s)
	return Image{Ref: ref}, err
}

// isImageID says whether s begins as an image's id, of OCI or appc, and goes on as one.
func isImageID(s string) bool {
	if digits, ok := strings.CutPrefix(s, "sha512-"); ok {
		return len(digits) >= 2 && isHex(digits)
	}
	digits, ok := strings.CutPrefix(s, "sha256:")
	return ok && len(digits) >= 3 && isHex(digits)
}

func isHex(s string) bool { return strings.Trim(s, "0123456789abcdef") == "" }

const appcName = "appc name"

// kindOf names the kind of an image that is not docker; "" is docker.
func kindOf(s string) string {
	if scheme, _, ok := strings.Cut(s, "://"); ok && isScheme(scheme) && scheme != "docker" {
		return cmp.Or(kinds[scheme], scheme)
	}
	prefix, _, _ := strings.Cut(s, ":")
	switch {
	case prefix == "docker":
		return ""
	case kinds[prefix] != "" && strings.Contains(s, ":"):
		return kinds[prefix]
	default:
		return appcName
	}
}

// isScheme says whether s may be a URL's.
func isScheme(s string) bool {
	const letters = "abcdefghijklmnopqrstuvwxyz"
	return s != "" && strings.Contains(letters, s[:1]) && strings.Trim(s, letters+"0123456789+.-") == ""
}

// appName makes an app name of an image: the last element of its name or path,
// without tag, digest and ending, lower-cased, what appc does not allow replaced
// by dashes.
func appName(image string) (types.ACName, error) {
	name := strings.TrimPrefix(strings.TrimPrefix(image, "docker:"), "//")
	if at, ok, _ := imageref.ParseLocation(image); ok {
		name = strings.TrimSuffix(at.Path, path.Ext(at.Path))
	}
	name, _, _ = strings.Cut(name, "@")
	name = path.Base(name)
	if !isImageID(image) {
		name, _, _ = strings.Cut(name, ":")
	}
	return toACName(name)
}

func toACName(name string) (types.ACName, error) {
	sane, err := types.SanitizeACName(name)
	if err != nil {
		return "", err
	}
	acName, err := types.NewACName(sane)
	if err != nil {
		return "", err
	}
	return *acName, nil
}

func quote(s string) string { return "image \"" + s + "\"" }
