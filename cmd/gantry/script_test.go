package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage1/cgroup"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"gantry": main})
}

// The scripts are what a user could have typed. A script that needs root or a
// registry says so in its first line.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Condition: func(cond string) (bool, error) {
			if cond == "root" {
				return os.Geteuid() == 0, nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"registry": startRegistry,
			"push":     pushImage,
			"index":    pushIndex,
			"save":     saveImage,
			"uuid":     readUUID,

			"mkfs":      makeFilesystem,
			"cgroup":    makeCgroup,
			"unmounted": unmountAtEnd,
		},
	})
}

// startRegistry runs Debian's docker-registry for the script, and puts its
// address into $REGISTRY.
func startRegistry(ts *testscript.TestScript, _ bool, _ []string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	addr := l.Addr().String()
	ts.Check(l.Close())
	config := ts.MkAbs("registry.yml")
	ts.Check(os.WriteFile(config, fmt.Appendf(nil,
		"version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: %s}\n",
		ts.MkAbs("registry"), addr), 0o600))
	cmd := exec.Command("docker-registry", "serve", config)
	ts.Check(cmd.Start())
	ts.Defer(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	ts.Setenv("REGISTRY", addr)
	for deadline := time.Now().Add(10 * time.Second); ; {
		resp, err := http.Get("http://" + addr + "/v2/")
		if err == nil {
			ts.Check(resp.Body.Close())
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("docker-registry does not answer: %v", err)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// makeFilesystem mounts a new ext4 for the script: mkfs DIR [OPTION]...
func makeFilesystem(ts *testscript.TestScript, _ bool, args []string) {
	dir := ts.MkAbs(args[0])
	image := dir + ".img"
	ts.Check(os.Mkdir(dir, 0o755))
	ts.Check(ts.Exec("truncate", "-s", "64M", image))
	ts.Check(ts.Exec("mkfs.ext4", append(args[1:], image)...))
	ts.Check(ts.Exec("mount", "-o", "loop", image, dir))
	ts.Defer(func() { ts.Check(exec.Command("umount", dir).Run()) })
}

// pushImage makes an image of two layers and pushes it: push NAME [CONFIG.json],
// where the file has the config section of the image.
func pushImage(ts *testscript.TestScript, _ bool, args []string) {
	var config ocispec.ImageConfig
	if len(args) > 1 {
		ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[1])), &config))
	}
	resolver := docker.NewResolver(docker.ResolverOptions{
		Hosts: docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(docker.MatchLocalhost)),
	})
	pusher, err := resolver.Pusher(context.Background(), args[0])
	ts.Check(err)
	img := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}, Config: config}
	img.RootFS.Type = "layers"
	manifest := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for _, files := range []map[string]string{{"bin/app": "#!/bin/sh\n", "etc/passwd": "root:x:0:0::/:/bin/sh\n"}, {"data/" + filepath.Base(args[0]): "data"}} {
		raw, zipped := layerOf(ts, files)
		img.RootFS.DiffIDs = append(img.RootFS.DiffIDs, digest.FromBytes(raw))
		manifest.Layers = append(manifest.Layers, pushBlob(ts, pusher, ocispec.MediaTypeImageLayerGzip, zipped))
	}
	manifest.Config = pushJSON(ts, pusher, ocispec.MediaTypeImageConfig, img)
	pushJSON(ts, pusher, ocispec.MediaTypeImageManifest, manifest)
}

// pushIndex makes an image of a registry one for each of several platforms, and pushes
// an index of them, in this order: index NAME REF PLATFORM...
func pushIndex(ts *testscript.TestScript, _ bool, args []string) {
	ref, err := name.ParseReference(args[1], name.Insecure)
	ts.Check(err)
	img, err := remote.Image(ref)
	ts.Check(err)
	var adds []mutate.IndexAddendum
	for _, p := range args[2:] {
		platform, err := v1.ParsePlatform(p)
		ts.Check(err)
		config, err := img.ConfigFile()
		ts.Check(err)
		config = config.DeepCopy()
		config.OS, config.Architecture, config.Variant = platform.OS, platform.Architecture, platform.Variant
		one, err := mutate.ConfigFile(img, config)
		ts.Check(err)
		adds = append(adds, mutate.IndexAddendum{Add: one, Descriptor: v1.Descriptor{Platform: platform}})
	}
	to, err := name.ParseReference(args[0], name.Insecure)
	ts.Check(err)
	ts.Check(remote.WriteIndex(to, mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex), adds...)))
}

