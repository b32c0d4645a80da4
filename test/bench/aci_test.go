package bench

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/gantry-cri/gantry/test/bench/result"
	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/images"
)

// BenchmarkACI prepares a pod of an ACI of 494 MB with 18,000 files, beside tar -x of
// it, and copies its tree in place of stacking it, beside cp -a.
func BenchmarkACI(b *testing.B) {
	version(b, "gantry", harness.Binary(b), "version")
	version(b, "tar", "tar", "--version")
	version(b, "cp", "cp", "--version")
	dir := b.TempDir()
	plain, zipped := filepath.Join(dir, "big.aci"), filepath.Join(dir, "big.gz.aci")
	if err := images.BigACI(plain, images.BigSpec{MB: 480, Files: 18000, Seed: 1}); err != nil {
		b.Fatal(err)
	}
	if out, err := exec.Command("sh", "-c", `gzip -6 <"$0" >"$1"`, plain, zipped).CombinedOutput(); err != nil {
		b.Fatalf("gzip: %v: %s", err, out)
	}
	for _, c := range []struct{ name, file string }{{"aci", plain}, {"aci-gzip", zipped}} {
		inTurn(b, c.name, []string{"gantry", "tar"}, func(b *testing.B, s result.Sample) {
			d := freshDisk(b)
			readAll(b, c.file)
			if s.Who == "gantry" {
				run(b, d, s, cli(b, d, nil).Command(b, "prepare", "--quiet", c.file))
				return
			}
			run(b, d, s, exec.Command("tar", "-xp", "--numeric-owner", "-C", d.path, "-f", c.file))
		})
	}
	inTurn(b, "copy", []string{"gantry", "cp"}, func(b *testing.B, s result.Sample) { copyACI(b, s, plain) })
	b.Run("prepare-warm-aci", func(b *testing.B) {
		g := cli(b, freshDisk(b), nil)
		g.CLI(b, "fetch", "--quiet", plain)
		for round := range *rounds * warmRounds {
			s := result.Sample{Case: "prepare-warm-aci", Who: "gantry", Round: round}
			run(b, nil, s, g.Command(b, "prepare", "--quiet", plain))
		}
	})
}

// copyACI copies the tree of an ACI that is in the store on the same file system.
func copyACI(b *testing.B, s result.Sample, file string) {
	b.Helper()
	d := freshDisk(b)
	g := cli(b, d, nil)
	g.CLI(b, "fetch", "--quiet", file)
	if s.Who == "gantry" {
		run(b, d, s, g.Command(b, "prepare", "--quiet", "--no-overlay", imageID(b, g)))
		return
	}
	trees, err := filepath.Glob(filepath.Join(d.path, "trees", "*", "rootfs"))
	if err != nil || len(trees) != 1 {
		b.Fatalf("trees %q, err %v: want one", trees, err)
	}
	run(b, d, s, exec.Command("cp", "-a", trees[0], filepath.Join(d.path, "copy")))
}

// imageID is that of the only image in the store.
func imageID(b *testing.B, g *harness.Gantry) string {
	b.Helper()
	var list []struct{ ID string }
	if err := json.Unmarshal([]byte(g.CLI(b, "image", "list", "--format=json")), &list); err != nil || len(list) != 1 {
		b.Fatalf("images %v, err %v: want one", list, err)
	}
	return list[0].ID
}
