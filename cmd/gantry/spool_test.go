package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/gantry-cri/gantry/stage0/fetch/registrytest"
)

// TestFetchKilled kills gantry fetch with SIGKILL in the middle of a layer: the next
// one asks the registry for the rest alone, unless a collection that was told to take
// all came between.
func TestFetchKilled(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("fetching needs root")
	}
	content := make([]byte, 4<<20)
	for i := range content {
		content[i] = byte(rand.IntN(256)) //nolint:gosec // no secret
	}
	reg := registrytest.Start(t)
	layer := registrytest.PlainLayer(t, false, registrytest.Tar(t, "a", string(content)))
	reg.Push(t, "i:1", registrytest.Image(t, registrytest.Spec{Layers: []v1.Layer{layer}}))
	id, err := layer.Digest()
	if err != nil {
		t.Fatal(err)
	}
	size, err := layer.Size()
	if err != nil {
		t.Fatal(err)
	}
	half := size / 2
	for _, tc := range []struct {
		name    string
		collect string
		asked   []string
		sent    int64
	}{
		{"and taken up", "--grace-period=30m", []string{"", fmt.Sprintf("bytes=%d-", half)}, size},
		{"and dropped", "--grace-period=0s", []string{"", ""}, half + size},
	} {
		t.Run(tc.name, func(t *testing.T) {
			x := reg.Wire(t, id.String(), half, nil)
			c := cli{t, t.TempDir()}
			image := "docker://" + x.Host + "/i:1"
			first := c.command("fetch", image)
			if err := first.Start(); err != nil {
				t.Fatal(err)
			}
			<-x.Held
			waitForSize(t, filepath.Join(c.dir, "data/tmp/spool-sha256-"+id.Hex), half)
			if err := first.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = first.Wait() // it was killed
			c.collect(tc.collect, half, tc.sent > size)
			c.run("fetch", image)
			if asked, sent := x.Traffic(); !slices.Equal(asked, tc.asked) || sent != tc.sent {
				t.Errorf("asked for %q, %d bytes were sent, want %d", asked, sent, tc.sent)
			}
			if left, err := os.ReadDir(filepath.Join(c.dir, "data/tmp")); err != nil || len(left) > 0 {
				t.Errorf("tmp holds %v, %v", left, err)
			}
		})
	}
}

// cli is gantry on directories of its own below dir.
type cli struct {
	t   *testing.T
	dir string
}

func (c cli) command(args ...string) *exec.Cmd {
	c.t.Helper()
	file := filepath.Join(c.dir, "config.yaml")
	if err := os.WriteFile(file, []byte("spoolAbove: 1000000\n"), 0o600); err != nil {
		c.t.Fatal(err)
	}
	flags := []string{"--config", file, "--dir", filepath.Join(c.dir, "data"), "--run-dir", filepath.Join(c.dir, "run")}
	return exec.Command("gantry", append(flags, args...)...)
}

func (c cli) run(args ...string) string {
	c.t.Helper()
	out, err := c.command(args...).CombinedOutput()
	if err != nil {
		c.t.Fatalf("gantry %q: %v: %s", args, err, out)
	}
	return string(out)
}

// collect holds that a collection frees the bytes of a spool, or none of them, and says
// so before and after; and that the disk's usage knows them.
func (c cli) collect(grace string, kept int64, frees bool) {
	c.t.Helper()
	var df struct {
		Temporary struct{ Bytes, Reclaimable int64 }
	}
	if err := json.Unmarshal([]byte(c.run("system", "df", "--format=json")), &df); err != nil || df.Temporary.Reclaimable < kept || df.Temporary.Bytes < kept {
		c.t.Errorf("system df: %+v, %v", df, err)
	}
	c.run("gc", "--grace-period=24h") // what was half extracted
	for _, args := range [][]string{{"gc", grace, "--dry-run"}, {"gc", grace}} {
		out := c.run(args...)
		var freed int64
		_, number, _ := strings.Cut(strings.Replace(out, "would free ", "freed ", 1), "freed ")
		if _, err := fmt.Sscanf(number, "%d bytes", &freed); err != nil || (freed >= kept) != frees {
			c.t.Errorf("gantry %q: %v: %s", args, err, out)
		}
	}
}

func waitForSize(t *testing.T, path string, size int64) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		info, err := os.Stat(path)
		if err == nil && info.Size() == size {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not get %d bytes: %v", path, size, err)
		}
	}
}
