package idmap

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// ranges are container id, host id and size, three numbers each.
func ranges(n ...uint32) (all []specs.LinuxIDMapping) {
	for i := 0; i < len(n); i += 3 {
		all = append(all, specs.LinuxIDMapping{ContainerID: n[i], HostID: n[i+1], Size: n[i+2]})
	}
	return all
}

// holdEnv makes this test a program that is killed while it holds a namespace.
const holdEnv = "GANTRY_IDMAP_HOLD"

func TestMain(m *testing.M) {
	if os.Getenv(holdEnv) == "" {
		os.Exit(m.Run())
	}
	if os.Args[0] == "gantry" {
		time.Sleep(time.Minute) // a process of Inside that was let go: TestKillLeavesNobody waits for its end
	}
	ids := ranges(0, 100000, 10)
	fmt.Println(Map{ids, ids}.Inside(0, func(pid int) error {
		fmt.Println(pid)
		_, err := os.Stdin.Read(make([]byte, 1)) // until the test ends it
		return err
	}))
}

// TestKillLeavesNobody holds that the process in a namespace dies with us.
func TestKillLeavesNobody(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mapping many ids needs root")
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{holdEnv + "=1"}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Fscan(stdout, &pid); err != nil {
		t.Fatal(err)
	}
	held, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(held)
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(held), Events: unix.POLLIN}}, 0); n != 0 || err != nil {
		t.Errorf("it ended before: %d, %v", n, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(held), Events: unix.POLLIN}}, 10_000); n != 1 || err != nil {
		t.Errorf("process %d lives on: %d, %v", pid, n, err)
	}
}

func TestCheck(t *testing.T) {
	many := func(n uint32) (all []specs.LinuxIDMapping) {
		for i := range n {
			all = append(all, ranges(i, 1000+2*i, 1)...)
		}
		return all
	}
	good := ranges(0, 100000, 65536)
	for _, tt := range []struct {
		name string
		m    Map
		err  string // empty: none
	}{
		{"one range", Map{good, good}, ""},
		{"adjacent ranges in any order", Map{ranges(10, 5, 5, 0, 10, 10), good}, ""},
		{"up to the last id", Map{ranges(0, 1<<32-11, 10), good}, ""},
		{"as many as the kernel takes", Map{good, many(340)}, ""},
		{"none", Map{}, "mapping of uids: 0 is not mapped"},
		{"no root", Map{good, ranges(1, 100001, 65535)}, "mapping of gids: 0 is not mapped"},
		{"empty", Map{ranges(0, 5, 1, 7, 7, 0), good}, `range "7 7 0" is empty or leaves 32 bits`},
		{"beyond the last id of the node", Map{ranges(0, 1<<32-10, 10), good}, "leaves 32 bits"},
		{"beyond the last id inside", Map{ranges(0, 0, 1, 1<<32-10, 10, 10), good}, "leaves 32 bits"},
		{"one id twice inside", Map{ranges(0, 100, 10, 9, 200, 1), good}, `ranges "0 100 10" and "9 200 1" overlap`},
		{"one id twice on the node", Map{ranges(0, 100, 10, 50, 109, 1), good}, `ranges "0 100 10" and "50 109 1" overlap`},
		{"too many", Map{good, many(341)}, "341 ranges, the kernel takes 340"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.m.Check()
			if tt.err == "" && err != nil || tt.err != "" && (!errors.Is(err, errdefs.ErrInvalid) || !strings.Contains(err.Error(), tt.err)) {
				t.Errorf("Check: %v, want %q", err, tt.err)
			}
		})
	}
}

func TestOwner(t *testing.T) {
	m := Map{ranges(0, 1000, 10, 20, 5000, 1), ranges(0, 2000, 10)}
	for _, tt := range []struct{ uid, gid, hostUID, hostGID uint32 }{{0, 0, 1000, 2000}, {9, 9, 1009, 2009}, {20, 1, 5000, 2001}} {
		if u, g, err := m.Owner(tt.uid, tt.gid); err != nil || u != tt.hostUID || g != tt.hostGID {
			t.Errorf("Owner(%d, %d) = %d, %d, %v; want %d, %d", tt.uid, tt.gid, u, g, err, tt.hostUID, tt.hostGID)
		}
	}
	for _, o := range [][2]uint32{{10, 0}, {0, 10}, {21, 0}} {
		if u, g, err := m.Owner(o[0], o[1]); !errors.Is(err, errdefs.ErrInvalid) {
			t.Errorf("Owner(%d, %d) = %d, %d, %v; want ErrInvalid", o[0], o[1], u, g, err)
		}
	}
}

