package images

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"log"
	"net/http/httptest"
	"os/exec"
	"path"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

func needDebian(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("needs Debian's %s (hack/deps test): %v", p, err)
		}
	}
}

// layerHeaders reads what each layer holds, by the name in the archive.
func layerHeaders(t *testing.T, img v1.Image) []map[string]*tar.Header {
	t.Helper()
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	var all []map[string]*tar.Header
	for _, layer := range layers {
		r, err := layer.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		headers := map[string]*tar.Header{}
		for archive := tar.NewReader(r); ; {
			h, err := archive.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			headers[h.Name] = h
		}
		all = append(all, headers)
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// checkValid fails unless every layer is what manifest and configuration say.
func checkValid(t *testing.T, img v1.Image) {
	t.Helper()
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	for i, layer := range layers {
		mt, err := layer.MediaType()
		if err != nil {
			t.Fatal(err)
		}
		if mt == types.OCILayer || mt == types.DockerLayer { // all that it can validate
			if err := validate.Layer(layer); err != nil {
				t.Errorf("layer %d: %v", i, err)
			}
		}
		r, err := layer.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		sum, _, err := v1.SHA256(r)
		if err := errors.Join(err, r.Close()); err != nil || sum != config.RootFS.DiffIDs[i] {
			t.Errorf("layer %d decompresses to %s (%v), the configuration says %s", i, sum, err, config.RootFS.DiffIDs[i])
		}
		if diffID, err := layer.DiffID(); err != nil || diffID != config.RootFS.DiffIDs[i] {
			t.Errorf("layer %d is %s (%v), the configuration says %s", i, diffID, err, config.RootFS.DiffIDs[i])
		}
	}
}

func TestBusybox(t *testing.T) {
	needDebian(t, busyboxPath)
	img, err := Busybox(Options{})
	if err != nil {
		t.Fatal(err)
	}
	checkValid(t, img)
	headers := layerHeaders(t, img)[0]
	for _, applet := range []string{"bin/sh", "bin/ls", "usr/bin/top", "usr/bin/wget", "usr/sbin/httpd", "bin/sleep"} {
		h := headers[applet]
		if h == nil || h.Typeflag != tar.TypeLink || h.Linkname != "bin/busybox" {
			t.Errorf("%s is no hard link to bin/busybox: %+v", applet, h)
		}
	}
	if h := headers["tmp/"]; h == nil || h.Mode != 0o1777 {
		t.Errorf("tmp is %+v, want mode 1777", h)
	}
}

func TestUniqueAndFormat(t *testing.T) {
	needDebian(t, busyboxPath)
	ids := map[v1.Hash]bool{}
	for _, o := range []Options{{}, {Unique: "a"}, {Unique: "b"}, {Format: Docker}} {
		img, err := Busybox(o)
		if err != nil {
			t.Fatal(err)
		}
		id, err := img.ConfigName()
		if err != nil {
			t.Fatal(err)
		}
		ids[id] = true
		m, err := img.Manifest()
		if err != nil {
			t.Fatal(err)
		}
		mt := o.Format.mediaTypes()
		if m.MediaType != mt.manifest || m.Config.MediaType != mt.config || m.Layers[0].MediaType != mt.layer {
			t.Errorf("format %q: manifest %s, config %s, layer %s", o.Format, m.MediaType, m.Config.MediaType, m.Layers[0].MediaType)
		}
	}
	if len(ids) != 3 { // the format is not in the configuration
		t.Errorf("%d image ids, want 3", len(ids))
	}
}

func TestWeb(t *testing.T) {
	needDebian(t, "apt-get", "dpkg-deb")
	for _, f := range []Format{OCI, Docker} {
		t.Run(string(f), func(t *testing.T) {
			img, err := Web(context.Background(), DefaultCache(), Options{Format: f})
			if err != nil {
				t.Fatal(err)
			}
			checkValid(t, img)
			checkWebTypes(t, img, f)
			checkWebLayers(t, layerHeaders(t, img))
			checkWebMerged(t, img)
		})
	}
}

func checkWebTypes(t *testing.T, img v1.Image, f Format) {
	t.Helper()
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	want := []types.MediaType{f.mediaTypes().plainLayer, f.mediaTypes().layer, f.mediaTypes().layer, f.mediaTypes().layer, f.mediaTypes().layer}
	if len(m.Layers) != len(want) {
		t.Fatalf("%d layers, want %d", len(m.Layers), len(want))
	}
	for i, l := range m.Layers {
		if l.MediaType != want[i] {
			t.Errorf("layer %d is %s, want %s", i, l.MediaType, want[i])
		}
	}
}

func checkWebLayers(t *testing.T, layers []map[string]*tar.Header) {
	t.Helper()
	for _, want := range []struct {
		layer    int
		name     string
		typeflag byte
		mode     int64
	}{
		{0, "./tmp/", tar.TypeDir, 0o1777},
		{0, "./usr/bin/newgrp", tar.TypeReg, 0o4755},
		{0, "./bin/uncompress", tar.TypeLink, 0o755},
		{0, "./usr/share/doc/", tar.TypeDir, 0o755},
		{1, "usr/sbin/nginx", tar.TypeReg, 0o755},
		{2, "bin/ping", tar.TypeReg, 0o755},
		{2, "usr/local/bin/ping-setuid", tar.TypeReg, 0o4755},
		{2, "usr/local/bin/ping-hard", tar.TypeLink, 0o755},
		{2, "tmp/from-a-layer", tar.TypeReg, 0o600},
		{3, "usr/share/.wh.doc", tar.TypeReg, 0},
		{3, "usr/share/nginx/html/.wh..wh..opq", tar.TypeReg, 0},
		{3, "etc/nginx/sites-available/.wh.default", tar.TypeReg, 0},
		{4, "usr/share/doc/README", tar.TypeReg, 0o644},
	} {
		h := layers[want.layer][want.name]
		if h == nil || h.Typeflag != want.typeflag || h.Mode != want.mode {
			t.Errorf("layer %d: %s is %+v, want type %c mode %o", want.layer, want.name, h, want.typeflag, want.mode)
		}
	}
	if got := layers[2]["bin/ping"].PAXRecords["SCHILY.xattr.security.capability"]; got != netRaw {
		t.Errorf("ping's capability attribute is %q", got)
	}
	for _, parent := range []string{"usr/", "usr/sbin/", "etc/", "etc/nginx/"} {
		if layers[1][parent] != nil {
			t.Errorf("layer 1 has the parent directory %s", parent)
		}
	}
}

// checkWebMerged looks at the image as another implementation stacks it.
func checkWebMerged(t *testing.T, img v1.Image) {
	t.Helper()
	r := mutate.Extract(img)
	defer r.Close()
	entries, err := readTar(r)
	if err != nil {
		t.Fatal(err)
	}
	merged := map[string]string{}
	for _, e := range entries {
		merged[path.Clean(e.header.Name)] = string(e.data)
	}
	for name, want := range map[string]string{
		"usr/share/nginx/html/index.html": WebBody,
		"etc/nginx/nginx.conf":            nginxConf,
		"usr/share/doc/README":            "What was here is gone.\n",
	} {
		if merged[name] != want {
			t.Errorf("%s is %q, want %q", name, merged[name], want)
		}
	}
	for name := range merged {
		if strings.HasPrefix(name, "usr/share/doc/") && name != "usr/share/doc/README" {
			t.Errorf("%s is not hidden", name)
			break
		}
	}
	if _, there := merged["etc/nginx/sites-available/default"]; there {
		t.Error("sites-available/default is not hidden")
	}
}

func TestIndexPush(t *testing.T) {
	needDebian(t, busyboxPath)
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	img, err := Busybox(Options{Format: Docker})
	if err != nil {
		t.Fatal(err)
	}
	index, err := Index(Docker, img)
	if err != nil {
		t.Fatal(err)
	}
	digest, err := Push(t.Context(), host+"/test/busybox:1", index)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.NewDigest(digest)
	if err != nil {
		t.Fatal(err)
	}
	back, err := remote.Index(ref)
	if err != nil {
		t.Fatal(err)
	}
	m, err := back.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if m.MediaType != types.DockerManifestList || len(m.Manifests) != 2 || m.Manifests[0].Platform.Architecture != "s390x" {
		t.Errorf("index is %+v", m)
	}
	want, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if m.Manifests[1].Digest != want {
		t.Errorf("second manifest is %s, want %s", m.Manifests[1].Digest, want)
	}
}

func TestBig(t *testing.T) {
	needDebian(t, busyboxPath)
	for compression, want := range map[Compression]types.MediaType{Gzip: types.OCILayer, Zstd: types.OCILayerZStd} {
		t.Run(string(compression), func(t *testing.T) { checkBig(t, compression, want) })
	}
}

// checkBig looks into an image whose topmost layer must be of type want.
func checkBig(t *testing.T, compression Compression, want types.MediaType) {
	spec := BigSpec{MB: 5, Files: 203, Layers: 4, Seed: 7}
	img, err := Big(t.TempDir(), spec, Options{Compression: compression})
	if err != nil {
		t.Fatal(err)
	}
	checkValid(t, img)
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := layers[len(layers)-1].MediaType(); got != want || err != nil {
		t.Errorf("layer is of type %s, err %v; want %s", got, err, want)
	}
	headers := layerHeaders(t, img)
	if len(headers) != spec.Layers {
		t.Fatalf("%d layers, want %d", len(headers), spec.Layers)
	}
	files, size := 0, int64(0)
	for _, layer := range headers[1:] {
		for _, h := range layer {
			if h.Typeflag == tar.TypeReg {
				files++
				size += h.Size
			}
		}
	}
	if files != spec.Files || size < 4_990_000 || size > 5_000_000 {
		t.Errorf("%d files of %d bytes, want %d of some %d", files, size, spec.Files, spec.MB*1_000_000)
	}
}

func TestWithoutParents(t *testing.T) {
	l := newLayerTar()
	for _, dir := range []string{"./", "./a", "./a/b", "./empty"} {
		l.dir(strings.TrimSuffix(dir, "/"), 0o755)
	}
	l.file("./a/b/f", 0o644, "x")
	l.hardlink("./a/b/g", "./a/b/f")
	data, err := l.bytes()
	if err != nil {
		t.Fatal(err)
	}
	entries, err := readTar(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range withoutParents(entries) {
		names = append(names, e.header.Name+e.header.Linkname)
	}
	if got, want := strings.Join(names, " "), "empty/ a/b/f a/b/ga/b/f"; got != want {
		t.Errorf("kept %q, want %q", got, want)
	}
}
