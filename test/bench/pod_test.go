package bench

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/bench/result"
	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/images"
)

// BenchmarkPod measures a pod from its request to its removal, over CRI and with CNI.
// Debian's crun knows no OCI version as new as containerd's: containerd has runc, and
// Gantry what it chooses by itself.
func BenchmarkPod(b *testing.B) {
	registry := harness.StartRegistry(b)
	busybox, err := images.Busybox(images.Options{})
	if err != nil {
		b.Fatal(err)
	}
	ref := registry.Ref("bench/busybox:1")
	registry.Push(b, "bench/busybox:1", busybox)
	version(b, "crun", "crun", "--version")
	version(b, "runc", "runc", "--version")
	parent := harness.MakeCgroup(b)
	daemons := map[string]*daemon{}
	who := []string{"gantry", "containerd"}
	for _, w := range who {
		daemons[w] = start(b, w, registry)
		daemons[w].cgroup = parent
		daemons[w].mustPull(b, ref)
	}
	for round := range *rounds * warmRounds {
		for _, w := range who {
			up, down := daemons[w].pod(b, ref, round)
			record(result.Sample{Case: "pod-start", Who: w, Round: round, Seconds: up.Seconds()})
			record(result.Sample{Case: "pod-stop", Who: w, Round: round, Seconds: down.Seconds()})
		}
	}
}

// pod times one pod: until its container runs, and from there until nothing of it is
// left.
func (d *daemon) pod(b *testing.B, ref string, round int) (up, down time.Duration) {
	b.Helper()
	ctx := context.Background()
	ns := &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}
	pod := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: "bench", Namespace: "default", Uid: fmt.Sprintf("u%d", round)},
		LogDirectory: filepath.Join(d.disk.path, "logs"),
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent:    d.cgroup,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: ns},
		},
	}
	begin := time.Now()
	sandbox, err := d.cri.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: pod})
	if err != nil {
		b.Fatal(err)
	}
	created, err := d.cri.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{
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
	if _, err := d.cri.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: created.GetContainerId()}); err != nil {
		b.Fatal(err)
	}
	up = time.Since(begin)
	begin = time.Now()
	if _, err := d.cri.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: sandbox.GetPodSandboxId()}); err != nil {
		b.Fatal(err)
	}
	if _, err := d.cri.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: sandbox.GetPodSandboxId()}); err != nil {
		b.Fatal(err)
	}
	return up, time.Since(begin)
}
