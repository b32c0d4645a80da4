package tree

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/bzip2"
	"context"
	_ "crypto/sha512" // of image ids
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/therootcompany/xz"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// ACISource is the archive of an appc image (appc spec, spec/aci.md): a tar of a
// file "manifest" and a directory "rootfs", plain or compressed by gzip, bzip2 or
// xz, which its first bytes tell.
type ACISource struct {
	Reader io.Reader
	// Size is what the archive has, bytes: of a small one less is decompressed.
	Size int64
	// Check is called once with the manifest, as soon as it is read. Its error ends
	// the extraction.
	Check func(manifest []byte) error
}

// ACI is what is known of an appc image once it is read.
type ACI struct {
	// Digest is the SHA-512 of the uncompressed archive: the appc image id.
	Digest digest.Digest
	// Manifest is its manifest's text.
	Manifest []byte
}

const (
	// maxACIManifest bounds an image manifest, bytes.
	maxACIManifest = 1 << 20
	// maxDictionary bounds the memory of an xz decoder, bytes: that of xz -8. Only
	// xz -9 makes larger ones, of 64 MiB.
	maxDictionary = 32 << 20

	aciManifest = "manifest"
	aciRoot     = "rootfs"
)

// ACIKey is the diff ID by which the tree of an appc image is known, made of the
// image's id. No layer has it: a layer that is the same archive would have the
// manifest among its files, and another root.
func ACIKey(image digest.Digest) digest.Digest {
	return digest.FromString("appc image " + string(image))
}

// ExtractACI reads the archive of an appc image to its end and writes what it has
// below rootfs/ into an entry of tmp/ that nobody sees before Commit, as Extract
// does with a layer, and in one pass too. Anything beside the manifest and rootfs
// is refused. The tree is that of ACIKey.
//
// On an error nothing remains on disk. An archive that is no appc image or passes
// a limit is ErrInvalid, a full disk ErrNoSpace. When ctx ends, so does ExtractACI,
// after a Read in progress.
func (s *Store) ExtractACI(ctx context.Context, src ACISource) (*Pending, ACI, error) {
	p, a, err := s.extractACI(ctx, src)
	if err != nil {
		return nil, ACI{}, fmt.Errorf("extract ACI: %w", err)
	}
	return p, a, nil
}

func (s *Store) extractACI(ctx context.Context, src ACISource) (*Pending, ACI, error) {
	p, err := s.newEntry(ctx)
	if err != nil {
		return nil, ACI{}, err
	}
	var a ACI
	limits := s.Limits.withDefaults()
	err = s.write(p, limits, func(w *writer) (err error) {
		a, err = streamACI(ctx, src, w, limits.length(src.Size))
		p.meta.DiffID, p.meta.ACI = ACIKey(a.Digest), a.Digest
		p.name = Name(p.meta.DiffID)
		return err
	})
	if err != nil {
		return nil, ACI{}, err
	}
	return p, a, nil
}

// streamACI decompresses, hashes and writes, each in a goroutine of its own. Nobody
// has promised what the archive is, so the first error ends all three.
func streamACI(parent context.Context, src ACISource, w *writer, limit lengthLimit) (ACI, error) {
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)
	plain := newRing(ctx, 2)
	sum := digest.SHA512.Digester()
	var unpack, hash result
	unpack.start(func() error {
		defer plain.close()
		return unpackACI(plain, src.Reader, limit)
	})
	hash.start(func() error { return plain.reader(1).copyTo(sum.Hash()) })

	a := &aciWriter{writer: w, check: src.Check}
	w.take, w.literal = a.entry, true
	err := w.layer(ctx, plain.reader(0))
	if err != nil {
		cancel(err)
	}
	<-unpack.done
	<-hash.done
	for _, err := range []error{unpack.err, err, hash.err, a.missing()} {
		if err != nil {
			return ACI{}, err
		}
	}
	return ACI{Digest: sum.Digest(), Manifest: a.manifest}, nil
}

