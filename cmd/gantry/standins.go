package main

import (
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"runtime"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/translate"
)

// imageOf makes an image of its configuration alone. Its manifest is not known,
// so the appc id is made of the configuration.
func imageOf(c *runtimeapi.ContainerConfig, path string) (translate.Image, error) {
	img := translate.Image{Name: c.GetImage().GetUserSpecifiedImage()}
	img.Config.OS, img.Config.Architecture = "linux", runtime.GOARCH
	raw, err := json.Marshal(img.Config)
	if path != "" {
		img.Config = ocispec.Image{}
		if raw, err = os.ReadFile(path); err == nil {
			err = json.Unmarshal(raw, &img.Config)
		}
	}
	if err != nil {
		return img, fmt.Errorf("image configuration: %w", err)
	}
	sum := sha512.Sum512(raw)
	img.ID, img.AppcID = digest.FromBytes(raw).String(), "sha512-"+hex.EncodeToString(sum[:])
	return img, nil
}

// standIns are a node and places for those who only want to look.
func standIns() (translate.Node, translate.Place) {
	const run = "/run/gantry/pods/UUID"
	return translate.Node{CgroupV2: true, OOMScoreAdjMin: -1000}, translate.Place{
		Rootfs: run + "/apps/APP/rootfs",
		Namespaces: map[specs.LinuxNamespaceType]string{
			specs.PIDNamespace: "/proc/INIT/ns/pid", specs.NetworkNamespace: run + "/ns/net", specs.IPCNamespace: run + "/ns/ipc", specs.UTSNamespace: run + "/ns/uts",
		},
		CgroupsPath: "/gantry/ID",
		ResolvConf:  run + "/resolv.conf", Hosts: run + "/hosts", Hostname: run + "/hostname", Shm: run + "/shm",
	}
}
