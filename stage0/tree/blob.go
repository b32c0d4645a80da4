package tree

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/inflate"
)

// The layer media types of Docker's image manifest, version 2, schema 2.
const (
	dockerLayer            = "application/vnd.docker.image.rootfs.diff.tar"
	dockerLayerGzip        = dockerLayer + ".gzip"
	dockerLayerZstd        = dockerLayer + ".zstd"
	dockerForeignLayer     = "application/vnd.docker.image.rootfs.foreign.diff.tar"
	dockerForeignLayerGzip = dockerForeignLayer + ".gzip"
)

// maxWindow bounds the memory of a zstd decoder: what RFC 8878, section
// 3.1.1.1.2, recommends that every decoder supports.
const maxWindow = 8 << 20

// Memory is about what an extraction of a layer has in memory at once, bytes.
func Memory(mediaType string) int64 {
	const buffers = 4 << 20 // two rings, what is written from, and the record's encoder
	switch mediaType {
	case ocispec.MediaTypeImageLayerZstd, ocispec.MediaTypeImageLayerNonDistributableZstd, dockerLayerZstd: //nolint:staticcheck // old images carry the deprecated types
		return buffers + maxWindow + 1<<20 // whatever its frames say of their windows
	}
	return buffers
}

// decoder decompresses a blob.
type decoder struct {
	fill  func(buf []byte) (int, error) // as inflate.Decoder's Fill
	close func()
}

// decompressor returns what opens a blob of this media type.
func decompressor(mediaType string) (func(io.Reader) (decoder, error), error) {
	switch mediaType {
	case ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerNonDistributable, dockerLayer, dockerForeignLayer: //nolint:staticcheck // old images carry the deprecated types
		return openPlain, nil
	case ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerNonDistributableGzip, dockerLayerGzip, dockerForeignLayerGzip: //nolint:staticcheck // as above
		return openGzip, nil
	case ocispec.MediaTypeImageLayerZstd, ocispec.MediaTypeImageLayerNonDistributableZstd, dockerLayerZstd: //nolint:staticcheck // as above
		return openZstd, nil
	}
	return nil, fmt.Errorf("layer media type %q: %w", mediaType, errdefs.ErrUnsupported)
}

func openPlain(r io.Reader) (decoder, error) {
	return decoder{fillFrom(r), func() {}}, nil
}

func openGzip(r io.Reader) (decoder, error) {
	return decoder{inflate.New(r).Fill, func() {}}, nil
}

// zstdDecoders are those that no layer has now, until the collector takes them. A new one
// has to touch twice its window of memory first, which takes as long as to decompress
// megabytes.
var zstdDecoders sync.Pool

func openZstd(r io.Reader) (decoder, error) {
	d, err := newZstd(r)
	if err != nil {
		return decoder{}, err
	}
	return decoder{fillFrom(d), func() {
		if err := d.Reset(nil); err == nil { // it holds no blob any more
			zstdDecoders.Put(d)
		}
	}}, nil
}

func newZstd(r io.Reader) (*zstd.Decoder, error) {
	if d, ok := zstdDecoders.Get().(*zstd.Decoder); ok {
		return d, d.Reset(r)
	}
	// The frames' checksums say nothing that the diff ID does not: both are of the content.
	// A decoder that works in its caller's goroutine needs no Close.
	return zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(false), zstd.WithDecoderMaxWindow(maxWindow), zstd.IgnoreChecksum(true))
}

// fillFrom fills the room of a chunk from a stream that keeps a window of its own.
func fillFrom(r io.Reader) func([]byte) (int, error) {
	return func(buf []byte) (int, error) { return fill(r, buf[inflate.Window:len(buf)-inflate.Slack]) }
}

// readBlob reads exactly l.Size bytes into the ring and verifies their digest.
func readBlob(out *ring, l Layer, blob io.Reader) error {
	defer out.close()
	verifier := l.Digest.Verifier()
	for left := l.Size; left > 0; {
		c, err := out.next()
		if err != nil {
			return err
		}
		n, err := fill(blob, c.room()[:min(left, chunkSize)])
		left -= int64(n)
		_, _ = verifier.Write(c.room()[:n]) // a hash never fails
		if n > 0 {
			out.send(c, n)
		}
		if left > 0 && errors.Is(err, io.EOF) {
			return fmt.Errorf("blob ended after %d of %d bytes: %w", l.Size-left, l.Size, errdefs.ErrUnverified)
		}
		if left > 0 && err != nil {
			return fmt.Errorf("read blob: %w", err)
		}
	}
	if !verifier.Verified() {
		return fmt.Errorf("blob of %d bytes has another digest: %w", l.Size, errdefs.ErrUnverified)
	}
	return nil
}

// decompress fills the ring with the tar, which may be as long as l says. After
// the end of the compressed stream, or where it is damaged, it lets the rest of
// the blob pass by, for the blob's digest.
func decompress(out *ring, open func(io.Reader) (decoder, error), in *ringReader, l lengthLimit) error {
	err := decompressTo(out, open, in, l)
	out.close()
	if errors.Is(err, errLimit) {
		return err
	}
	return errors.Join(err, in.drain())
}

// errArchive marks an error of the tar's own format.
var errArchive = fmt.Errorf("%w archive", errdefs.ErrInvalid)

func decompressTo(out *ring, open func(io.Reader) (decoder, error), in io.Reader, l lengthLimit) error {
	d, err := open(in)
	if err != nil {
		return fmt.Errorf("decompress: %w: %w", errdefs.ErrInvalid, err)
	}
	defer d.close()
	for total := int64(0); ; {
		c, err := out.next()
		if err != nil {
			return err
		}
		n, err := d.fill(c.buf)
		if total += int64(n); total > l.bytes {
			return l.err
		}
		if n > 0 {
			out.send(c, n)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("decompress after %d bytes: %w: %w", total, errdefs.ErrInvalid, err)
		}
	}
}

// fill reads until buf is full or r has nothing more. Unlike io.ReadFull it
// leaves io.EOF as it is, so that an end can be told from a stream cut short.
func fill(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var m int
		m, err = r.Read(buf[n:])
		n += m
	}
	return n, err
}

// verifyTar hashes the uncompressed layer.
func verifyTar(in *ringReader, diffID digest.Digest) error {
	verifier := diffID.Verifier()
	for {
		data, err := in.peek()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		_, _ = verifier.Write(data) // a hash never fails
		in.skip(len(data))
	}
	if !verifier.Verified() {
		return fmt.Errorf("the uncompressed layer is not that of diff ID %s: %w", diffID, errdefs.ErrUnverified)
	}
	return nil
}
