package bench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/bench/result"
	"github.com/gantry-cri/gantry/test/harness"
)

// daemon is a Gantry or a containerd on a fresh file system.
type daemon struct {
	*harness.Process
	cri        harness.Raw
	disk       *disk
	registry   *harness.Registry
	gantry     *harness.Gantry     // nil for containerd
	containerd *harness.Containerd // nil for Gantry
	cgroup     string              // parent of pods
}

// start starts a daemon: "gantry", "containerd" with its own gunzip, or
// "containerd-igzip" with what it finds in PATH.
func start(b *testing.B, who string, registry *harness.Registry) *daemon {
	b.Helper()
	d := &daemon{disk: freshDisk(b), registry: registry}
	if who == "gantry" {
		d.gantry = harness.StartGantry(b, harness.GantryOptions{Registries: []string{registry.Addr}, Dir: d.disk.path})
		d.Process, d.cri = d.gantry.Process, d.gantry.Raw(b)
		return d
	}
	o := harness.ContainerdOptions{Root: d.disk.path}
	if who == "containerd" {
		o.Env = []string{"CONTAINERD_DISABLE_IGZIP=1", "CONTAINERD_DISABLE_PIGZ=1"}
	}
	d.containerd = harness.StartContainerd(b, registry, o)
	d.Process, d.cri = d.containerd.Process, harness.RawClient(b, d.containerd.Endpoint)
	return d
}

// pull lets so many callers pull at once, and keeps the sample.
func (d *daemon) pull(b *testing.B, s result.Sample, ref string, callers int) {
	b.Helper()
	readAll(b, d.registry.Data)
	d.disk.begin(b)
	forgetPeak(b, d.PID())
	s.Idle = memory(b, d.PID(), "VmRSS")
	cpu, server, received := daemonCPU(b, d.PID()), daemonCPU(b, d.registry.PID()), d.registry.Served(b)
	begin := time.Now()
	var wait sync.WaitGroup
	for range callers {
		wait.Go(func() { d.mustPull(b, ref) })
	}
	wait.Wait()
	s.Seconds = time.Since(begin).Seconds()
	d.disk.end(b, begin, &s)
	s.CPU, s.Server = daemonCPU(b, d.PID())-cpu, daemonCPU(b, d.registry.PID())-server
	s.Received = d.registry.Served(b) - received
	s.Peak = memory(b, d.PID(), "VmHWM")
	if !b.Failed() {
		record(s)
	}
}

func (d *daemon) mustPull(b *testing.B, ref string) {
	b.Helper()
	request := &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}}
	if _, err := d.cri.PullImage(context.Background(), request); err != nil {
		b.Errorf("pull %s: %v", ref, err)
	}
}

// podman is a podman whose files, those of its downloads too, lie on a disk.
type podman struct {
	disk *disk
	run  string // of what may be lost
}

func newPodman(b *testing.B, d *disk) *podman {
	b.Helper()
	p := &podman{disk: d, run: harness.Dir(b)}
	if err := os.Mkdir(filepath.Join(d.path, "tmp"), 0o755); err != nil {
		b.Fatal(err)
	}
	// It leaves the directory of its layers mounted on itself.
	b.Cleanup(func() { d.unmountBelow(b) })
	return p
}

func (p *podman) command(args ...string) *exec.Cmd {
	flags := []string{
		"--root", filepath.Join(p.disk.path, "podman"), "--runroot", filepath.Join(p.run, "run"), "--tmpdir", filepath.Join(p.run, "tmp"),
		"--storage-driver", "overlay", "--cgroup-manager", "cgroupfs", "--events-backend", "none",
	}
	cmd := exec.Command("podman", append(flags, args...)...)
	cmd.Env = append(os.Environ(), "TMPDIR="+filepath.Join(p.disk.path, "tmp"))
	return cmd
}

// cli is a gantry without a daemon, on a disk.
func cli(b *testing.B, d *disk, registry *harness.Registry) *harness.Gantry {
	b.Helper()
	o := harness.GantryOptions{Dir: d.path, NoNetwork: true}
	if registry != nil {
		o.Registries = []string{registry.Addr}
	}
	return harness.NewGantry(b, o)
}

// buildLimit builds hack/limit and returns its path.
func buildLimit(b *testing.B) string {
	b.Helper()
	root, err := harness.Checkout()
	if err != nil {
		b.Fatal(err)
	}
	bin := filepath.Join(b.TempDir(), "limit")
	cmd := exec.Command("go", "build", "-o", bin, "./hack/limit")
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("build limit: %v: %s", err, out)
	}
	return bin
}

// inTurn runs each program in each round as a benchmark of its own, so that what it
// made is gone before the next one.
func inTurn(b *testing.B, name string, who []string, f func(b *testing.B, s result.Sample)) {
	b.Helper()
	b.Run(name, func(b *testing.B) {
		for round := range *rounds {
			for _, w := range who {
				b.Run(fmt.Sprintf("%d/%s", round, w), func(b *testing.B) {
					f(b, result.Sample{Case: name, Who: w, Round: round})
				})
			}
		}
	})
}