// unpackACI fills the ring with tar, up to the limit.
func unpackACI(out *ring, in io.Reader, limit lengthLimit) error {
	buffered := bufio.NewReaderSize(in, chunkSize)
	magic, err := buffered.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read archive: %w", err)
	}
	err = decompressTo(out, sniff(magic), buffered, limit)
	if errors.Is(err, xz.ErrMemlimit) {
		return fmt.Errorf("its xz dictionary is larger than %d MiB, decompress it first: %w", maxDictionary>>20, errLimit)
	}
	return err
}

// sniff returns what decompresses a stream that begins like this.
func sniff(magic []byte) func(io.Reader) (decoder, error) {
	switch {
	case bytes.HasPrefix(magic, []byte("\x1f\x8b")):
		return openGzip
	case bytes.HasPrefix(magic, []byte("BZh")):
		return openBzip2
	case bytes.HasPrefix(magic, []byte("\xfd7zXZ\x00")):
		return openXZ
	}
	return openPlain
}

func openBzip2(r io.Reader) (decoder, error) {
	return decoder{fillFrom(bzip2.NewReader(r)), func() {}}, nil
}

func openXZ(r io.Reader) (decoder, error) {
	d, err := xz.NewReader(r, maxDictionary)
	if err != nil {
		return decoder{}, err
	}
	return decoder{fillFrom(d), func() {}}, nil
}

// copyTo writes the rest of the stream to w, which never fails.
func (r *ringReader) copyTo(w io.Writer) error {
	for {
		data, err := r.peek()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		_, _ = w.Write(data)
		r.skip(len(data))
	}
}

// aciWriter writes the entries of an appc image.
type aciWriter struct {
	*writer
	check    func([]byte) error
	manifest []byte
	rootfs   bool
}

// entry is a writer's take.
func (a *aciWriter) entry(ctx context.Context, h *tar.Header, content io.Reader) error {
	name := clean(h.Name)
	below, inside := strings.CutPrefix(name, aciRoot+"/")
	switch {
	case h.Typeflag == tar.TypeXGlobalHeader:
		a.global(h)
		return a.count()
	case name == "." && h.Typeflag == tar.TypeDir:
		return a.count()
	case name == aciManifest:
		return a.readManifest(h, content)
	case name == aciRoot:
		below = "."
	case !inside:
		return fmt.Errorf("an ACI has nothing but %q and %q: %w", aciManifest, aciRoot, errdefs.ErrInvalid)
	}
	h.Name, a.rootfs = below, true
	if h.Typeflag == tar.TypeLink {
		target, ok := strings.CutPrefix(clean(h.Linkname), aciRoot+"/")
		if !ok {
			return fmt.Errorf("hard link to %q, outside of %s: %w", shorten(h.Linkname), aciRoot, errdefs.ErrInvalid)
		}
		h.Linkname = target
	}
	return a.writer.entry(ctx, h, content)
}

func (a *aciWriter) readManifest(h *tar.Header, content io.Reader) error {
	switch {
	case a.manifest != nil:
		return fmt.Errorf("a second manifest: %w", errdefs.ErrInvalid)
	case h.Typeflag != tar.TypeReg || isSparse(h):
		return fmt.Errorf("the manifest is not an ordinary file: %w", errdefs.ErrInvalid)
	case h.Size > maxACIManifest:
		return fmt.Errorf("the manifest is larger than %d bytes: %w", maxACIManifest, errLimit)
	}
	if err := a.count(); err != nil {
		return err
	}
	a.manifest = make([]byte, h.Size)
	if _, err := io.ReadFull(content, a.manifest); err != nil {
		return fmt.Errorf("read manifest: %w: %w", errArchive, err)
	}
	return a.check(a.manifest)
}

// missing says what an archive that was read lacks.
func (a *aciWriter) missing() error {
	switch {
	case a.manifest == nil:
		return fmt.Errorf("the archive has no manifest: %w", errdefs.ErrInvalid)
	case !a.rootfs:
		return fmt.Errorf("the archive has no %s: %w", aciRoot, errdefs.ErrInvalid)
	}
	return nil
}
