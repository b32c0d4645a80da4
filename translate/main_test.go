package translate

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/appc/spec/schema"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/stage0/manifest"
)

func TestMain(m *testing.M) {
	manifest.RegisterIsolators()
	os.Exit(m.Run())
}

// testImage is an image with a bit of everything.
func testImage() Image {
	return Image{
		ID:     digest.FromString("config").String(),
		AppcID: "sha512-0f3a9a9d2c5f1b7e8d6c4b3a2918070605040302010f0e0d0c0b0a0908070605",
		Name:   "docker.io/library/web:1.2",
		Config: ocispec.Image{
			Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"},
			Config: ocispec.ImageConfig{
				User:         "www:web",
				ExposedPorts: map[string]struct{}{"80/tcp": {}},
				Env:          []string{"PATH=/bin", "LANG=C", "odd name=x"},
				Entrypoint:   []string{"/entry"},
				Cmd:          []string{"serve"},
				Volumes:      map[string]struct{}{"/var/lib/Data": {}},
				WorkingDir:   "/srv",
				Labels:       map[string]string{"org.example/Maintainer": "me"},
				StopSignal:   "SIGQUIT",
			},
		},
	}
}

func testSandbox() *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "pod", Uid: "uid-1", Namespace: "default"},
		Hostname: "pod",
		Linux:    &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{}},
	}
}

func testContainer() *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "web"},
		Image:    &runtimeapi.ImageSpec{Image: "sha256:abc"},
		Command:  []string{"/bin/true"},
		Linux:    &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{}},
	}
}

// testNode is a full node with cgroup v2.
func testNode() Node {
	return Node{
		CgroupV2:           true,
		CgroupMountOptions: []string{"nsdelegate"},
		SwapAccounting:     true,
		HugepageSizes:      []string{"2MB"},
		OOMScoreAdjMin:     -1000,
		Capabilities:       knownCapabilities,
		HostDevices: []specs.LinuxDevice{
			{Path: "/dev/null", Type: "c", Major: 1, Minor: 3},
			{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229},
		},
		Devices:           map[string][]specs.LinuxDevice{"/dev/fuse": {{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229}}},
		User:              &User{UID: 33, GID: 33, Groups: []uint32{50}},
		Hostname:          "node",
		SeccompProfiles:   map[string][]byte{"/profiles/a.json": []byte(`{"defaultAction":"SCMP_ACT_LOG"}`)},
		RecursiveReadOnly: true,
	}
}

func testPlace() Place {
	return Place{
		SandboxID: "5a0d",
		Rootfs:    "/run/gantry/pods/u/apps/web/rootfs",
		Namespaces: map[specs.LinuxNamespaceType]string{
			specs.NetworkNamespace: "/run/ns/net", specs.IPCNamespace: "/run/ns/ipc",
			specs.UTSNamespace: "/run/ns/uts", specs.PIDNamespace: "/proc/12/ns/pid",
		},
		CgroupsPath: "/kubepods/podx/c0ffee",
		ResolvConf:  "/run/p/resolv.conf",
		Hosts:       "/run/p/hosts",
		Hostname:    "/run/p/hostname",
		Shm:         "/run/p/shm",
	}
}

// reread sends a manifest through its JSON, as the disk does.
func reread(t *testing.T, pm *schema.PodManifest) *schema.PodManifest {
	t.Helper()
	raw, err := json.Marshal(pm)
	if err != nil {
		t.Fatalf("encode manifest: %v", err)
	}
	again, err := manifest.Decode(raw)
	if err != nil {
		t.Fatalf("decode manifest: %v\n%s", err, raw)
	}
	return again
}

// toOCI translates a container all the way.
func toOCI(t *testing.T, s *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig, n Node, p Place) (*specs.Spec, []string, error) {
	t.Helper()
	sandbox, err := Sandbox(s, "")
	if err != nil {
		t.Fatal(err)
	}
	pm, err := Container(s, c, testImage())
	if err != nil {
		t.Fatal(err)
	}
	pm = reread(t, pm)
	return ToOCI(pm, pm.Apps[0].Name.String(), reread(t, sandbox), n, p)
}
