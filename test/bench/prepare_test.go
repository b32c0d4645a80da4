package bench

import (
	"fmt"
	"strings"
	"testing"

	"github.com/gantry-cri/gantry/test/bench/result"
	"github.com/gantry-cri/gantry/test/harness"
)

// warmRounds is how much more often than what takes seconds a warm prepare and a pod
// are measured.
const warmRounds = 4

// benchPrepare measures the command lines that make a container and do not start it,
// each a whole process, from an image that is pulled meanwhile and from one that is
// there.
func benchPrepare(b *testing.B, registry *harness.Registry, ref string) {
	inTurn(b, "prepare-cold", []string{"gantry", "podman"}, func(b *testing.B, s result.Sample) {
		d := freshDisk(b)
		readAll(b, registry.Data)
		if s.Who == "podman" {
			run(b, d, s, newPodman(b, d).command("create", "--quiet", "--tls-verify=false", "--network=none", "docker://"+ref))
			return
		}
		g := cli(b, d, registry)
		run(b, d, s, g.Command(b, "prepare", "--quiet", "docker://"+ref))
		s.Case = "verify"
		run(b, d, s, g.Command(b, "image", "verify", ref))
	})
	b.Run("prepare-warm", func(b *testing.B) { warmPrepare(b, registry, ref) })
}

func warmPrepare(b *testing.B, registry *harness.Registry, ref string) {
	g, c := start(b, "gantry", registry), start(b, "containerd", registry)
	g.mustPull(b, ref)
	c.mustPull(b, ref)
	version(b, "containerd", c.containerd.Program("containerd"), "--version")
	p := newPodman(b, freshDisk(b))
	if out, err := p.command("pull", "--quiet", "--tls-verify=false", "docker://"+ref).CombinedOutput(); err != nil {
		b.Fatalf("podman pull: %v: %s", err, out)
	}
	for round := range *rounds * warmRounds {
		s := result.Sample{Case: "prepare-warm", Round: round}
		s.Who = "gantry"
		uuid := strings.TrimSpace(run(b, nil, s, g.gantry.Command(b, "prepare", "--quiet", "docker://"+ref)))
		g.gantry.CLI(b, "rm", uuid)

		s.Who = "containerd"
		id := fmt.Sprintf("bench-%d", round)
		run(b, nil, s, c.containerd.Command("containers", "create", ref, id))
		if out, err := c.containerd.Command("containers", "delete", id).CombinedOutput(); err != nil {
			b.Fatalf("ctr containers delete: %v: %s", err, out)
		}

		s.Who = "podman"
		run(b, nil, s, p.command("create", "--quiet", "--network=none", ref))
	}
}
