package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage1/namespace"
)

// node is a node of a test's own: a network namespace in which the plugins run as
// if it were the host's, and their state below a temporary directory.
type node struct {
	t         *testing.T
	dir, host string
	*Network
}

const debianPlugins = "/usr/lib/cni"

// bridged is the configuration of the tests, as Debian's plugins 1.1 take it.
const bridged = `{"cniVersion":"1.0.0","name":"gantry-test","plugins":[
 {"type":"bridge","bridge":"gtest0","isGateway":true,"ipMasq":true,"hairpinMode":true,
  "ipam":{"type":"host-local","dataDir":"DIR/ipam","ranges":[[{"subnet":"10.213.7.0/29"}],[{"subnet":"fd00:213:7::/64"}]],"routes":[{"dst":"0.0.0.0/0"}]}},
 {"type":"portmap","capabilities":{"portMappings":true}}]}`

func newNode(t *testing.T) *node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if _, err := os.Stat(filepath.Join(debianPlugins, "bridge")); err != nil {
		t.Skip("needs the CNI plugins in " + debianPlugins)
	}
	n := &node{t: t, dir: t.TempDir()}
	links, rules := hostState(t)
	t.Cleanup(func() {
		if l, r := hostState(t); l != links || r != rules {
			t.Errorf("the host changed:\n%s%s\nnow\n%s%s", links, rules, l, r)
		}
		b, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil || strings.Contains(string(b), n.dir) {
			t.Errorf("mounts left behind: %v", err)
		}
	})
	n.host = namespace.Pin(n.makeNS("host"), namespace.Net)
	put(t, n.dir+"/net.d/10-test.conflist", strings.ReplaceAll(bridged, "DIR", n.dir), 0o644)
	n.Network = New(Config{ConfDir: n.dir + "/net.d", BinDirs: []string{n.dir + "/bin", debianPlugins}, CacheDir: n.dir + "/cache"})
	return n
}

func hostState(t *testing.T) (links, rules string) {
	t.Helper()
	ls, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range ls {
		links += l.Attrs().Name + "\n"
	}
	b, err := os.ReadFile("/proc/net/ip_tables_names")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return links, string(b)
}

func (n *node) makeNS(name string) string {
	n.t.Helper()
	dir := filepath.Join(n.dir, "ns", name)
	if err := namespace.Make(namespace.Spec{Dir: dir, Net: true}); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		if err := namespace.Unpin(dir); err != nil {
			n.t.Error(err)
		}
	})
	return dir
}

func (n *node) plan(name string, ports ...Port) Attachment {
	n.t.Helper()
	a, err := n.Plan(Request{
		ContainerID: name + strings.Repeat("0", 60), NetNS: namespace.Pin(n.makeNS(name), namespace.Net),
		PodNamespace: "default", PodName: name, PodUID: "u", Ports: ports,
	})
	if err != nil {
		n.t.Fatal(err)
	}
	return throughJSON(n.t, a)
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func (n *node) add(ctx context.Context, a Attachment) (r Result, err error) {
	err = namespace.Do(n.host, func() (err error) { r, err = n.Add(ctx, a); return err })
	return r, err
}

func (n *node) del(ctx context.Context, a Attachment) error {
	return namespace.Do(n.host, func() error { return n.Del(ctx, a) })
}

// leases are the addresses that host-local still holds.
func (n *node) leases() []string {
	files, err := filepath.Glob(n.dir + "/ipam/gantry-test/*.*.*.*")
	if err != nil {
		n.t.Fatal(err)
	}
	v6, _ := filepath.Glob(n.dir + "/ipam/gantry-test/fd00*")
	return append(files, v6...)
}

// rest says what of pods is left on the node: ports of the bridge, leases, NAT rules, cache.
func (n *node) rest() string {
	n.t.Helper()
	var left []string
	if err := namespace.Do(n.host, func() error {
		links, err := netlink.LinkList()
		for _, l := range links {
			if l.Type() == "veth" {
				left = append(left, l.Attrs().Name)
			}
		}
		if err != nil {
			return err
		}
		out, err := iptables("-t", "nat", "-S")
		for line := range strings.Lines(out) {
			if strings.Contains(line, "10.213.7.") {
				left = append(left, line)
			}
		}
		return err
	}); err != nil {
		n.t.Fatal(err)
	}
	cache, _ := filepath.Glob(n.dir + "/cache/*")
	return strings.Join(append(append(left, n.leases()...), cache...), " ")
}

// get asks an address from the node's side.
func (n *node) get(addr string) (string, error) {
	c := &http.Client{Timeout: time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, addr string) (c net.Conn, err error) {
			err = namespace.Do(n.host, func() (err error) { c, err = new(net.Dialer).DialContext(ctx, network, addr); return err })
			return c, err
		},
	}}
	resp, err := c.Get("http://" + addr)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

