package tree_test

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/tree"
)

// filesEnv says how many files the largest image of TestContract has.
const filesEnv = "GANTRY_CONTRACT_FILES"

func contractFiles(t *testing.T) int {
	t.Helper()
	n, err := strconv.Atoi(cmp.Or(os.Getenv(filesEnv), "2000"))
	if err != nil {
		t.Fatalf("%s: %v", filesEnv, err)
	}
	return n
}

// TestContract extracts a corpus of nasty images in any order and parallelism,
// mounts them, and compares every bit of what the mount shows with what a serial
// applier makes of the same layers and with what umoci unpacks.
func TestContract(t *testing.T) {
	open(t) // skips without root
	for _, img := range contractImages(t) {
		t.Run(img.name, func(t *testing.T) {
			img.room(t)
			want := newSerial(t)
			for _, l := range img.layers {
				want.apply(l)
			}
			serial := view(t, want.done(), img)
			if img.source != "" { // which tar has read since it wrote the times
				diffSnapshots(t, withoutAccess(serial), withoutAccess(view(t, img.source, img)))
			}
			var took map[string]int64
			for seed, workers := range img.workers() {
				r := rand.New(rand.NewPCG(uint64(seed), 7))
				t.Run(fmt.Sprintf("order %d workers %d", seed, workers), func(t *testing.T) {
					root := mountInOrder(t, img.layers, r.Perm(len(img.layers)), workers)
					diffSnapshots(t, view(t, root, img), serial)
					if took = blocks(t, root); img.source != "" {
						noMoreBlocks(t, took, blocks(t, img.source))
					}
				})
			}
			t.Run("umoci", func(t *testing.T) {
				if img.umoci != "" {
					t.Log(img.umoci)
					return
				}
				begun := time.Now()
				root := umociUnpack(t, img.layers)
				compareUmoci(t, view(t, root, img), serial, begun)
				noMoreBlocks(t, took, blocks(t, root))
			})
		})
	}
}

