package images

import (
	"archive/tar"
	"errors"
	"fmt"
	"os"
	"runtime"
)

// bigManifest is that of an appc image; the architecture is to be filled in.
const bigManifest = `{"acKind":"ImageManifest","acVersion":"0.8.11","name":"example.com/big",
"labels":[{"name":"os","value":"linux"},{"name":"arch","value":"%s"}],
"app":{"exec":["/opt/d000/f00000"],"user":"0","group":"0"}}`

// BigACI writes an appc image of the files that [Big] would have in its layers, as an
// uncompressed archive.
func BigACI(path string, spec BigSpec) (err error) {
	arch := runtime.GOARCH
	if arch == "arm64" {
		arch = "aarch64"
	}
	pool, err := newPool(spec.Seed)
	if err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := tar.NewWriter(f)
	manifest := fmt.Appendf(nil, bigManifest, arch)
	err = w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "manifest", Mode: 0o644, Size: int64(len(manifest)), ModTime: epoch})
	if err == nil {
		_, err = w.Write(manifest)
	}
	if err == nil {
		err = w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "rootfs/", Mode: 0o755, ModTime: epoch})
	}
	return errors.Join(err, pool.fill(w, "rootfs/opt", pool.sizes(spec)), w.Close())
}
