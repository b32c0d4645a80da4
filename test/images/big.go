package images

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
)

// BigSpec says how large an image [Big] makes.
type BigSpec struct {
	MB     int // 10^6 bytes, unpacked, of the files; busybox comes on top
	Files  int
	Layers int // at least 2; the lowest is busybox
	Seed   uint64
}

// Big is busybox, compressed by gzip, below layers of many files, whose sizes vary as those of real
// images do and whose contents are pieces of files in /usr, so that they
// compress as real ones do. The layers are kept in dir, which must live as long
// as the image is used. The same seed on the same machine gives the same image.
func Big(dir string, spec BigSpec, o Options) (v1.Image, error) {
	if spec.Layers < 2 || spec.Files < spec.Layers {
		return nil, fmt.Errorf("big image of %d layers and %d files: at least 2 layers, and a file for each", spec.Layers, spec.Files)
	}
	pool, err := newPool(spec.Seed)
	if err != nil {
		return nil, err
	}
	img, err := Busybox(o)
	if err != nil {
		return nil, err
	}
	sizes := pool.sizes(spec)
	for i, part := range split(sizes, spec.Layers-1) {
		layer, err := pool.layer(filepath.Join(dir, fmt.Sprintf("layer-%d", i)), fmt.Sprintf("opt/layer%d", i), part, o)
		if err != nil {
			return nil, fmt.Errorf("make layer %d: %w", i+1, err)
		}
		if img, err = mutate.AppendLayers(img, layer); err != nil {
			return nil, fmt.Errorf("append layer %d: %w", i+1, err)
		}
	}
	return img, nil
}

// pool gives out pieces of this machine's files.
type pool struct {
	files []string
	rand  *rand.Rand
	open  *os.File
}

func newPool(seed uint64) (*pool, error) {
	p := &pool{rand: rand.New(rand.NewPCG(seed, seed))}
	for _, root := range []string{"/usr/bin", "/usr/lib", "/usr/share"} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			info, err := d.Info()
			if err == nil && info.Size() > 4096 {
				p.files = append(p.files, path)
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("collect contents: %w", err)
		}
	}
	if len(p.files) == 0 {
		return nil, errors.New("collect contents: no files in /usr")
	}
	p.rand.Shuffle(len(p.files), func(i, j int) { p.files[i], p.files[j] = p.files[j], p.files[i] })
	return p, nil
}

// sizes are log-normal: most files are small, a few hold most of the bytes.
func (p *pool) sizes(spec BigSpec) []int64 {
	total := 0.0
	raw := make([]float64, spec.Files)
	for i := range raw {
		raw[i] = expNormal(p.rand)
		total += raw[i]
	}
	sizes := make([]int64, spec.Files)
	for i, r := range raw {
		sizes[i] = int64(r / total * float64(spec.MB) * 1e6)
	}
	return sizes
}

// layer writes one layer's archive, with files below root, and opens it as a layer.
func (p *pool) layer(path, root string, sizes []int64, o Options) (v1.Layer, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	z, mt, err := o.compressor(f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	w := tar.NewWriter(z)
	if err := errors.Join(p.fill(w, root, sizes), w.Close(), z.Close(), f.Close()); err != nil {
		return nil, err
	}
	return tarball.LayerFromFile(path, tarball.WithMediaType(mt))
}

// compressor opens what compresses a layer into f, and names the type of that layer.
func (o Options) compressor(f io.Writer) (io.WriteCloser, types.MediaType, error) {
	switch o.Compression {
	case "", Gzip:
		return gzip.NewWriter(f), o.Format.mediaTypes().layer, nil
	case Zstd:
		z, err := zstd.NewWriter(f, zstd.WithEncoderLevel(zstd.SpeedDefault))
		return z, o.Format.mediaTypes().zstdLayer, err
	}
	return nil, "", fmt.Errorf("unknown compression %q", o.Compression)
}

// fill writes the files, fifty to a directory below root.
func (p *pool) fill(w *tar.Writer, root string, sizes []int64) error {
	for i, size := range sizes {
		dir := fmt.Sprintf("%s/d%03d", root, i/50)
		if i%50 == 0 {
			h := &tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755, ModTime: epoch}
			if err := w.WriteHeader(h); err != nil {
				return err
			}
		}
		h := &tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("%s/f%05d", dir, i), Mode: 0o644, Size: size, ModTime: epoch}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.CopyN(w, p, size); err != nil {
			return err
		}
	}
	return nil
}

// Read goes through the files one after another, round and round.
func (p *pool) Read(b []byte) (int, error) {
	for {
		if p.open == nil {
			f, err := os.Open(p.files[0])
			if err != nil {
				return 0, err
			}
			p.open = f
			p.files = append(p.files[1:], p.files[0])
		}
		n, err := p.open.Read(b)
		if n > 0 || (err != nil && !errors.Is(err, io.EOF)) {
			return n, err
		}
		if err := p.open.Close(); err != nil {
			return 0, err
		}
		p.open = nil
	}
}

// split cuts s into n parts of about equal length.
func split(s []int64, n int) [][]int64 {
	size := (len(s) + n - 1) / n
	return slices.Collect(slices.Chunk(s, size))
}

// expNormal draws from a log-normal distribution as wide as that of file sizes.
func expNormal(r *rand.Rand) float64 { return math.Exp(1.8 * r.NormFloat64()) }
