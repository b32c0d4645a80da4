package translate

import (
	"fmt"
	"testing"

	"github.com/appc/spec/schema"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// checkVolumes holds that every CRI mount is an appc volume and an appc mount.
func checkVolumes(t *testing.T, c *runtimeapi.ContainerConfig, pm *schema.PodManifest) {
	t.Helper()
	app := pm.Apps[0]
	if len(pm.Volumes) != len(c.Mounts) || len(app.Mounts) != len(c.Mounts) {
		t.Fatalf("%d CRI mounts became %d volumes and %d mounts", len(c.Mounts), len(pm.Volumes), len(app.Mounts))
	}
	for i, m := range c.Mounts {
		v, am := pm.Volumes[i], app.Mounts[i]
		if v.Kind != "host" || v.Source != m.HostPath || v.ReadOnly == nil || *v.ReadOnly != m.Readonly {
			t.Errorf("mount %d: volume %+v of %v", i, v, m)
		}
		if am.Path != m.ContainerPath || am.Volume != v.Name {
			t.Errorf("mount %d: mount %+v of %v", i, am, m)
		}
	}
}

func TestEveryMountAndPortIsAppcs(t *testing.T) {
	s := testSandbox()
	for i := range 5 {
		for _, protocol := range []runtimeapi.Protocol{runtimeapi.Protocol_TCP, runtimeapi.Protocol_UDP, runtimeapi.Protocol_SCTP} {
			s.PortMappings = append(s.PortMappings, &runtimeapi.PortMapping{
				Protocol: protocol, ContainerPort: 80, HostPort: int32(i), HostIp: fmt.Sprintf("10.0.0.%d", i),
			})
		}
	}
	sandbox, err := Sandbox(s, "")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for i, p := range reread(t, sandbox).Ports {
		m := s.PortMappings[i]
		if p.PodPort == nil || p.PodPort.Port != 80 || int32(p.HostPort) != m.HostPort || p.HostIP.String() != m.HostIp || seen[p.Name.String()] {
			t.Errorf("port %d: %+v of %v", i, p, m)
		}
		seen[p.Name.String()] = true
	}
	c := testContainer()
	for _, path := range []string{"/data", "/DATA", "/data/", "/volume/var/lib/data", "/x"} {
		c.Mounts = append(c.Mounts, &runtimeapi.Mount{ContainerPath: path, HostPath: "/h" + path, Readonly: path == "/x"})
	}
	pm, err := Container(s, c, testImage())
	if err != nil {
		t.Fatal(err)
	}
	checkVolumes(t, c, reread(t, pm))
}
