package translate

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ipcSysctls are the namespaced ones below kernel; the kernel has no others.
var ipcSysctls = []string{
	"kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem",
	"kernel.shmall", "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced",
}

// dottedSysctl returns the name with dots between its parts. As in sysctl(8) the
// first separator decides: after a slash, dots belong to a part's name.
func dottedSysctl(name string) string {
	if i := strings.IndexAny(name, "./"); i < 0 || name[i] == '.' {
		return name
	}
	return strings.NewReplacer("/", ".", ".", "/").Replace(name)
}

// checkSysctls accepts what belongs to a namespace that the pod owns: the rest
// would change the node.
func checkSysctls(sysctls map[string]string, o *runtimeapi.NamespaceOption) error {
	for _, name := range slices.Sorted(maps.Keys(sysctls)) {
		field := fmt.Sprintf("linux.sysctls[%q]", name)
		dotted := dottedSysctl(name)
		for _, part := range strings.Split(dotted, ".") {
			// A slash inside a part stands for a dot of an interface's name.
			if strings.Trim(part, "/") == "" || strings.ContainsRune(part, 0) {
				return invalid(field, "not the name of a sysctl")
			}
		}
		switch {
		case slices.Contains(ipcSysctls, dotted), strings.HasPrefix(dotted, "fs.mqueue."):
			if o.GetIpc() == runtimeapi.NamespaceMode_NODE {
				return invalid(field, "the pod is in the node's ipc namespace")
			}
		case strings.HasPrefix(dotted, "net."):
			if o.GetNetwork() == runtimeapi.NamespaceMode_NODE {
				return invalid(field, "the pod is in the node's network namespace")
			}
		default:
			return invalid(field, "does not belong to a namespace of the pod")
		}
	}
	return nil
}
