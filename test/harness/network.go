package harness

import (
	"fmt"
	"hash/fnv"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// CNIBinDir is where Debian's containernetworking-plugins are.
const CNIBinDir = "/usr/lib/cni"

// Network is a CNI network with a bridge and a subnet that nobody else uses.
type Network struct {
	ConfDir string // for --cni-conf-dir
	Bridge  string // the host's link
	Subnet  string
	DataDir string // of host-local: one file an address
}

const conflist = `{
  "cniVersion": "1.0.0",
  "name": "%s",
  "plugins": [
    {
      "type": "bridge", "bridge": "%s", "isGateway": true, "hairpinMode": true,
      "ipam": {"type": "host-local", "dataDir": "%s", "ranges": [[{"subnet": "%s"}]], "routes": [{"dst": "0.0.0.0/0"}]}
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
`

// NewNetwork writes the configuration of a network below dir and removes the
// bridge at the end of the test.
func NewNetwork(tb testing.TB, dir string) *Network {
	tb.Helper()
	n := &Network{ConfDir: filepath.Join(dir, "net.d"), DataDir: filepath.Join(dir, "ipam")}
	n.choose(tb, dir)
	if err := os.MkdirAll(n.ConfDir, 0o755); err != nil {
		tb.Fatalf("make CNI configuration directory: %v", err)
	}
	config := fmt.Sprintf(conflist, n.Bridge, n.Bridge, n.DataDir, n.Subnet)
	if err := os.WriteFile(filepath.Join(n.ConfDir, "10-gantry.conflist"), []byte(config), 0o644); err != nil {
		tb.Fatalf("write CNI configuration: %v", err)
	}
	tb.Cleanup(func() {
		if _, err := net.InterfaceByName(n.Bridge); err != nil {
			return // no pod ever used it
		}
		if out, err := exec.Command("ip", "link", "del", n.Bridge).CombinedOutput(); err != nil {
			tb.Errorf("remove bridge: %v: %s", err, out)
		}
	})
	return n
}

// choose derives bridge and subnet from the unique name of dir, and goes on to
// the next while an address of the machine lies in the subnet.
func (n *Network) choose(tb testing.TB, dir string) {
	tb.Helper()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		tb.Fatalf("list addresses: %v", err)
	}
	h := fnv.New32a()
	h.Write([]byte(dir))
	for sum := h.Sum32(); ; sum++ {
		subnet := &net.IPNet{IP: net.IPv4(10, 64+byte(sum>>8)%128, byte(sum), 0), Mask: net.CIDRMask(24, 32)}
		if !overlaps(subnet, addrs) {
			n.Bridge, n.Subnet = fmt.Sprintf("gt%08x", sum), subnet.String()
			return
		}
	}
}

func overlaps(subnet *net.IPNet, addrs []net.Addr) bool {
	for _, a := range addrs {
		if other, ok := a.(*net.IPNet); ok && (subnet.Contains(other.IP) || other.Contains(subnet.IP)) {
			return true
		}
	}
	return false
}

// Addresses lists the pod addresses that host-local holds.
func (n *Network) Addresses(tb testing.TB) []string {
	tb.Helper()
	files, err := filepath.Glob(filepath.Join(n.DataDir, "*", "10.*"))
	if err != nil {
		tb.Fatalf("list addresses: %v", err)
	}
	for i := range files {
		files[i] = filepath.Base(files[i])
	}
	return files
}