func (n *node) serve(netns, answer string) {
	n.t.Helper()
	var l net.Listener
	if err := namespace.Do(netns, func() (err error) { l, err = net.Listen("tcp", ":80"); return err }); err != nil {
		n.t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, answer) })}
	go s.Serve(l)
	n.t.Cleanup(func() { s.Close() })
}

func TestBridge(t *testing.T) {
	n := newNode(t)
	if err := n.Status(); err != nil {
		t.Fatal(err)
	}
	a, b := n.plan("a", Port{HostPort: 18080, ContainerPort: 80}), n.plan("b")
	ra, err := n.add(within(t, 30*time.Second), a)
	if err != nil {
		t.Fatal(err)
	}
	rb, err := n.add(within(t, 30*time.Second), b)
	if err != nil {
		t.Fatal(err)
	}
	if len(ra.IPs) != 2 || !netip.MustParsePrefix("10.213.7.0/29").Contains(ra.IPs[0]) || !ra.IPs[1].Is6() {
		t.Fatalf("addresses %v", ra.IPs)
	}
	if ra.Interface != "eth0" || len(strings.Split(ra.MAC, ":")) != 6 || !json.Valid(ra.Raw) || ra.IPs[0] == rb.IPs[0] {
		t.Errorf("%+v, %+v", ra, rb)
	}
	n.serve(a.NetNS, "this is a")
	for _, addr := range []string{ra.IPs[0].String(), fmt.Sprintf("[%s]", ra.IPs[1]), "10.213.7.1:18080"} {
		t.Run("reached at "+addr, func(t *testing.T) {
			// The gateway of a bridge that was just made has a tentative IPv6 address for a second or two.
			got, err := n.get(addr)
			for end := time.Now().Add(10 * time.Second); err != nil && time.Now().Before(end); {
				got, err = n.get(addr)
			}
			if got != "this is a" {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
	if stats, err := namespace.InterfaceStats(a.NetNS); err != nil || len(stats) != 1 || stats[0].Name != "eth0" || stats[0].RxBytes == 0 {
		t.Errorf("statistics %+v, %v", stats, err)
	}
	// The configuration of today must not matter.
	if err := os.RemoveAll(n.dir + "/net.d"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := n.del(within(t, 30*time.Second), a); err != nil {
			t.Fatal(err)
		}
	}
	if rest := n.rest(); strings.Contains(rest, ra.IPs[0].String()) || !strings.Contains(rest, rb.IPs[0].String()) {
		t.Errorf("left: %s", rest)
	}
	// b's namespace is gone, as after a boot, and the node's rules with it. (Without a
	// boot, Debian's bridge would leave its masquerading rules: it finds them by the interface.)
	if err := namespace.Do(n.host, func() error { _, err := iptables("-t", "nat", "-F"); return err }); err != nil {
		t.Fatal(err)
	}
	if err := namespace.Unpin(filepath.Dir(b.NetNS)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := n.del(within(t, 30*time.Second), b); err != nil {
			t.Fatal(err)
		}
	}
	waitGone(t, n)
}

// waitGone: the kernel ends a network namespace, and its links with it, on its own time.
func waitGone(t *testing.T, n *node) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); n.rest() != ""; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("left behind: %s", n.rest())
		}
	}
}

func TestDelWithoutAdd(t *testing.T) {
	n := newNode(t)
	a := n.plan("a", Port{HostPort: 18080, ContainerPort: 80})
	if err := n.del(within(t, 30*time.Second), a); err != nil {
		t.Error(err)
	}
	if err := n.del(within(t, time.Second), Attachment{}); err != nil {
		t.Error(err)
	}
}

