package e2e

import (
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/images"
)

// pullError pulls what must not be pulled.
func (n *node) pullError(t *testing.T, ref string, timeout time.Duration) error {
	t.Helper()
	began := time.Now()
	_, err := n.PullImage(callContext(t, timeout), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	if err == nil {
		t.Errorf("%s was pulled", ref)
	}
	if took := time.Since(began); took > timeout-time.Second {
		t.Errorf("pull of %s failed only after %v: %v", ref, took, err)
	}
	return err
}

// image is an image's status, nil where it is absent.
func (n *node) image(t *testing.T, name string) *runtimeapi.Image {
	t.Helper()
	resp, err := n.ImageStatus(callContext(t, callTimeout), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: name}})
	if err != nil {
		t.Fatalf("image status of %s: %v", name, err)
	}
	return resp.Image
}

func (n *node) removeImage(t *testing.T, name string) {
	t.Helper()
	if _, err := n.RemoveImage(callContext(t, callTimeout), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: name}}); err != nil {
		t.Errorf("remove image %s: %v", name, err)
	}
}

// variant is busybox in a format, with an id of its own.
func variant(t *testing.T, f images.Format, unique string) v1.Image {
	t.Helper()
	return must(images.Busybox(images.Options{Format: f, Unique: unique}))(t)
}

func TestPullFormats(t *testing.T) {
	n := startNode(t, harness.GantryOptions{})
	oci, docker, indexed := variant(t, images.OCI, "1"), variant(t, images.Docker, "2"), variant(t, images.OCI, "3")
	listed := variant(t, images.Docker, "4")
	zstd := must(images.Busybox(images.Options{Compression: images.Zstd, Unique: "5"}))(t)
	dockerZstd := must(images.Busybox(images.Options{Format: images.Docker, Compression: images.Zstd, Unique: "6"}))(t)
	tests := []struct {
		name string
		push remote.Taggable
		want v1.Image
	}{
		{"oci", oci, oci},
		{"docker-schema-2", docker, docker},
		{"oci-zstd", zstd, zstd},
		{"docker-zstd", dockerZstd, dockerZstd},
		{"oci-index", must(images.Index(images.OCI, indexed))(t), indexed},
		{"docker-manifest-list", must(images.Index(images.Docker, listed))(t), listed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			byDigest := n.registry.Push(t, tt.name+":1", tt.push)
			tag := n.registry.Ref(tt.name + ":1")
			want := must(tt.want.ConfigName())(t).String()
			if id := n.pull(t, tag); id != want {
				t.Errorf("by tag: pulled %s, want the config digest %s", id, want)
			}
			img := n.image(t, tag)
			if !slices.Equal(img.RepoTags, []string{tag}) || !slices.Equal(img.RepoDigests, []string{byDigest}) || img.Size == 0 {
				t.Errorf("by tag: %v", img)
			}
			n.removeImage(t, want)
			if id := n.pull(t, byDigest); id != want {
				t.Errorf("by digest: pulled %s, want %s", id, want)
			}
			img = n.image(t, want)
			if len(img.RepoTags) != 0 || !slices.Equal(img.RepoDigests, []string{byDigest}) {
				t.Errorf("by digest: %v", img)
			}
			for _, name := range []string{byDigest, want, strings.TrimPrefix(want, "sha256:")[:12]} {
				if got := n.image(t, name); got.String() != img.String() {
					t.Errorf("status by %s is %v, want %v", name, got, img)
				}
			}
		})
	}
}

func TestImageListAndRemove(t *testing.T) {
	n := startNode(t, harness.GantryOptions{})
	img := variant(t, images.OCI, "many-names")
	n.registry.Push(t, "many:1", img)
	n.registry.Push(t, "many:2", img)
	n.registry.Push(t, "other/many:1", img)
	var id string
	for _, name := range []string{"many:1", "many:2", "other/many:1"} {
		id = n.pull(t, n.registry.Ref(name))
	}
	list := must(n.ListImages(callContext(t, callTimeout), &runtimeapi.ListImagesRequest{}))(t).Images
	i := slices.IndexFunc(list, func(i *runtimeapi.Image) bool { return i.Id == id })
	if len(list) != 2 || i < 0 || len(list[i].RepoTags) != 3 || len(list[i].RepoDigests) != 2 || list[i].Pinned {
		t.Errorf("list is %v", list)
	}
	fs := must(n.ImageFsInfo(callContext(t, callTimeout), &runtimeapi.ImageFsInfoRequest{}))(t)
	if len(fs.ImageFilesystems) != 1 {
		t.Fatalf("file systems: %v", fs)
	}
	for unit, got := range map[string]uint64{"--block-size=1": fs.ImageFilesystems[0].UsedBytes.GetValue(), "--inodes": fs.ImageFilesystems[0].InodesUsed.GetValue()} {
		want := n.imagesDU(t, unit)
		if off := float64(got)/float64(want) - 1; want < 10 || math.Abs(off) > 0.01 {
			t.Errorf("ImageFsInfo says %d, du %s %d: %+.2f %%", got, unit, want, 100*off)
		}
	}
	if st, err := os.Stat(fs.ImageFilesystems[0].FsId.GetMountpoint()); err != nil || !st.IsDir() {
		t.Errorf("mount point of images: %v", err)
	}
	n.removeImage(t, id)
	for _, name := range append(append([]string{id}, list[i].RepoTags...), list[i].RepoDigests...) {
		if got := n.image(t, name); got != nil {
			t.Errorf("after the removal %s is still %v", name, got)
		}
	}
	n.removeImage(t, id)
	n.removeImage(t, "sha256:"+strings.Repeat("0", 64))
	n.removeImage(t, n.registry.Ref("never:1"))
	if n.image(t, n.busybox) == nil {
		t.Error("an image with the same layers went along")
	}
	n.pod(t, "still").output(t, "c", "true")
}

