package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
)

// status is a sandbox's status.
func (b *box) status(t *testing.T) *runtimeapi.PodSandboxStatus {
	t.Helper()
	resp, err := b.PodSandboxStatus(callContext(t, callTimeout), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: b.id})
	if err != nil {
		t.Fatalf("sandbox status: %v", err)
	}
	return resp.Status
}

// httpBody gets a page.
func httpBody(t *testing.T, url string) string {
	t.Helper()
	client := http.Client{Timeout: 5 * time.Second}
	var body []byte
	harness.Eventually(t, patience, func() string {
		resp, err := client.Get(url)
		if err != nil {
			return err.Error()
		}
		defer resp.Body.Close()
		if body, err = io.ReadAll(resp.Body); err != nil {
			return err.Error()
		}
		return ""
	})
	return string(body)
}

// serve is a script that serves the image's page on a port.
func serve(port int) string { return fmt.Sprintf("exec httpd -f -p %d -h /var/www", port) }

const page = "gantry busybox\n"

// TestPods looks at what the containers of a pod share, in one daemon.
func TestPods(t *testing.T) {
	n := startNode(t, harness.GantryOptions{})
	for name, test := range map[string]func(*testing.T, *node){
		"loopback and pod IP":  testLoopback,
		"names and DNS":        testNames,
		"host network":         testHostNetwork,
		"shared PID namespace": testSharedPID,
		"own PID namespace":    testOwnPID,
		"host PID and IPC":     testHostNamespaces,
		"shared memory":        testSharedMemory,
		"host port":            testHostPort,
		"sysctls":              testSysctls,
		"stop":                 testStopSandbox,
	} {
		t.Run(name, func(t *testing.T) { test(t, n) })
	}
}

func testLoopback(t *testing.T, n *node) {
	b := n.pod(t, "two")
	b.start(t, "web", serve(8080))
	got := b.output(t, "client", "for i in $(seq 50); do wget -q -O - http://127.0.0.1:8080/ && exit; sleep .1; done; exit 1")
	if got != page {
		t.Errorf("over the loopback: %q", got)
	}
	st := b.status(t)
	if st.State != runtimeapi.PodSandboxState_SANDBOX_READY || net.ParseIP(st.Network.GetIp()) == nil {
		t.Fatalf("sandbox: %v", st)
	}
	if got := httpBody(t, "http://"+st.Network.Ip+":8080/"); got != page {
		t.Errorf("by pod IP: %q", got)
	}
	other := n.pod(t, "peer")
	if got := other.output(t, "client", "wget -q -O - http://"+st.Network.Ip+":8080/"); got != page {
		t.Errorf("from another pod: %q", got)
	}
}

func testNames(t *testing.T, n *node) {
	b := n.pod(t, "named")
	got := b.output(t, "c", "hostname; cat /etc/hostname; cat /etc/resolv.conf; echo =; cat /etc/hosts")
	names, hosts, _ := strings.Cut(got, "=\n")
	want := "named\nnamed\nsearch svc.example\nnameserver 192.0.2.53\noptions ndots:5\n"
	if names != want {
		t.Errorf("got\n%s, want\n%s", names, want)
	}
	ip := b.status(t).Network.Ip
	for _, line := range []string{"127.0.0.1\tlocalhost", ip + "\tnamed"} {
		if !strings.Contains(hosts, line) {
			t.Errorf("hosts has no %q:\n%s", line, hosts)
		}
	}
	c := sandboxConfig(t, "no-dns")
	c.DnsConfig = &runtimeapi.DNSConfig{}
	if got := n.run(t, c).output(t, "c", "cat /etc/resolv.conf"); got != "" {
		t.Errorf("empty DNS configuration made %q", got)
	}
}

func testHostNetwork(t *testing.T, n *node) {
	c := sandboxConfig(t, "host-net")
	c.Hostname = ""
	c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	b := n.run(t, c)
	node := must(os.Hostname())(t)
	got := b.output(t, "c", "readlink /proc/self/ns/net; hostname")
	if want := must(os.Readlink("/proc/self/ns/net"))(t) + "\n" + node + "\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	st := b.status(t)
	if st.Linux.Namespaces.Options.Network != runtimeapi.NamespaceMode_NODE || st.State != runtimeapi.PodSandboxState_SANDBOX_READY {
		t.Errorf("status: %v", st)
	}
}

func testSharedPID(t *testing.T, n *node) {
	c := sandboxConfig(t, "share-pid")
	c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	b := n.run(t, c)
	inPod := func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	}
	one := b.start(t, "one", "exec sleep 4711", inPod)
	two := b.start(t, "two", "exec sleep 4712", inPod)
	got := n.exec(t, two, "cat /proc/1/comm; ps -o args | grep -c '[s]leep 471'")
	if got != "catatonit\n2" {
		t.Errorf("process 1 and the others: %q", got)
	}
	n.stop(t, one, 0)
	if got := n.exec(t, two, "ps -o args | grep '[s]leep 4711' || echo none"); got != "none" {
		t.Errorf("the stopped container's process is still there: %q", got)
	}
}

func testOwnPID(t *testing.T, n *node) {
	b := n.pod(t, "own-pid")
	one := b.start(t, "one", "exec sleep 4721")
	two := b.start(t, "two", "exec sleep 4722")
	for id, want := range map[string]string{one: "sleep 4721", two: "sleep 4722"} {
		if got := n.exec(t, id, "tr '\\0' ' ' < /proc/1/cmdline; echo; ps -o args | grep -c '[s]leep 47'"); got != want+" \n1" {
			t.Errorf("process 1 is %q, want %q alone", got, want)
		}
	}
	// TARGET: an ephemeral container looks into the first.
	debug := b.start(t, "debug", "exec sleep 4723", func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET, TargetId: one}
	})
	if got := n.exec(t, debug, "tr '\\0' ' ' < /proc/1/cmdline"); got != "sleep 4721" {
		t.Errorf("the target's process is %q", got)
	}
}

