package namespace

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/idmap"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// pins is a directory for pins, and the check that a test leaves nothing on it.
func pins(t *testing.T) string {
	t.Helper()
	needRoot(t)
	dir := filepath.Join(t.TempDir(), "ns")
	self := nsID(t, "/proc/self/ns/net")
	t.Cleanup(func() {
		if err := Unpin(dir); err != nil {
			t.Errorf("unpin: %v", err)
		}
		if m := mountsBelow(t, dir); m != "" {
			t.Errorf("mounts left behind:\n%s", m)
		}
		if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("directory left behind: %v", err)
		}
		if got := nsID(t, "/proc/self/ns/net"); got != self {
			t.Errorf("process's network namespace changed from %s to %s", self, got)
		}
	})
	return dir
}

func mountsBelow(t *testing.T, dir string) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, " "+dir) {
			out = append(out, line)
		}
	}
	return strings.Join(out, "")
}

func nsID(t *testing.T, path string) string {
	t.Helper()
	s, err := os.Readlink(path)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// inside runs a program in the pinned namespaces.
func inside(t *testing.T, dir string, argv ...string) string {
	t.Helper()
	args := []string{}
	for _, k := range kinds {
		if ok, _ := IsPinned(Pin(dir, k.kind)); ok {
			args = append(args, "--"+string(k.kind)+"="+Pin(dir, k.kind))
		}
	}
	out, err := exec.Command("nsenter", append(args, argv...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("nsenter %q: %v: %s", argv, err, out)
	}
	return strings.TrimSpace(string(out))
}

func TestMake(t *testing.T) {
	dir := pins(t)
	hostForward, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
	if err != nil {
		t.Fatal(err)
	}
	err = Make(Spec{
		Dir: dir, Net: true, IPC: true, UTS: true, Hostname: "web-0",
		Sysctls: map[string]string{
			"net.ipv4.ip_unprivileged_port_start": "0",
			"net.ipv4.ping_group_range":           "0 2147483647",
			"net/ipv4/ip_forward":                 "1",
			"kernel.shm_rmid_forced":              "1",
			"kernel.msgmax":                       "4096",
			"fs.mqueue.queues_max":                "17",
			"kernel.domainname":                   "example",
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, file, want string }{
		{"hostname", "kernel/hostname", "web-0"},
		{"domain", "kernel/domainname", "example"},
		{"low ports", "net/ipv4/ip_unprivileged_port_start", "0"},
		{"ping", "net/ipv4/ping_group_range", "0\t2147483647"},
		{"forward", "net/ipv4/ip_forward", "1"},
		{"shm", "kernel/shm_rmid_forced", "1"},
		{"msgmax", "kernel/msgmax", "4096"},
		{"mqueue", "fs/mqueue/queues_max", "17"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := inside(t, dir, "cat", "/proc/sys/"+tt.file); got != tt.want {
				t.Errorf("inside: %q, want %q", got, tt.want)
			}
			host, err := os.ReadFile("/proc/sys/" + tt.file)
			if err != nil {
				t.Fatal(err)
			}
			if strings.TrimSpace(string(host)) == tt.want && tt.file != "net/ipv4/ip_forward" {
				t.Errorf("the node has %q too", tt.want)
			}
		})
	}
	if got, _ := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start"); !bytes.Equal(got, hostForward) {
		t.Errorf("node's sysctl changed to %q", got)
	}
	loopbackIsUp(t, Pin(dir, Net))
	if err := Make(Spec{Dir: dir, Net: true}); !errors.Is(err, errdefs.ErrExists) {
		t.Errorf("made again: %v", err)
	}
	if ok, err := IsPinned(Pin(dir, UTS)); !ok || err != nil {
		t.Errorf("a refused Make took pins away: %v, %v", ok, err)
	}
	for range 2 {
		if err := Unpin(dir); err != nil {
			t.Fatal(err)
		}
	}
}

// TestMakeWithUsers holds that all belong to the user namespace: its root, who is nobody
// outside, may do there what root may.
func TestMakeWithUsers(t *testing.T) {
	dir := pins(t)
	ids := []specs.LinuxIDMapping{{HostID: 100000, Size: 1000}}
	s := Spec{
		Dir: dir, Users: &idmap.Map{UIDs: ids, GIDs: ids}, Net: true, IPC: true, UTS: true, Hostname: "web-0",
		Sysctls: map[string]string{"net.ipv4.ip_forward": "1"},
	}
	if err := Make(s); err != nil {
		t.Fatal(err)
	}
	for _, k := range kinds {
		if ok, err := IsPinned(Pin(dir, k.kind)); !ok || err != nil {
			t.Errorf("%s pinned: %t, %v", k.kind, ok, err)
		}
	}
	loopbackIsUp(t, Pin(dir, Net))
	if got := strings.Fields(inside(t, dir, "cat", "/proc/self/uid_map")); !slices.Equal(got, []string{"0", "100000", "1000"}) {
		t.Errorf("map %q", got)
	}
	for _, tt := range []struct{ cmd, want string }{
		{"id -u", "0"},
		{"hostname", "web-0"},
		{"cat /proc/sys/net/ipv4/ip_forward", "1"},
		{"hostname web-1 && hostname", "web-1"},
		{"ip link set lo down && echo down", "down"},
		{"ipcmk -M 100 >/dev/null && echo made", "made"},
	} {
		if got := inside(t, dir, "sh", "-c", tt.cmd); got != tt.want {
			t.Errorf("%s says %q, want %q", tt.cmd, got, tt.want)
		}
	}
	if err := Make(s); !errors.Is(err, errdefs.ErrExists) {
		t.Errorf("made again: %v", err)
	}
	s.Dir, s.Users = dir+"2", &idmap.Map{}
	if err := Make(s); err == nil {
		t.Error("made for nobody")
	}
	if err := Unpin(s.Dir); err != nil {
		t.Error(err)
	}
}

func loopbackIsUp(t *testing.T, netns string) {
	t.Helper()
	if err := Do(netns, func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		if len(links) == 0 || links[0].Attrs().RawFlags&unix.IFF_UP == 0 || links[0].Attrs().Name != "lo" {
			t.Errorf("lo is not up: %+v", links)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func TestMakeSome(t *testing.T) {
	dir := pins(t)
	if err := Make(Spec{Dir: dir, UTS: true}); err != nil {
		t.Fatal(err)
	}
	for k, want := range map[Kind]bool{Net: false, IPC: false, UTS: true} {
		if got, err := IsPinned(Pin(dir, k)); got != want || err != nil {
			t.Errorf("%s pinned: %v, %v", k, got, err)
		}
	}
	if got, host := inside(t, dir, "hostname"), nsHostname(t); got != host {
		t.Errorf("hostname %q, want the node's %q", got, host)
	}
	if err := Make(Spec{Dir: dir}); err != nil {
		t.Errorf("nothing to make: %v", err)
	}
}

func nsHostname(t *testing.T) string {
	t.Helper()
	h, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestMakeRefuses(t *testing.T) {
	for _, tt := range []struct {
		name string
		spec Spec
		want string
	}{
		{"node's sysctl", Spec{Net: true, Sysctls: map[string]string{"vm.swappiness": "1"}}, `"vm.swappiness" belongs to the node`},
		{"host network", Spec{IPC: true, Sysctls: map[string]string{"net.core.somaxconn": "1"}}, "needs a net namespace"},
		{"host ipc", Spec{Net: true, Sysctls: map[string]string{"kernel.shmmax": "1"}}, "needs a ipc namespace"},
		{"dots out", Spec{Net: true, Sysctls: map[string]string{"net/../kernel/core_pattern": "x"}}, "sysctl name"},
		{"slashes in a dotted name", Spec{Net: true, Sysctls: map[string]string{"net.ipv4/../../kernel": "x"}}, "sysctl name"},
		{"empty", Spec{Net: true, Sysctls: map[string]string{"": "x"}}, "sysctl name"},
		{"absent", Spec{Net: true, Sysctls: map[string]string{"net.ipv4.nosuch": "1"}}, `"net.ipv4.nosuch": this kernel has none`},
		{"value", Spec{Net: true, Sysctls: map[string]string{"net.ipv4.ip_forward": "x"}}, `the kernel refuses the value "x"`},
		{"hostname of the node", Spec{Net: true, Hostname: "a"}, "needs a UTS namespace"},
		{"long hostname", Spec{UTS: true, Hostname: strings.Repeat("a", 65)}, "longer than 64"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.spec.Dir = pins(t)
			err := Make(tt.spec)
			if !errors.Is(err, errdefs.ErrInvalid) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
			if m := mountsBelow(t, tt.spec.Dir); m != "" {
				t.Errorf("left behind: %s", m)
			}
		})
	}
}

func TestSysctlFile(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		{"dotted", "net.ipv4.ip_forward", "net/ipv4/ip_forward"},
		{"vlan interface", "net.ipv4.conf.eth0/1.forwarding", "net/ipv4/conf/eth0.1/forwarding"},
		{"slashes", "net/ipv4/conf/eth0.1/forwarding", "net/ipv4/conf/eth0.1/forwarding"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got, err := sysctlFile(tt.in); got != tt.want || err != nil {
				t.Errorf("%q, %v, want %q", got, err, tt.want)
			}
		})
	}
}

// A failure at the last pin takes the first ones away.
func TestMakeUndone(t *testing.T) {
	dir := pins(t)
	if err := os.MkdirAll(Pin(dir, UTS), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Make(Spec{Dir: dir, Net: true, IPC: true, UTS: true}); err == nil {
		t.Error("pinned on a directory")
	}
	if m := mountsBelow(t, dir); m != "" {
		t.Errorf("left behind: %s", m)
	}
	if err := os.Remove(Pin(dir, UTS)); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "uts")); err != nil {
		t.Fatal(err)
	}
	if err := Make(Spec{Dir: dir, UTS: true}); err == nil {
		t.Error("pinned over a link's target")
	}
	if err := Unpin(dir); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat("/etc/passwd"); err != nil {
		t.Error(err)
	}
}

// A file that an aborted start left is used again.
func TestMakeReusesFile(t *testing.T) {
	dir := pins(t)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(Pin(dir, Net), nil, 0o400); err != nil {
		t.Fatal(err)
	}
	if ok, err := IsPinned(Pin(dir, Net)); ok || err != nil {
		t.Errorf("a plain file is a pin: %v, %v", ok, err)
	}
	if err := Do(Pin(dir, Net), func() error { return nil }); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("entered a plain file: %v", err)
	}
	if err := Make(Spec{Dir: dir, Net: true}); err != nil {
		t.Fatal(err)
	}
}

func TestUnpinStackedAndHidden(t *testing.T) {
	dir := pins(t)
	if err := Make(Spec{Dir: dir, Net: true}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("/proc/self/ns/uts", Pin(dir, Net), "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(Pin(dir, Net)) // somebody still looks at it
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := Unpin(dir); err != nil {
		t.Fatal(err)
	}
	if err := Make(Spec{Dir: dir, Net: true}); err != nil {
		t.Fatal(err)
	}
	// The trap of /run/netns: the directory is mounted on itself over the pins.
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	err = Unpin(dir)
	if uerr := unix.Unmount(dir, 0); uerr != nil {
		t.Fatal(uerr)
	}
	if !errors.Is(err, errdefs.ErrBusy) {
		t.Errorf("hidden pin: %v", err)
	}
}

// On a node whose / is shared, pins propagate; they must go away all the same.
func TestSharedParent(t *testing.T) {
	needRoot(t)
	parent := t.TempDir()
	if err := unix.Mount(parent, parent, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(parent, unix.MNT_DETACH)
	if err := unix.Mount("", parent, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	other := exec.Command("unshare", "--mount", "--propagation=slave", "cat") // sees the parent as it is
	in, err := other.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { in.Close(); other.Wait() }()
	dir := filepath.Join(parent, "ns")
	if err := Make(Spec{Dir: dir, Net: true, IPC: true, UTS: true}); err != nil {
		t.Fatal(err)
	}
	if err := Unpin(dir); err != nil {
		t.Fatal(err)
	}
	if m := mountsBelow(t, dir); m != "" {
		t.Errorf("left behind: %s", m)
	}
}

// Nothing but the pin holds the namespace: no thread of ours is left in it.
func TestNoThreadLeft(t *testing.T) {
	dir := pins(t)
	for range 20 {
		if err := Make(Spec{Dir: dir, Net: true, IPC: true, UTS: true}); err != nil {
			t.Fatal(err)
		}
		if err := Do(Pin(dir, Net), func() error { return nil }); err != nil {
			t.Fatal(err)
		}
		if err := Unpin(dir); err != nil {
			t.Fatal(err)
		}
	}
	self := nsID(t, "/proc/self/ns/net")
	waitFor(t, "threads in other namespaces to end", func() bool {
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		for _, task := range tasks {
			if l, err := os.Readlink("/proc/self/task/" + task.Name() + "/ns/net"); err == nil && l != self {
				return false
			}
		}
		return true
	})
}

func TestDoGone(t *testing.T) {
	err := Do(filepath.Join(t.TempDir(), "none"), func() error { t.Error("called"); return nil })
	if !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("%v, want ErrNotFound", err)
	}
}

func TestInterfaceStats(t *testing.T) {
	dir := pins(t)
	if err := Make(Spec{Dir: dir, Net: true}); err != nil {
		t.Fatal(err)
	}
	netns := Pin(dir, Net)
	if err := Do(netns, func() error {
		v := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "peer"}
		if err := netlink.LinkAdd(v); err != nil {
			return err
		}
		for _, name := range []string{"eth0", "peer"} {
			l, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			if err := netlink.LinkSetUp(l); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	// Going up sends router solicitations and the like.
	waitFor(t, "packets on eth0", func() bool {
		stats, err := InterfaceStats(netns)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range stats {
			if s.Name == "lo" {
				t.Fatal("lo is listed")
			}
			if s.Name == "eth0" && s.TxBytes > 0 && s.TxPackets > 0 && s.RxBytes > 0 {
				return true
			}
		}
		return false
	})
	if _, err := InterfaceStats(Pin(dir, "none")); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("gone: %v", err)
	}
}

func BenchmarkMake(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root")
	}
	dir := filepath.Join(b.TempDir(), "ns")
	for b.Loop() {
		if err := Make(Spec{Dir: dir, Net: true, IPC: true, UTS: true, Hostname: "a"}); err != nil {
			b.Fatal(err)
		}
		if err := Unpin(dir); err != nil {
			b.Fatal(err)
		}
	}
}