// mountInOrder extracts and commits the layers, several at once, and returns the
// mount of their stack.
func mountInOrder(t *testing.T, layers [][]byte, order []int, workers int) string {
	t.Helper()
	s, dir := open(t)
	ids := make([]digest.Digest, len(layers))
	pending := make([]*tree.Pending, len(layers))
	var g errgroup.Group
	g.SetLimit(workers)
	for _, i := range order {
		g.Go(func() (err error) {
			ids[i] = digest.FromBytes(layers[i])
			pending[i], err = s.Extract(t.Context(), plainLayer(layers[i]), bytes.NewReader(layers[i]))
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(t.Context(), pending...); err != nil {
		t.Fatal(err)
	}
	return mountStack(t, s, dir, stackOf(t, s, ids))
}

var linkCount = regexp.MustCompile(` links=\d+`)

// testsBegan tells a link that was followed in a test, which the kernel takes for
// reading it, from one that has the time of its entry.
var testsBegan = time.Now().Unix()

// view describes all below root, each file with the other names that it has and the
// time when it was read last.
func view(t *testing.T, root string, img contractImage) map[string]string {
	t.Helper()
	access := map[string]string{}
	walk(t, root, func(p string, st unix.Stat_t) { // before snapshot reads it
		access[p] = fmt.Sprintf(" accessed=%d.%09d", st.Atim.Sec, st.Atim.Nsec)
		if st.Mode&unix.S_IFMT == unix.S_IFLNK && st.Atim.Sec >= testsBegan {
			access[p] = " followed"
		}
	})
	all := snapshot(t, root)
	for p := range all {
		all[p] += access[p]
	}
	names := map[uint64][]string{}
	for p := range all {
		if strings.Contains(all[p], " links=1 ") {
			continue
		}
		if st := lstat(t, filepath.Join(root, p)); st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			names[st.Ino] = append(names[st.Ino], p)
		}
	}
	for _, group := range names {
		slices.Sort(group)
		for _, p := range group {
			all[p] += fmt.Sprintf(" names=%q", group)
		}
	}
	for _, p := range img.uncounted {
		all[p] = strings.ReplaceAll(linkCount.ReplaceAllString(all[p], ""), fmt.Sprintf(" names=%q", []string{p}), "")
	}
	return all
}

// walk calls do for all below root, for directories before they are read.
func walk(t *testing.T, root string, do func(p string, st unix.Stat_t)) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		do(rel, lstat(t, path))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

var accessTime = regexp.MustCompile(` (accessed=-?\d+\.\d+|followed)`)

func withoutAccess(all map[string]string) map[string]string {
	all = maps.Clone(all)
	for p, s := range all {
		all[p] = accessTime.ReplaceAllString(s, "")
	}
	return all
}

// blocks are what the regular files below root take on disk, of 512 bytes.
func blocks(t *testing.T, root string) map[string]int64 {
	t.Helper()
	all := map[string]int64{}
	walk(t, root, func(p string, st unix.Stat_t) {
		if st.Mode&unix.S_IFMT == unix.S_IFREG {
			all[p] = st.Blocks
		}
	})
	return all
}

// noMoreBlocks holds that holes stay holes.
func noMoreBlocks(t *testing.T, got, most map[string]int64) {
	t.Helper()
	for p, n := range got {
		if want, ok := most[p]; !ok || n > want {
			t.Errorf("%s takes %d blocks, want %d", p, n, want)
		}
	}
}

var dirTime = regexp.MustCompile(`^(04\d{4} \d+:\d+) (\d+)\.\d{9}`)

// compareUmoci is diffSnapshots, but for what umoci does not set: it leaves a
// directory at the time of unpacking when it made something implied in it.
func compareUmoci(t *testing.T, got, want map[string]string, begun time.Time) {
	t.Helper()
	want = maps.Clone(want)
	for p, g := range got {
		m := dirTime.FindStringSubmatch(g)
		if m == nil {
			continue
		}
		if sec, err := strconv.ParseInt(m[2], 10, 64); err != nil || sec < begun.Unix() {
			continue
		}
		// Its access time with it: umoci sets both or none.
		got[p], want[p] = dirTime.ReplaceAllString(accessTime.ReplaceAllString(g, ""), "$1"), dirTime.ReplaceAllString(accessTime.ReplaceAllString(want[p], ""), "$1")
	}
	diffSnapshots(t, got, want)
}

// umociUnpack writes an OCI layout and has umoci unpack it.
func umociUnpack(t *testing.T, layers [][]byte) string {
	t.Helper()
	umoci, err := exec.LookPath("umoci")
	if err != nil {
		t.Skip("umoci is not installed: run hack/deps")
	}
	layout, root := t.TempDir(), filepath.Join(t.TempDir(), "rootfs")
	writeLayout(t, layout, layers)
	out, err := exec.CommandContext(t.Context(), umoci, "raw", "unpack", "--image", layout+":it", root).CombinedOutput()
	if err != nil {
		t.Fatalf("umoci: %v\n%s", err, out)
	}
	return root
}

func writeLayout(t *testing.T, layout string, layers [][]byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(layout, "blobs", "sha256"), 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(name string, data []byte) {
		if err := os.WriteFile(filepath.Join(layout, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	blob := func(mediaType string, data []byte) ocispec.Descriptor {
		d := digest.FromBytes(data)
		write("blobs/sha256/"+d.Encoded(), data)
		return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
	}
	object := func(v any) []byte {
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	config := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}, RootFS: ocispec.RootFS{Type: "layers"}}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for _, l := range layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(l))
		m.Layers = append(m.Layers, blob(ocispec.MediaTypeImageLayer, l))
	}
	m.Config = blob(ocispec.MediaTypeImageConfig, object(config))
	top := blob(ocispec.MediaTypeImageManifest, object(m))
	top.Annotations = map[string]string{ocispec.AnnotationRefName: "it"}
	write("oci-layout", object(ocispec.ImageLayout{Version: "1.0.0"}))
	write("index.json", object(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []ocispec.Descriptor{top}}))
}
