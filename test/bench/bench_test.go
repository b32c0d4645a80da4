// Package bench measures Gantry beside Debian's containerd: the same images from
// the same registry, both daemons in turn in one run, each round of a pull on a
// fresh file system. It prints medians, spread and ratios. make bench runs it.
package bench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/images"
)

const (
	pullRounds = 5
	podRounds  = 15
	diskMB     = 3000
)

// peers are measured in this order, in turn.
var peers = []string{"gantry", "containerd"}

// measured are the durations of one row, by peer.
type measured map[string][]time.Duration

// node is a daemon of either kind.
type node struct {
	cri    harness.Raw
	disk   string
	gantry *harness.Gantry // nil for containerd
	sock   string
	parent string // cgroup of the pods
}

// BenchmarkBeside is one run of everything. Its own time means nothing.
func BenchmarkBeside(b *testing.B) {
	registry := harness.StartRegistry(b)
	big, err := images.Big(b.TempDir(), images.BigSpec{MB: 500, Files: 20000, Layers: 6, Seed: 1}, images.Options{})
	if err != nil {
		b.Fatal(err)
	}
	registry.Push(b, "bench/big:1", big)
	busybox, err := images.Busybox(images.Options{})
	if err != nil {
		b.Fatal(err)
	}
	registry.Push(b, "bench/busybox:1", busybox)

	pull, synced := measured{}, measured{}
	for round := range pullRounds {
		for _, peer := range peers {
			b.Run(fmt.Sprintf("pull/%d/%s", round, peer), func(b *testing.B) {
				n := start(b, peer, registry)
				begin := time.Now()
				n.pull(b, registry.Ref("bench/big:1"))
				pull[peer] = append(pull[peer], time.Since(begin))
				n.sync(b)
				synced[peer] = append(synced[peer], time.Since(begin))
			})
		}
	}
	row("cold pull, 500 MB, 20,000 files, 6 layers, gzip", pull)
	row("the same and sync -f", synced)

	b.Run("pods", func(b *testing.B) { pods(b, registry) })
}

// start makes a daemon on a fresh file system.
func start(b *testing.B, peer string, registry *harness.Registry) *node {
	b.Helper()
	disk := harness.SmallDisk(b, diskMB)
	if peer == "containerd" {
		c := harness.StartContainerd(b, registry, disk)
		return &node{cri: harness.RawClient(b, c.Endpoint), disk: disk, sock: c.Endpoint}
	}
	g := harness.StartGantry(b, harness.GantryOptions{Registries: []string{registry.Addr}, Dir: disk})
	return &node{cri: g.Raw(b), disk: disk, gantry: g, sock: g.Endpoint}
}

func (n *node) pull(b *testing.B, ref string) {
	b.Helper()
	if _, err := n.cri.PullImage(context.Background(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}}); err != nil {
		b.Fatal(err)
	}
}

func (n *node) sync(b *testing.B) {
	b.Helper()
	if out, err := exec.Command("sync", "-f", n.disk).CombinedOutput(); err != nil {
		b.Fatalf("sync: %v: %s", err, out)
	}
}

// pods measures what needs the image alone: a warm prepare as a whole process,
// and a pod from its request to its removal.
func pods(b *testing.B, registry *harness.Registry) {
	ref := registry.Ref("bench/busybox:1")
	parent := harness.MakeCgroup(b)
	nodes := map[string]*node{}
	for _, peer := range peers {
		nodes[peer] = start(b, peer, registry)
		nodes[peer].parent = parent
		nodes[peer].pull(b, ref)
	}
	prepare, up, down := measured{}, measured{}, measured{}
	for round := range podRounds {
		for _, peer := range peers {
			n := nodes[peer]
			prepare[peer] = append(prepare[peer], n.prepare(b, ref, round))
			u, d := n.pod(b, ref, round)
			up[peer], down[peer] = append(up[peer], u), append(down[peer], d)
		}
	}
	row("warm prepare, a whole process (gantry prepare; ctr containers create)", prepare)
	row("pod: sandbox with CNI, create, start", up)
	row("pod: stop and remove", down)
}

// prepare times the command line of either: a container made and not started.
func (n *node) prepare(b *testing.B, ref string, round int) time.Duration {
	b.Helper()
	var cmd, undo *exec.Cmd
	if n.gantry != nil {
		cmd = n.gantry.Command(b, "prepare", "--quiet", "docker://"+ref)
	} else {
		id := fmt.Sprintf("bench-%d", round)
		ctr := []string{"--address", strings.TrimPrefix(n.sock, "unix://"), "--namespace", "k8s.io", "containers"}
		cmd = exec.Command("ctr", append(ctr, "create", ref, id)...)
		undo = exec.Command("ctr", append(ctr, "delete", id)...)
	}
	begin := time.Now()
	out, err := cmd.CombinedOutput()
	took := time.Since(begin)
	if err != nil {
		b.Fatalf("%q: %v: %s", cmd.Args, err, out)
	}
	if undo == nil {
		undo = n.gantry.Command(b, "rm", strings.TrimSpace(string(out)))
	}
	if out, err := undo.CombinedOutput(); err != nil {
		b.Fatalf("%q: %v: %s", undo.Args, err, out)
	}
	return took
}

// pod times one pod over CRI: until its container runs, and from there until
// nothing of it is left.
func (n *node) pod(b *testing.B, ref string, round int) (up, down time.Duration) {
	b.Helper()
	ctx := context.Background()
	ns := &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}
	pod := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: "bench", Namespace: "default", Uid: fmt.Sprintf("u%d", round)},
		LogDirectory: filepath.Join(n.disk, "logs"),
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent:    n.parent,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: ns},
		},
	}
	begin := time.Now()
	sandbox, err := n.cri.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: pod})
	if err != nil {
		b.Fatal(err)
	}
	created, err := n.cri.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{
		PodSandboxId: sandbox.GetPodSandboxId(), SandboxConfig: pod,
		Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "c"},
			Image:    &runtimeapi.ImageSpec{Image: ref},
			Command:  []string{"sleep", "1000"},
			LogPath:  "c.log",
			Linux:    &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: ns}},
		},
	})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := n.cri.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: created.GetContainerId()}); err != nil {
		b.Fatal(err)
	}
	up = time.Since(begin)
	begin = time.Now()
	if _, err := n.cri.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: sandbox.GetPodSandboxId()}); err != nil {
		b.Fatal(err)
	}
	if _, err := n.cri.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: sandbox.GetPodSandboxId()}); err != nil {
		b.Fatal(err)
	}
	return up, time.Since(begin)
}

// row prints medians with their spread, and the ratio that counts.
func row(name string, m measured) {
	fmt.Fprintf(os.Stdout, "\n%s\n", name)
	median := map[string]time.Duration{}
	for _, peer := range peers {
		d := slices.Sorted(slices.Values(m[peer]))
		if len(d) == 0 {
			return
		}
		median[peer] = d[len(d)/2]
		fmt.Fprintf(os.Stdout, "  %-11s median %8s   min %8s   max %8s   n %d\n", peer, short(median[peer]), short(d[0]), short(d[len(d)-1]), len(d))
	}
	fmt.Fprintf(os.Stdout, "  gantry / containerd = %.2f\n", float64(median["gantry"])/float64(median["containerd"]))
}

func short(d time.Duration) string { return fmt.Sprintf("%.1fms", float64(d.Microseconds())/1000) }