func TestXattr(t *testing.T) {
	m := Map{ranges(0, 0x01020304, 10), ranges(0, 0x0a0b0c0d, 10)}
	const caps, acl = "security.capability", "system.posix_acl_default"
	sets := "0123456789abcdef"
	for _, tt := range []struct{ name, attr, value, want string }{
		{"any other", "user.x", "value", "value"},
		{"capabilities of the node's root", caps, "\x01\x00\x00\x02" + sets, "\x01\x00\x00\x03" + sets + "\x04\x03\x02\x01"},
		{"capabilities of a namespace's root", caps, "\x00\x00\x00\x03" + sets + "\x02\x00\x00\x00", "\x00\x00\x00\x03" + sets + "\x06\x03\x02\x01"},
		{"capabilities of a stranger", caps, "\x00\x00\x00\x03" + sets + "\x0a\x00\x00\x00", ""},
		{"capabilities cut short", caps, "\x01\x00\x00\x02" + sets[1:], ""},
		{"capabilities without a version", caps, "\x01", ""},
		{"capabilities of an unknown version", caps, "\x01\x00\x00\x04" + sets, ""},
		{
			"access list", acl,
			"\x02\x00\x00\x00" + "\x01\x00\x07\x00\xff\xff\xff\xff" + "\x02\x00\x06\x00\x01\x00\x00\x00" + "\x08\x00\x05\x00\x02\x00\x00\x00",
			"\x02\x00\x00\x00" + "\x01\x00\x07\x00\xff\xff\xff\xff" + "\x02\x00\x06\x00\x05\x03\x02\x01" + "\x08\x00\x05\x00\x0f\x0c\x0b\x0a",
		},
		{"access list without entries", acl, "\x02\x00\x00\x00", "\x02\x00\x00\x00"},
		{"access list with a stranger", acl, "\x02\x00\x00\x00" + "\x02\x00\x06\x00\x0a\x00\x00\x00", ""},
		{"access list cut short", acl, "\x02\x00\x00\x00\x01", ""},
		{"access list of an unknown version", acl, "\x03\x00\x00\x00", ""},
		{"access list without a version", acl, "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			given := []byte(tt.value)
			got, err := m.Xattr(tt.attr, given)
			if tt.want == "" && tt.value != tt.want || tt.name == "access list without a version" {
				if !errors.Is(err, errdefs.ErrInvalid) {
					t.Errorf("Xattr: %x, %v; want ErrInvalid", got, err)
				}
				return
			}
			if err != nil || string(got) != tt.want {
				t.Errorf("Xattr: %x, %v; want %x", got, err, tt.want)
			}
			if string(given) != tt.value {
				t.Errorf("the value itself was changed to %x", given)
			}
		})
	}
}

// TestNamespace asks a process in it for its maps.
func TestNamespace(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mapping many ids needs root")
	}
	m := Map{ranges(0, 100000, 10, 20, 5000, 1), ranges(0, 200000, 10)}
	ns, err := m.Namespace()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	out, err := exec.Command("nsenter", fmt.Sprintf("--user=/proc/%d/fd/%d", os.Getpid(), ns.Fd()), "cat", "/proc/self/uid_map", "/proc/self/gid_map").Output()
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"0", "100000", "10", "20", "5000", "1", "0", "200000", "10"}
	if got := strings.Fields(string(out)); !slices.Equal(got, want) {
		t.Errorf("maps %v, want %v", got, want)
	}
	if ns, err := (Map{}).Namespace(); err == nil {
		t.Errorf("a namespace of nobody: %v", errors.Join(err, ns.Close()))
	}
	children, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/children", os.Getpid()))
	if err != nil || len(children) > 0 {
		t.Errorf("children %q are left, %v", children, err)
	}
}
