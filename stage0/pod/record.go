package pod

import (
	"time"

	"github.com/gantry-cri/gantry/stage0/manifest"
)

// Owner says which door a pod came in through. CRI lists, finds and removes only its own.
type Owner string

// The two doors.
const (
	OwnerCRI Owner = "cri"
	OwnerCLI Owner = "cli"
)

// Kind says what a pod is to those who look at it.
type Kind string

// A sandbox has no app and is joined by containers; a container has one app and
// names its sandbox; a pod has apps and namespaces of its own.
const (
	KindSandbox   Kind = "sandbox"
	KindContainer Kind = "container"
	KindPod       Kind = "pod"
)

// Record is pod.json: what prepare decided and nobody changes afterwards. What
// was asked for lies beside it in the manifest.
type Record struct {
	Schema    int           `json:"schema"` // format.Pod's
	UUID      manifest.UUID `json:"uuid"`
	ID        manifest.ID   `json:"id"`
	Owner     Owner         `json:"owner"`
	Kind      Kind          `json:"kind"`
	BootID    string        `json:"bootID"`
	CreatedAt time.Time     `json:"createdAt"`
	// Sandbox is the pod whose namespaces a container joins; empty elsewhere.
	Sandbox manifest.UUID `json:"sandbox,omitempty"`
	Apps    []AppRecord   `json:"apps"`
}

// AppRecord says from what an app's root filesystem is laid.
type AppRecord struct {
	// Name is the app's name in the manifest.
	Name string `json:"name"`
	// ImageID is the config digest of the image.
	ImageID string `json:"imageID"`
	// ImageName is the image as the user spelt it.
	ImageName string `json:"imageName,omitempty"`
	// ImageRef is the repository digest, or the image id where there is none.
	ImageRef string `json:"imageRef"`
	// Layers are the names of the trees that are stacked, topmost first. None are
	// where the root filesystem was copied, and lies in the upper directory alone.
	Layers []string `json:"layers"`
}

// Exit says how an app ended. The records of a pod's apps are exit.json.
type Exit struct {
	Code int32 `json:"code"`
	// Reason is the CRI word: Completed, Error, OOMKilled, StartError, Unknown.
	Reason    string    `json:"reason"`
	Message   string    `json:"message,omitempty"`
	StartedAt time.Time `json:"startedAt,omitzero"`
	EndedAt   time.Time `json:"endedAt"`
}

// Process names a process so that a reused pid is not taken for it.
type Process struct {
	PID int `json:"pid"`
	// StartTime is field 22 of /proc/PID/stat, in clock ticks since boot.
	StartTime uint64 `json:"startTime"`
}

// Started is written into the run directory once an app's process runs.
type Started struct {
	Init      Process   `json:"init"`
	Monitor   Process   `json:"monitor"`
	StartedAt time.Time `json:"startedAt"`
	// Cgroup is the path of the app's cgroup, relative to the hierarchy's root.
	Cgroup string `json:"cgroup"`
	// OOMBefore is how many processes the kernel had killed for want of memory below
	// the parent of the app's group when the app was created.
	OOMBefore uint64 `json:"oomBefore,omitempty"`
}