// imagesDU is what du says, in a unit, of all that images take.
func (n *node) imagesDU(t *testing.T, unit string) uint64 {
	t.Helper()
	args := []string{"-s", "-c", unit}
	for _, dir := range []string{"images", "trees", "refs", "pins", "files"} {
		args = append(args, filepath.Join(n.Dir, dir))
	}
	out, err := exec.Command("du", args...).Output()
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	total, err := strconv.ParseUint(strings.Fields(lines[len(lines)-1])[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return total
}

func TestPullAsksTheRegistryEveryTime(t *testing.T) {
	n := startNode(t, harness.GantryOptions{})
	id := n.image(t, n.busybox).Id
	n.registry.Stop(t)
	err := n.pullError(t, n.busybox, time.Minute)
	wantCode(t, err, codes.Unknown, n.registry.Addr)
	if !strings.HasPrefix(fmt.Sprint(err), "rpc error: code = Unknown desc = RegistryUnavailable") {
		t.Errorf("the kubelet will not see RegistryUnavailable at the first byte: %v", err)
	}
	if got := n.image(t, n.busybox); got == nil || got.Id != id {
		t.Errorf("the image is gone from the store: %v", got)
	}
	n.registry.Start(t)
	moved := variant(t, images.OCI, "moved")
	n.registry.Push(t, "busybox:1", moved)
	if got, want := n.pull(t, n.busybox), must(moved.ConfigName())(t).String(); got != want {
		t.Errorf("the tag moved to %s, pulled %s", want, got)
	}
	if old := n.image(t, id); old == nil || len(old.RepoTags) != 0 {
		t.Errorf("the image that lost its tag: %v", old)
	}
}

func TestPullRefusals(t *testing.T) {
	n := startNode(t, harness.GantryOptions{})
	zeros := "@sha256:" + strings.Repeat("0", 64)
	tests := []struct {
		name, ref string
		code      codes.Code
		words     []string
	}{
		{"upper case", n.registry.Ref("Busybox:1"), codes.InvalidArgument, []string{"Busybox"}},
		{"no name", "", codes.InvalidArgument, nil},
		{"no repository", n.registry.Addr + "/", codes.InvalidArgument, nil},
		{"blank", "busy box", codes.InvalidArgument, []string{"busy box"}},
		{"short digest", n.registry.Ref("busybox@sha256:abc"), codes.InvalidArgument, []string{"abc"}},
		{"missing repository", n.registry.Ref("none:1"), codes.NotFound, []string{"none:1"}},
		{"missing tag", n.registry.Ref("busybox:none"), codes.NotFound, []string{"busybox:none"}},
		{"missing digest", n.registry.Ref("busybox" + zeros), codes.NotFound, []string{zeros}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			wantCode(t, n.pullError(t, tt.ref, time.Minute), tt.code, tt.words...)
		})
	}
	n.wantOnlyBusybox(t)
}

// wantOnlyBusybox checks that failed pulls left nothing half-done.
func (n *node) wantOnlyBusybox(t *testing.T) {
	t.Helper()
	if list := must(n.ListImages(callContext(t, callTimeout), &runtimeapi.ListImagesRequest{}))(t).Images; len(list) != 1 {
		t.Errorf("images: %v", list)
	}
	n.wantNoLeftovers(t)
}

// wantNoLeftovers checks that nothing is in work on disk.
func (n *node) wantNoLeftovers(t *testing.T) {
	t.Helper()
	harness.Eventually(t, patience, func() string {
		left := must(filepath.Glob(filepath.Join(n.Dir, "tmp", "*")))(t)
		if len(left) > 0 {
			return fmt.Sprintf("left in the data directory: %q", left)
		}
		return ""
	})
}

// proxy stands before a registry and may change its answers.
func proxy(t *testing.T, registry string, change func(*http.Response) error) string {
	t.Helper()
	target := &url.URL{Scheme: "http", Host: registry}
	p := httputil.NewSingleHostReverseProxy(target)
	p.ModifyResponse = change
	p.ErrorLog = nil
	server := httptest.NewServer(p)
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

// corrupt flips the last byte of a body whose path contains part.
func corrupt(part string) func(*http.Response) error {
	return func(r *http.Response) error {
		if r.Request.Method != http.MethodGet || !strings.Contains(r.Request.URL.Path, part) {
			return nil
		}
		body, err := io.ReadAll(r.Body)
		if err != nil || len(body) == 0 {
			return err
		}
		body[len(body)-1] ^= 1
		r.Body = io.NopCloser(strings.NewReader(string(body)))
		return nil
	}
}

func TestPullVerifiesDigests(t *testing.T) {
	n := startNode(t, harness.GantryOptions{})
	img := must(images.Big(t.TempDir(), images.BigSpec{MB: 1, Files: 10, Layers: 2, Seed: 1}, images.Options{Unique: "corrupt"}))(t)
	byDigest := n.registry.Push(t, "corrupt:1", img)
	layers := must(img.Layers())(t)
	layer, config := must(layers[1].Digest())(t), must(img.ConfigName())(t)
	_, digest, _ := strings.Cut(byDigest, "@")
	tests := []struct {
		name, part, ref string
	}{
		{"manifest by tag", "/manifests/", "corrupt:1"},
		{"manifest by digest", "/manifests/", "corrupt@" + digest},
		{"config", "/blobs/" + config.String(), "corrupt:1"},
		{"layer", "/blobs/" + layer.String(), "corrupt:1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			addr := proxy(t, n.registry.Addr, corrupt(tt.part))
			harness.WriteHosts(t, n.RegistryDir, addr)
			wantCode(t, n.pullError(t, addr+"/"+tt.ref, time.Minute), codes.DataLoss, "sha256:")
			n.wantOnlyBusybox(t)
		})
	}
}

func TestPullFromHangingRegistry(t *testing.T) {
	hanging := harness.HangingRegistry(t)
	n := startNode(t, harness.GantryOptions{Registries: []string{hanging}, Args: config(t, "pullIdleTimeout: 2s")})
	began := time.Now()
	err := n.pullError(t, hanging+"/busybox:1", time.Minute)
	wantCode(t, err, codes.Unknown, "RegistryUnavailable", hanging)
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("it took %v with a limit of 2s", took)
	}
	// One that begins to answer and then stands still.
	stuck := proxy(t, n.registry.Addr, func(r *http.Response) error {
		if strings.Contains(r.Request.URL.Path, "/blobs/") && r.Request.Method == http.MethodGet {
			r.Body = struct {
				io.Reader
				io.Closer
			}{io.MultiReader(io.LimitReader(r.Body, 100), blocked(t)), r.Body}
		}
		return nil
	})
	harness.WriteHosts(t, n.RegistryDir, stuck)
	n.removeImage(t, n.busybox)
	harness.Eventually(t, patience, func() string { // the layers go after the answer
		if left := must(filepath.Glob(filepath.Join(n.Dir, "trees", "*")))(t); len(left) > 0 {
			return fmt.Sprintf("trees %q", left)
		}
		return ""
	})
	wantCode(t, n.pullError(t, stuck+"/busybox:1", time.Minute), codes.Unknown, "RegistryUnavailable")
	// The deadline of the caller counts too.
	ctx := callContext(t, 500*time.Millisecond)
	_, err = n.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: hanging + "/busybox:2"}})
	wantCode(t, err, codes.DeadlineExceeded)
	n.pull(t, n.busybox)
	n.wantOnlyBusybox(t)
}

