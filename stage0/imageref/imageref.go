// Package imageref parses the strings by which people and the kubelet name
// images. It does no I/O: what a name stands for is known to a registry and to
// the image store.
//
// The grammar is Docker's (github.com/distribution/reference), with rkt's
// prefixes `docker://` and `docker:` before it: `busybox` means
// `docker.io/library/busybox:latest`.
package imageref

import (
	// The digest algorithms that a reference may name must be linked in.
	_ "crypto/sha256"
	_ "crypto/sha512"
	"fmt"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// Ref is a parsed image reference: a repository and a tag, a digest or both.
// When both are given the digest decides, as it does for docker and the
// kubelet: the tag is kept for display alone, because nobody checked that the
// registry holds that digest under it. The zero Ref names nothing.
type Ref struct {
	repository string
	tag        string
	digest     digest.Digest
}

// Parse normalises s: the default registry, the `library/` of Docker's hub and
// the tag `latest` are filled in; a `docker://` before it is taken off. It
// returns ErrInvalid, with s quoted, for everything that no registry could serve.
func Parse(s string) (Ref, error) {
	named, err := reference.ParseNormalizedNamed(strings.TrimPrefix(s, "docker://"))
	if err != nil {
		return Ref{}, fmt.Errorf("image reference %q: %w: %w", s, err, errdefs.ErrInvalid)
	}
	r := Ref{repository: named.Name()}
	if t, ok := named.(reference.Tagged); ok {
		r.tag = t.Tag()
	}
	if d, ok := named.(reference.Digested); ok {
		r.digest = d.Digest()
	}
	if r.tag == "" && r.digest == "" {
		r.tag = "latest"
	}
	return r, nil
}

// ParseArgument parses an image string of the command line, where rkt's prefix
// `docker:` is taken off too. Parse cannot do so: for the kubelet `docker:27` is
// the tag 27 of the image docker.
func ParseArgument(s string) (Ref, error) {
	rest, ok := strings.CutPrefix(s, "docker:")
	if !ok || strings.HasPrefix(rest, "//") {
		return Parse(s)
	}
	r, err := Parse(rest)
	if err != nil {
		return Ref{}, fmt.Errorf("image reference %q: %w", s, err)
	}
	return r, nil
}

// IsZero tells whether r names nothing.
func (r Ref) IsZero() bool { return r.repository == "" }

// String returns the normalised reference with all that was given, such as
// "docker.io/library/busybox:latest" or "host:5000/a/b:tag@sha256:…".
func (r Ref) String() string {
	s := r.repository
	if r.tag != "" {
		s += ":" + r.tag
	}
	if r.digest != "" {
		s += "@" + r.digest.String()
	}
	return s
}

// Repository returns the name without tag and digest, such as
// "docker.io/library/busybox".
func (r Ref) Repository() string { return r.repository }

// Tagged returns "repository:tag", which is what CRI lists in repo_tags, or ""
// when a digest was given: a pull by digest sets no tag.
func (r Ref) Tagged() string {
	if r.tag == "" || r.digest != "" {
		return ""
	}
	return r.repository + ":" + r.tag
}

// Digest returns the digest that was given, or "".
func (r Ref) Digest() digest.Digest { return r.digest }

// Name returns what the reference stands for, without what is only for display:
// "repository@digest" when there is a digest, else "repository:tag". Equal names
// mean the same object of the same registry.
func (r Ref) Name() string {
	if r.digest != "" {
		return r.Canonical(r.digest)
	}
	return r.Tagged()
}

// Canonical returns "repository@d", which is what CRI lists in repo_digests.
func (r Ref) Canonical(d digest.Digest) string { return r.repository + "@" + d.String() }