// saveImage saves an image of a registry: save TRANSPORT PATH REF. An oci-index is a
// layout of an index.
func saveImage(ts *testscript.TestScript, _ bool, args []string) {
	ref, err := name.ParseReference(args[2], name.Insecure)
	ts.Check(err)
	file := ts.MkAbs(args[1])
	if args[0] == "oci-index" {
		index, err := remote.Index(ref)
		ts.Check(err)
		p, err := layout.Write(file, empty.Index)
		ts.Check(err)
		ts.Check(p.AppendIndex(index))
		return
	}
	img, err := remote.Image(ref)
	ts.Check(err)
	if args[0] == "docker-archive" {
		ts.Check(tarball.WriteToFile(file, ref, img))
		return
	}
	p, err := layout.Write(file, empty.Index)
	ts.Check(err)
	ts.Check(p.AppendImage(img, layout.WithAnnotations(map[string]string{ocispec.AnnotationRefName: "1.0"})))
}

func layerOf(ts *testscript.TestScript, files map[string]string) (raw, zipped []byte) {
	var buf, zbuf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		text := files[name]
		ts.Check(w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(text)), Typeflag: tar.TypeReg}))
		_, err := w.Write([]byte(text))
		ts.Check(err)
	}
	ts.Check(w.Close())
	z := gzip.NewWriter(&zbuf)
	_, err := z.Write(buf.Bytes())
	ts.Check(errors.Join(err, z.Close()))
	return buf.Bytes(), zbuf.Bytes()
}

func pushJSON(ts *testscript.TestScript, p remotes.Pusher, mediaType string, v any) ocispec.Descriptor {
	raw, err := json.Marshal(v)
	ts.Check(err)
	return pushBlob(ts, p, mediaType, raw)
}

func pushBlob(ts *testscript.TestScript, p remotes.Pusher, mediaType string, raw []byte) ocispec.Descriptor {
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	w, err := p.Push(context.Background(), desc)
	if errdefs.IsAlreadyExists(err) {
		return desc
	}
	ts.Check(err)
	_, err = w.Write(raw)
	ts.Check(err)
	ts.Check(w.Commit(context.Background(), desc.Size, desc.Digest))
	return desc
}

// readUUID puts what the last command printed, which must be a UUID and a
// newline, into a variable: uuid NAME.
func readUUID(ts *testscript.TestScript, _ bool, args []string) {
	out := ts.ReadFile("stdout")
	if len(out) != 37 || out[36] != '\n' {
		ts.Fatalf("stdout is not a UUID and a newline: %q", out)
	}
	ts.Setenv(args[0], out[:36])
}

// makeCgroup makes a group with an owner until the end of the script: cgroup PATH OWNER.
func makeCgroup(ts *testscript.TestScript, _ bool, args []string) {
	h, err := cgroup.Detect()
	ts.Check(err)
	ts.Check(h.Create(args[0]))
	ts.Defer(func() {
		if err := h.Remove(context.Background(), args[0]); err != nil {
			ts.Logf("%v", err)
		}
		h.RemoveEmpty(filepath.Dir(args[0]))
	})
	ts.Check(h.SetOwner(args[0], args[1]))
}

// unmountAtEnd unmounts what is left below directories at the end of the script, which
// could not delete them otherwise: unmounted DIR...
func unmountAtEnd(ts *testscript.TestScript, _ bool, args []string) {
	ts.Defer(func() {
		for _, dir := range args {
			mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(ts.MkAbs(dir)))
			ts.Check(err)
			for _, m := range slices.Backward(mounts) {
				ts.Check(unix.Unmount(m.Mountpoint, unix.MNT_DETACH))
			}
		}
	})
}
