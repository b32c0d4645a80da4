package bench

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/images"
)

// aciRounds is how often each case of an ACI is measured, on a fresh file system.
const aciRounds = 5

// process is what one run of a program took.
type process struct {
	wall, cpu time.Duration // wall with sync -f of the disk where it was asked for
	rss       int64         // peak, bytes, and no less than that of this program, which forks
}

// runs are the processes of one row, by who ran.
type runs map[string][]process

// BenchmarkACI prepares a pod of an ACI of 494 MB with 18,000 files, beside tar -x of
// it; both with sync -f of the file system. Its own time means nothing.
func BenchmarkACI(b *testing.B) {
	plain := filepath.Join(b.TempDir(), "big.aci")
	if err := images.BigACI(plain, images.BigSpec{MB: 480, Files: 18000, Seed: 1}); err != nil {
		b.Fatal(err)
	}
	zipped := filepath.Join(b.TempDir(), "big.gz.aci")
	if out, err := exec.Command("sh", "-c", `gzip -1 <"$0" >"$1"`, plain, zipped).CombinedOutput(); err != nil {
		b.Fatalf("gzip: %v: %s", err, out)
	}
	for _, c := range []struct{ name, file, untar string }{{"plain", plain, "-x"}, {"gzip -1", zipped, "-xz"}} {
		info, err := os.Stat(c.file)
		if err != nil {
			b.Fatal(err)
		}
		cold := runs{}
		for round := range aciRounds {
			for _, who := range []string{"gantry", "tar"} {
				b.Run(fmt.Sprintf("%s/%d/%s", c.name, round, who), func(b *testing.B) {
					disk := harness.SmallDisk(b, diskMB)
					read(b, c.file)
					cold[who] = append(cold[who], timed(b, disk, unpacker(b, who, disk, c.file, c.untar)))
				})
			}
		}
		printRuns(fmt.Sprintf("ACI of %d MB, %s: gantry prepare, and tar %s; sync -f", info.Size()/1e6, c.name, c.untar), cold, "gantry", "tar")
	}
	b.Run("warm", func(b *testing.B) { warmACI(b, plain) })
}

// warmACI measures prepare of an ACI that is in the store, by its file and by its id.
func warmACI(b *testing.B, file string) {
	disk := harness.SmallDisk(b, diskMB)
	timed(b, disk, unpacker(b, "gantry", disk, file, ""))
	id, err := gantry(b, disk, "image", "list", "--format=json").Output()
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(id), `"id": "`)
	warm := runs{}
	for range podRounds {
		for who, image := range map[string]string{"by file": file, "by id": rest[:len("sha256:")+64]} {
			warm[who] = append(warm[who], timed(b, "", gantry(b, disk, "prepare", "--quiet", image)))
		}
	}
	printRuns("warm prepare of that ACI, a whole process", warm, "by file", "by id")
}

// unpacker is the program that is measured.
func unpacker(b *testing.B, who, disk, file, untar string) *exec.Cmd {
	b.Helper()
	if who == "gantry" {
		return gantry(b, disk, "prepare", "--quiet", file)
	}
	return exec.Command("tar", untar, "--numeric-owner", "-C", disk, "-f", file)
}

func gantry(b *testing.B, disk, subcommand string, args ...string) *exec.Cmd {
	b.Helper()
	bin := harness.Binary(b)
	return exec.Command(bin, append([]string{subcommand, "--dir", filepath.Join(disk, "data"), "--run-dir", filepath.Join(disk, "run")}, args...)...)
}

// read brings a file into the page cache, and what was written before to the disk.
func read(b *testing.B, file string) {
	b.Helper()
	if out, err := exec.Command("sh", "-c", `sync && cat "$0" >/dev/null`, file).CombinedOutput(); err != nil {
		b.Fatalf("read: %v: %s", err, out)
	}
}

// timed runs a program, and sync -f where disk is not empty.
func timed(b *testing.B, disk string, cmd *exec.Cmd) process {
	b.Helper()
	begin := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("%q: %v: %s", cmd.Args, err, out)
	}
	if disk != "" {
		if out, err := exec.Command("sync", "-f", disk).CombinedOutput(); err != nil {
			b.Fatalf("sync: %v: %s", err, out)
		}
	}
	p := process{wall: time.Since(begin), cpu: cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()}
	if u, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		p.rss = u.Maxrss << 10
	}
	return p
}

// printRuns prints medians with their spread, and the ratio of the first to the second.
func printRuns(name string, r runs, first, second string) {
	fmt.Fprintf(os.Stdout, "\n%s\n", name)
	median := map[string]time.Duration{}
	for _, who := range []string{first, second} {
		var wall, cpu []time.Duration
		var rss int64
		for _, p := range r[who] {
			wall, cpu, rss = append(wall, p.wall), append(cpu, p.cpu), max(rss, p.rss)
		}
		if len(wall) == 0 {
			return
		}
		slices.Sort(wall)
		slices.Sort(cpu)
		median[who] = wall[len(wall)/2]
		fmt.Fprintf(os.Stdout, "  %-11s median %8s   min %8s   max %8s   n %d   cpu %8s   peak %d MB\n", who, short(median[who]), short(wall[0]), short(wall[len(wall)-1]), len(wall), short(cpu[len(cpu)/2]), rss/1e6)
	}
	fmt.Fprintf(os.Stdout, "  %s / %s = %.2f\n", first, second, float64(median[first])/float64(median[second]))
}
