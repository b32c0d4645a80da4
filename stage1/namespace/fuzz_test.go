package namespace

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// FuzzSysctl holds that no name of a sysctl leads out of /proc/sys, nor to one that is
// not of the pod's namespaces.
func FuzzSysctl(f *testing.F) {
	for _, s := range []string{"net.ipv4.ip_forward", "net/ipv4/conf/eth0.1/forwarding", "net.ipv4.conf.eth0/1.forwarding", "kernel.sem", "net/../kernel/panic", "net.//.kernel.panic", "fs/mqueue/.", "kernel/domainname", "vm.swappiness", "/net", "net."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		plan, err := planSysctls(Spec{Sysctls: map[string]string{name: "1"}, Net: true, IPC: true, UTS: true})
		if err != nil {
			if !errors.Is(err, errdefs.ErrInvalid) {
				t.Errorf("%v is of no class", err)
			}
			return
		}
		for _, s := range plan {
			rel, found := strings.CutPrefix(s.path, "/proc/sys/")
			if !found || !filepath.IsLocal(rel) || filepath.Clean(s.path) != s.path {
				t.Errorf("%q is %s", name, s.path)
			}
			switch top, _, _ := strings.Cut(rel, "/"); top {
			case "net", "fs", "kernel":
			default:
				t.Errorf("%q is %s", name, s.path)
			}
		}
	})
}
