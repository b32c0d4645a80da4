package failpoint

// Point is a moment in the life of an image or a pod. Its name says what has just
// been done, or, ending in -ing or "begun", what comes next.
type Point int

// The points, in the order in which a process passes them.
const (
	// Any small file: it is written and has not its name yet.
	FileWritten Point = iota

	// Fetching an image.
	FetchResolved
	LayerLocked
	SpoolOpened
	TreeEntryMade
	TreeEntryLocked
	TreeExtracted
	TreeDescribed
	TreesSynced
	TreeRenamed
	TreesCommitted
	SpoolDropped
	FixupWritten
	FixupCommitted
	ImageWritten
	ImageRenamed
	ImageCommitted
	RefWritten
	RefRenamed
	RefCommitted
	// Removing an image, and collecting its trees.
	ImageRetired
	RefRemoved
	ImageRemoved
	TreeRetired
	TreeRetiredSynced
	TreeSwept

	// Preparing a pod.
	PodMade
	PodLocked
	PodInPrepare
	RootfsCopying
	RootfsCopied
	RootfsLaid
	ManifestWritten
	RecordWritten
	PodSynced
	PodInPrepared
	PodPrepared
	// Sweeping a prepare that was cut short.
	AbortedFilesDeleted

	// Running it.
	RunChecked
	IntentsWritten
	RunDirMade
	PodInRun
	CgroupMade
	NamespacePinning
	NamespacePinned
	NetworkAdding
	NetworkAdded
	NetworkWritten
	ShmMounting
	ShmMounted
	ReadyWritten
	OverlayMounting
	OverlayMounted
	VolumeMade
	ConfigWritten
	MonitorForked
	MonitorPlaced
	ContainerCreated
	ContainerStarted
	StartedWritten

	// Stopping it, settling what ended, undoing.
	StopBegun
	ReadyCleared
	StopSignalled
	StopKilled
	MonitorDrained
	ExitRead
	ExitWritten
	ExitsSaved
	UndoBegun
	ContainerKilled
	MonitorRemoved
	RuntimeDeleted
	ContainerUndone
	MountUndone
	NetworkUndoing
	NetworkUndone
	NamespacesUndone
	CgroupKilled
	CgroupUndone
	IntentsRewritten
	RunDirRemoved

	// Removing it.
	PodInGarbage
	PodInExitedGarbage
	RunDirDeleted
	FilesDeleted
	LinkDeleted

	count
)

// points is what the package knows all points from.
var points = [count]string{
	FileWritten: "file-written",

	FetchResolved:     "fetch-resolved",
	LayerLocked:       "layer-locked",
	SpoolOpened:       "spool-opened",
	TreeEntryMade:     "tree-entry-made",
	TreeEntryLocked:   "tree-entry-locked",
	TreeExtracted:     "tree-extracted",
	TreeDescribed:     "tree-described",
	TreesSynced:       "trees-synced",
	TreeRenamed:       "tree-renamed",
	TreesCommitted:    "trees-committed",
	SpoolDropped:      "spool-dropped",
	FixupWritten:      "fixup-written",
	FixupCommitted:    "fixup-committed",
	ImageWritten:      "image-written",
	ImageRenamed:      "image-renamed",
	ImageCommitted:    "image-committed",
	RefWritten:        "ref-written",
	RefRenamed:        "ref-renamed",
	RefCommitted:      "ref-committed",
	ImageRetired:      "image-retired",
	RefRemoved:        "ref-removed",
	ImageRemoved:      "image-removed",
	TreeRetired:       "tree-retired",
	TreeRetiredSynced: "tree-retired-synced",
	TreeSwept:         "tree-swept",

	PodMade:             "pod-made",
	PodLocked:           "pod-locked",
	PodInPrepare:        "pod-in-prepare",
	RootfsCopying:       "rootfs-copying",
	RootfsCopied:        "rootfs-copied",
	RootfsLaid:          "rootfs-laid",
	ManifestWritten:     "manifest-written",
	RecordWritten:       "record-written",
	PodSynced:           "pod-synced",
	PodInPrepared:       "pod-in-prepared",
	PodPrepared:         "pod-prepared",
	AbortedFilesDeleted: "aborted-files-deleted",

	RunChecked:       "run-checked",
	IntentsWritten:   "intents-written",
	RunDirMade:       "run-dir-made",
	PodInRun:         "pod-in-run",
	CgroupMade:       "cgroup-made",
	NamespacePinning: "namespace-pinning",
	NamespacePinned:  "namespace-pinned",
	NetworkAdding:    "network-adding",
	NetworkAdded:     "network-added",
	NetworkWritten:   "network-written",
	ShmMounting:      "shm-mounting",
	ShmMounted:       "shm-mounted",
	ReadyWritten:     "ready-written",
	OverlayMounting:  "overlay-mounting",
	OverlayMounted:   "overlay-mounted",
	VolumeMade:       "volume-made",
	ConfigWritten:    "config-written",
	MonitorForked:    "monitor-forked",
	MonitorPlaced:    "monitor-placed",
	ContainerCreated: "container-created",
	ContainerStarted: "container-started",
	StartedWritten:   "started-written",

	StopBegun:        "stop-begun",
	ReadyCleared:     "ready-cleared",
	StopSignalled:    "stop-signalled",
	StopKilled:       "stop-killed",
	MonitorDrained:   "monitor-drained",
	ExitRead:         "exit-read",
	ExitWritten:      "exit-written",
	ExitsSaved:       "exits-saved",
	UndoBegun:        "undo-begun",
	ContainerKilled:  "container-killed",
	MonitorRemoved:   "monitor-removed",
	RuntimeDeleted:   "runtime-deleted",
	ContainerUndone:  "container-undone",
	MountUndone:      "mount-undone",
	NetworkUndoing:   "network-undoing",
	NetworkUndone:    "network-undone",
	NamespacesUndone: "namespaces-undone",
	CgroupKilled:     "cgroup-killed",
	CgroupUndone:     "cgroup-undone",
	IntentsRewritten: "intents-rewritten",
	RunDirRemoved:    "run-dir-removed",

	PodInGarbage:       "pod-in-garbage",
	PodInExitedGarbage: "pod-in-exited-garbage",
	RunDirDeleted:      "run-dir-deleted",
	FilesDeleted:       "files-deleted",
	LinkDeleted:        "link-deleted",
}

// String is the point's name.
func (p Point) String() string { return points[p] }

// Names are the names of all points, in the order in which a process passes them.
func Names() []string { return append([]string(nil), points[:]...) }
