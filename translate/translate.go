// Package translate turns what CRI asks for into an appc pod manifest and a pod
// manifest into an OCI runtime configuration:
//
//	CRI sandbox, container ──▶ Sandbox, Container ──▶ PodManifest ──▶ ToOCI ──▶ config.json
//	OCI image config, ACI ───▶ FromImage, ImageApp ──────┘
//
// The manifest is the contract. What appc can say exactly it says; the rest of a
// CRI message is the gantry/cri isolator, and docs/translation.md has the table
// of which fact is read from which place. [SandboxConfig] and [ContainerConfig]
// are the inverse of [Sandbox] and [Container]: they give back the message that
// CRI sent.
//
// Everything here is a function of its arguments. What a node knows comes in as
// a [Node], where things lie comes in as a [Place], and [NeedsOf] says what has
// to be looked up for an app. The one exception is the default seccomp profile,
// whose library asks the kernel for its version.
//
// manifest.RegisterIsolators must have been called before.
package translate

import (
	"github.com/appc/spec/schema"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Image is the image that a request's name stands for.
type Image struct {
	// ID is the config digest, "sha256:…".
	ID string
	// AppcID is the appc image id, "sha512-…" of the image's manifest, or of an
	// uncompressed ACI.
	AppcID string
	// Name is the reference that names the image, such as
	// "docker.io/library/busybox:latest"; empty where it has none.
	Name string
	// Config is the image's OCI configuration.
	Config ocispec.Image
	// Appc is the manifest of an appc image, nil for any other: what it says counts
	// where Config, which was made of it, says less.
	Appc *schema.ImageManifest
}

// Node holds what stage1 found out about the node, the OCI runtime and the app's
// root filesystem. A zero Node is a node about which nothing is known.
type Node struct {
	// CgroupV2 says that the cgroup hierarchy is unified.
	CgroupV2 bool
	// CgroupMountOptions are the options of the node's own cgroup2 mount, such as
	// nsdelegate, that a mount without a cgroup namespace of its own must repeat
	// because it shares the super block.
	CgroupMountOptions []string
	// SwapAccounting says that memory and swap together can be limited.
	SwapAccounting bool
	// HugepageSizes are the page sizes that the hugetlb controller has, as CRI
	// spells them ("2MB", "1GB"); empty without the controller.
	HugepageSizes []string
	// OOMScoreAdjMin is the lowest oom_score_adj that can be set: -1000 with
	// CAP_SYS_RESOURCE, else the runtime's own. Lower requests are clamped.
	OOMScoreAdjMin int
	// Capabilities are what the runtime itself has (its bounding set), with CAP_;
	// empty where that is not known, and then none is held back.
	Capabilities []string
	// HostDevices are all device nodes below /dev, for privileged containers.
	HostDevices []specs.LinuxDevice
	// Devices are the device nodes found at the paths of Needs.Devices, symbolic
	// links followed: one for a device, all below it for a directory. Path is the
	// path on the host, below the key.
	Devices map[string][]specs.LinuxDevice
	// User is what Needs.User resolved to in the root filesystem; nil where it was
	// not looked up, and then only numbers and root are understood.
	User *User
	// Hostname is the node's own host name.
	Hostname string
	// SeccompProfiles are the contents of the files of Needs.SeccompProfiles, by path.
	SeccompProfiles map[string][]byte
	// NoSeccomp says that the kernel or the OCI runtime lacks seccomp.
	NoSeccomp bool
	// AppArmor is the loaded profile that RuntimeDefault stands for; empty on a
	// node without AppArmor.
	AppArmor string
	// AppArmorProfiles are those of Needs.AppArmorProfiles that the kernel has.
	AppArmorProfiles []string
	// SELinux says that SELinux is enabled on the node.
	SELinux bool
	// RecursiveReadOnly says that the OCI runtime knows the mount option rro.
	RecursiveReadOnly bool
}

// User is an app's user as the root filesystem resolves it.
type User struct {
	UID, GID uint32
	// Groups are the groups of /etc/group that list the user, without GID.
	Groups []uint32
}

// Place says where stage1 put things. Paths are absolute and on the host.
type Place struct {
	// SandboxID is the CRI id of the sandbox that the app joins; empty for
	// command-line pods.
	SandboxID string
	// Rootfs is the app's root filesystem.
	Rootfs string
	// Namespaces are the namespaces to join: user where the pod has one, network, ipc, uts,
	// and pid where it is shared with the sandbox's init or another container. For a command-line pod
	// a missing network, ipc or uts namespace is the node's, an empty path makes a
	// new one, and a missing pid namespace is new.
	Namespaces map[specs.LinuxNamespaceType]string
	// CgroupsPath is the OCI cgroupsPath, in the driver's syntax.
	CgroupsPath string
	// ResolvConf, Hosts and Hostname are files that are mounted at /etc; empty ones are not.
	ResolvConf, Hosts, Hostname string
	// UTSName is the host name inside, where the sandbox does not say it.
	UTSName string
	// Shm is the directory that becomes /dev/shm; empty gives the app a tmpfs of its own.
	Shm string
	// Volumes are directories by volume name: required for each of Needs.Volumes
	// that is declared; for a host volume it replaces the source, for instance
	// by what a symbolic link points to.
	Volumes map[string]string
	// InitArgs are the arguments of a sandbox's init; the first is its path inside.
	InitArgs []string
	// InitBinary is the file that is mounted at InitArgs[0]; empty if the root
	// filesystem has it.
	InitBinary string
}