func testHostNamespaces(t *testing.T, n *node) {
	c := sandboxConfig(t, "host-ns")
	o := &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_NODE, Ipc: runtimeapi.NamespaceMode_NODE}
	c.Linux.SecurityContext.NamespaceOptions = o
	got := n.run(t, c).output(t, "c", "readlink /proc/self/ns/pid; readlink /proc/self/ns/ipc", func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.NamespaceOptions = o
	})
	want := must(os.Readlink("/proc/self/ns/pid"))(t) + "\n" + must(os.Readlink("/proc/self/ns/ipc"))(t) + "\n"
	if got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func testSharedMemory(t *testing.T, n *node) {
	b := n.pod(t, "shm")
	writer := b.start(t, "writer", "echo shared > /dev/shm/x; exec sleep 1000")
	harness.Eventually(t, patience, func() string {
		if n.exec(t, writer, "cat /dev/shm/x 2>&1 || true") != "shared" {
			return "nothing written"
		}
		return ""
	})
	if got := b.output(t, "reader", "cat /dev/shm/x; readlink /proc/self/ns/ipc"); got != "shared\n"+n.exec(t, writer, "readlink /proc/self/ns/ipc")+"\n" {
		t.Errorf("the other container reads %q", got)
	}
	if got := n.pod(t, "shm2").output(t, "reader", "ls /dev/shm"); got != "" {
		t.Errorf("another pod sees %q", got)
	}
}

func testHostPort(t *testing.T, n *node) {
	_, port, _ := net.SplitHostPort(harness.FreeAddr(t))
	c := sandboxConfig(t, "host-port")
	c.PortMappings = []*runtimeapi.PortMapping{
		{ContainerPort: 8080, HostPort: int32(must(strconv.Atoi(port))(t))},
		{ContainerPort: 9090}, // only declared
	}
	b := n.run(t, c)
	b.start(t, "web", serve(8080))
	for _, addr := range []string{"127.0.0.1", firstAddress(t)} {
		if got := httpBody(t, "http://"+addr+":"+port+"/"); got != page {
			t.Errorf("by the host's port at %s: %q", addr, got)
		}
	}
	b.remove(t)
	if conn, err := net.DialTimeout("tcp", "127.0.0.1:"+port, time.Second); err == nil {
		conn.Close()
		t.Error("the host's port is still mapped after the removal")
	}
}

// firstAddress is an address of the machine that is not a loopback one.
func firstAddress(t *testing.T) string {
	t.Helper()
	for _, a := range must(net.InterfaceAddrs())(t) {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.To4() != nil && ip.IP.IsGlobalUnicast() && !strings.HasSuffix(ip.IP.String(), ".1") {
			return ip.IP.String()
		}
	}
	return "127.0.0.1"
}

func testSysctls(t *testing.T, n *node) {
	c := sandboxConfig(t, "sysctls")
	c.Linux.Sysctls = map[string]string{
		"kernel.shm_rmid_forced": "1", "fs.mqueue.msg_max": "100", "net.ipv4.ip_unprivileged_port_start": "80",
	}
	b := n.run(t, c)
	got := b.output(t, "c", "cd /proc/sys; cat kernel/shm_rmid_forced fs/mqueue/msg_max net/ipv4/ip_unprivileged_port_start")
	if got != "1\n100\n80\n" {
		t.Errorf("sysctls in the pod: %q", got)
	}
	bad := sandboxConfig(t, "bad-sysctl")
	bad.Linux.Sysctls = map[string]string{"vm.swappiness": "1"}
	_, err := n.RunPodSandbox(callContext(t, callTimeout), &runtimeapi.RunPodSandboxRequest{Config: bad})
	if err == nil || !strings.Contains(err.Error(), "vm.swappiness") {
		t.Errorf("a sysctl of the node: %v", err)
	}
}

func testStopSandbox(t *testing.T, n *node) {
	b := n.pod(t, "stopped")
	id := b.start(t, "c", "trap '' TERM; while :; do sleep 1; done")
	ip := b.status(t).Network.Ip
	stop := &runtimeapi.StopPodSandboxRequest{PodSandboxId: b.id}
	for range 2 {
		if _, err := n.StopPodSandbox(callContext(t, callTimeout), stop); err != nil {
			t.Errorf("stop: %v", err)
		}
	}
	if st := b.status(t); st.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("after the stop: %v", st)
	}
	if st := n.state(t, id); st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode != 137 || st.FinishedAt == 0 {
		t.Errorf("its container: %v", st)
	}
	for _, a := range n.Network.Addresses(t) {
		if a == ip {
			t.Errorf("address %s is still taken", ip)
		}
	}
	remove := &runtimeapi.RemovePodSandboxRequest{PodSandboxId: b.id}
	for range 2 {
		if _, err := n.RemovePodSandbox(callContext(t, callTimeout), remove); err != nil {
			t.Errorf("remove: %v", err)
		}
	}
	for _, s := range n.sandboxes(t) {
		if s.Id == b.id {
			t.Error("still listed")
		}
	}
	if dirs := must(filepath.Glob(filepath.Join(n.Dir, "pods", "*", b.id[:8]+"*")))(t); len(dirs) > 0 {
		t.Errorf("left on disk: %q", dirs)
	}
}