func TestAddFails(t *testing.T) {
	n := newNode(t)
	ctx := within(t, 60*time.Second)
	var all []Attachment
	for i := range 8 { // a /29 has room for five
		a := n.plan(fmt.Sprintf("p%d", i))
		all = append(all, a)
		_, err := n.add(ctx, a)
		if err == nil {
			continue
		}
		want := `attach to network "gantry-test": plugin bridge: ADD: failed to allocate for range 0: no IP addresses available in range set: 10.213.7.1-10.213.7.6`
		var p *PluginError
		if err.Error() != want || !errors.As(err, &p) || p.Plugin != "bridge" {
			t.Errorf("got  %v\nwant %s", err, want)
		}
		break
	}
	if len(all) != 6 {
		t.Errorf("failed at pod %d", len(all))
	}
	for _, a := range all {
		if err := n.del(ctx, a); err != nil {
			t.Error(err)
		}
	}
	waitGone(t, n)
}

// script is a plugin of the test's own.
func (n *node) script(name, body string) {
	put(n.t, filepath.Join(n.dir, "bin", name), "#!/bin/sh\n"+body, 0o755)
	put(n.t, n.dir+"/net.d/00-script.conf", `{"cniVersion":"1.0.0","name":"scripted","type":"`+name+`"}`, 0o644)
}

func TestPluginHangs(t *testing.T) {
	for _, command := range []string{"ADD", "DEL"} {
		t.Run(command, func(t *testing.T) {
			n := newNode(t)
			n.script("sleeper", "sleep 1000 & echo $! >>"+n.dir+"/pids; wait\n")
			a := n.plan("a")
			call := func(ctx context.Context) error { _, err := n.add(ctx, a); return err }
			if command == "DEL" {
				call = func(ctx context.Context) error { return n.del(ctx, a) }
			}
			start := time.Now()
			err := call(within(t, 500*time.Millisecond))
			if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "plugin sleeper: "+command+": killed") {
				t.Errorf("%v", err)
			}
			if d := time.Since(start); d > 5*time.Second {
				t.Errorf("took %s", d)
			}
			pids, err := os.ReadFile(n.dir + "/pids")
			if err != nil {
				t.Fatal(err)
			}
			var pid int
			fmt.Sscan(string(pids), &pid)
			for end := time.Now().Add(5 * time.Second); unix.Kill(pid, 0) == nil && !zombie(pid); time.Sleep(10 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("the plugin's child %d lives", pid)
				}
			}
		})
	}
}

// zombie: killed, and not yet reaped by whoever is init here.
func zombie(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(b), ") Z ")
}

func TestPluginSays(t *testing.T) {
	for _, tt := range []struct{ name, body, add, del string }{
		{
			"own error", `echo '{"code":11,"msg":"not now","details":"try again"}'; exit 1`,
			"plugin scripted: ADD: not now; try again", "plugin scripted: DEL: not now; try again",
		},
		{"stderr", `echo boom >&2; exit 3`, `plugin scripted: ADD: exit status 3: "boom"`, `plugin scripted: DEL: exit status 3: "boom"`},
		{"nothing", `exit 3`, "plugin scripted: ADD: exit status 3", "plugin scripted: DEL: exit status 3"},
		{"container unknown", `echo '{"code":3,"msg":"who?"}'; exit 1`, "plugin scripted: ADD: who?", ""},
		{"no address", `echo '{"cniVersion":"1.0.0"}'`, "the plugins gave the pod no address", ""},
		{"no JSON", `echo hello`, "invalid character 'h'", ""},
		{"leaves a process with its output", `echo '{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.2/24"}]}'; setsid sleep 3 & `, "", ""},
		{"null", `echo null`, "the plugins gave the pod no address", ""},
		{"floods", `yes | head -c 3000000`, "said more than 1048576 bytes", "said more than"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t)
			n.script("scripted", tt.body)
			a := n.plan("a")
			_, err := n.add(within(t, 20*time.Second), a)
			matches(t, err, tt.add)
			matches(t, n.del(within(t, 20*time.Second), a), tt.del)
		})
	}
}

func matches(t *testing.T, err error, want string) {
	t.Helper()
	if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
		t.Errorf("%v, want %q", err, want)
	}
}