// blocked is a reader that answers when the test is over.
func blocked(t *testing.T) io.Reader {
	r, w := io.Pipe()
	t.Cleanup(func() { w.Close() })
	return r
}

func TestFullDisk(t *testing.T) {
	needs(t, "mkfs.ext4")
	disk := harness.SmallDisk(t, 24)
	n := startNode(t, harness.GantryOptions{Dir: filepath.Join(disk, "lib")})
	big := must(images.Big(t.TempDir(), images.BigSpec{MB: 60, Files: 60, Layers: 3, Seed: 2}, images.Options{Unique: "full"}))(t)
	n.registry.Push(t, "big:1", big)
	err := n.pullError(t, n.registry.Ref("big:1"), time.Minute)
	wantCode(t, err, codes.ResourceExhausted, "no space left on device")
	n.wantOnlyBusybox(t)
	small := must(images.Big(t.TempDir(), images.BigSpec{MB: 5, Files: 10, Layers: 2, Seed: 3}, images.Options{Unique: "small"}))(t)
	n.registry.Push(t, "small:1", small)
	n.pull(t, n.registry.Ref("small:1"))
	n.pod(t, "on-small-disk").output(t, "c", "ls /opt", func(c *runtimeapi.ContainerConfig) { c.Image.Image = n.registry.Ref("small:1") })
}
