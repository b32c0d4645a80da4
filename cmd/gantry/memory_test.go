package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/fetch/registrytest"
)

// TestMemory holds what a pull may take: whatever the image, at most 64 MB more than
// that of one that has next to nothing. The layers of this one need the largest windows
// that are allowed, and have 200,000 files and directories together.
func TestMemory(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("fetching needs root")
	}
	const layers, entries, most = 6, 200_000 / 6, 64_000_000
	var large []v1.Layer
	for i := range layers {
		large = append(large, wideLayer(t, i, entries))
	}
	idle := peak(t, []v1.Layer{registrytest.Layer(t, false, registrytest.Tar(t, "a", "a"))})
	got := peak(t, large)
	t.Logf("idle %d, with the image %d bytes: %d more", idle, got, got-idle)
	if got-idle > most {
		t.Errorf("the image takes %d bytes more than idle, at most %d are allowed", got-idle, most)
	}
	if got-idle < 8<<20 {
		t.Errorf("the image takes %d bytes: less than one window, so it was not measured", got-idle)
	}
}

// wideLayer is a layer of zstd with a window of 8 MiB. Two entries of three are
// directories, one in ten is not known before its entries.
func wideLayer(t *testing.T, n, entries int) v1.Layer {
	t.Helper()
	var archive, blob bytes.Buffer
	z, err := zstd.NewWriter(&blob, zstd.WithWindowSize(8<<20), zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(&archive)
	r := rand.New(rand.NewPCG(uint64(n), 1)) //nolint:gosec // no secret
	for i := range entries {
		h := &tar.Header{Typeflag: tar.TypeDir, Name: fmt.Sprintf("l%d/d%d/e%d", n, r.IntN(300), i), Mode: 0o755, ModTime: time.Unix(int64(i), int64(n)), Format: tar.FormatPAX}
		switch i % 30 {
		case 2, 5, 8, 11, 14, 17, 20, 23, 26, 29:
			h.Typeflag, h.Size = tar.TypeReg, 256
		case 0, 10, 19:
			h.Typeflag, h.Name, h.Size = tar.TypeReg, h.Name+"/implied", 256
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(bytes.Repeat([]byte{byte(r.Uint32())}, int(h.Size))); err != nil {
			t.Fatal(err)
		}
	}
	err = w.Close()
	if err == nil {
		_, err = z.Write(archive.Bytes())
	}
	if err := errors.Join(err, z.Close()); err != nil {
		t.Fatal(err)
	}
	return registrytest.RawLayer(t, archive.Bytes(), blob.Bytes(), types.OCILayerZStd)
}

// peak is the largest resident set of a gantry that fetches an image of these layers,
// bytes.
func peak(t *testing.T, layers []v1.Layer) (bytes int64) {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("memory", dir, "tmpfs", 0, ""); err != nil { // fast, and deleted at once
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	}()
	at, err := layout.Write(filepath.Join(dir, "layout"), empty.Index)
	if err == nil {
		img := registrytest.Image(t, registrytest.Spec{Layers: layers})
		err = at.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "it"}))
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := cli{t, dir}.command("fetch", "--quiet", "oci:"+string(at)+":it")
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case err := <-ended:
			if err != nil {
				t.Fatalf("fetch: %v: %s", err, out.String())
			}
			return bytes
		case <-time.After(time.Millisecond):
			// Not the resource usage of the process: that begins with its parent's.
			bytes = max(bytes, residentPeak(cmd))
		}
	}
}

// residentPeak is what the kernel knows of a process that may have ended.
func residentPeak(cmd *exec.Cmd) int64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	fields := strings.Fields(rest)
	if len(fields) == 0 || !strings.Contains(string(status), "Name:\tgantry\n") {
		return 0 // ended, or not begun
	}
	kib, err := strconv.ParseInt(fields[0], 10, 64)
	if err != nil {
		return 0
	}
	return kib << 10
}