// What plugins are told, and that the node's side's addresses are not taken for the pod's.
func TestPluginIsTold(t *testing.T) {
	n := newNode(t)
	n.script("teller", `cat >"`+n.dir+`/stdin.$CNI_COMMAND"; env >"`+n.dir+`/env.$CNI_COMMAND"
echo '{"cniVersion":"1.0.0","interfaces":[{"name":"host0"},{"name":"eth0","mac":"02:00:00:00:00:07","sandbox":"/x"}],
"ips":[{"address":"10.9.9.1/24","interface":0},{"address":"fd09::7/64","interface":1},{"address":"10.9.9.7/24","interface":1}]}'`)
	put(t, n.dir+"/net.d/00-script.conf", `{"cniVersion":"1.0.0","name":"scripted","type":"teller","capabilities":{"portMappings":true}}`, 0o644)
	a := n.plan("a", Port{HostPort: 8080, ContainerPort: 80})
	r, err := n.add(within(t, 20*time.Second), a)
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(r.IPs) != "[fd09::7 10.9.9.7]" || r.MAC != "02:00:00:00:00:07" {
		t.Errorf("%+v", r)
	}
	if err := namespace.Unpin(filepath.Dir(a.NetNS)); err != nil {
		t.Fatal(err)
	}
	if err := n.del(within(t, 20*time.Second), a); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ file, want string }{
		{"env.ADD", "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=a;K8S_POD_INFRA_CONTAINER_ID=" + a.ContainerID + ";K8S_POD_UID=u\n"},
		{"env.ADD", "CNI_NETNS=" + a.NetNS + "\n"},
		{"env.ADD", "CNI_IFNAME=eth0\n"},
		{"env.DEL", "CNI_NETNS=\n"},
		{"stdin.ADD", `"runtimeConfig":{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]}`},
		{"stdin.DEL", `"hostPort":8080`},
		{"stdin.DEL", `"prevResult":{`},
	} {
		b, err := os.ReadFile(filepath.Join(n.dir, tt.file))
		if err != nil || !strings.Contains(string(b), tt.want) {
			t.Errorf("%s has no %q: %v\n%s", tt.file, tt.want, err, b)
		}
	}
}

func TestPluginGoneAtDel(t *testing.T) {
	n := newNode(t)
	n.script("fleeting", `echo '{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.2/24"}]}'`)
	a := n.plan("a")
	if err := os.RemoveAll(n.dir + "/bin"); err != nil {
		t.Fatal(err)
	}
	matches(t, n.del(within(t, time.Second), a), "plugin fleeting: find: not found in "+n.dir+"/bin, "+debianPlugins)
	// Another Network, of a command without the daemon's flags, finds the plugin by the attachment.
	n.script("fleeting", `exit 0`)
	n.Network = New(Config{ConfDir: "/nonexistent", BinDirs: []string{"/nonexistent"}})
	if err := n.del(within(t, time.Second), a); err != nil {
		t.Error(err)
	}
}

func TestAddsAreBounded(t *testing.T) {
	n := newNode(t)
	n.script("slow", `sleep 1000`)
	n.Network = New(Config{ConfDir: n.dir + "/net.d", BinDirs: []string{n.dir + "/bin"}, CacheDir: n.dir + "/cache", Adds: 1})
	a, b := n.plan("a"), n.plan("b")
	ctx, cancel := context.WithCancel(context.Background())
	first := make(chan error, 1)
	go func() { _, err := n.add(ctx, a); first <- err }()
	for len(n.adds) == 0 {
		time.Sleep(time.Millisecond)
	}
	_, err := n.add(within(t, 50*time.Millisecond), b)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "waiting for other pods' plugins") {
		t.Errorf("%v", err)
	}
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if len(n.adds) != 0 {
		t.Error("a slot is not given back")
	}
}

func BenchmarkLoad(b *testing.B) {
	dir := b.TempDir()
	if err := os.WriteFile(dir+"/a.conflist", []byte(bridged), 0o644); err != nil {
		b.Fatal(err)
	}
	n := New(Config{ConfDir: dir})
	for b.Loop() {
		if _, err := n.Load(); err != nil {
			b.Fatal(err)
		}
	}
}

func iptables(args ...string) (string, error) {
	out, err := exec.Command("iptables", args...).CombinedOutput()
	return string(out), err
}
