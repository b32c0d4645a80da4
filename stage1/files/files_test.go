package files

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

func content(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestWriteResolvConf(t *testing.T) {
	node, err := nodeResolvConf(hostResolvConf, resolvedResolvConf)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		dns  *DNS
		want string
		bad  bool
	}{
		{name: "nothing asked for", want: string(node)},
		{name: "empty is an answer", dns: &DNS{}},
		{
			name: "all", dns: &DNS{Servers: []string{"10.96.0.10", "fd00::10"}, Searches: []string{"default.svc.cluster.local", "."}, Options: []string{"ndots:5", "edns0"}},
			want: "search default.svc.cluster.local .\nnameserver 10.96.0.10\nnameserver fd00::10\noptions ndots:5 edns0\n",
		},
		{name: "servers alone", dns: &DNS{Servers: []string{"1.1.1.1"}}, want: "nameserver 1.1.1.1\n"},
		{name: "line break", dns: &DNS{Servers: []string{"1.1.1.1\nnameserver 6.6.6.6"}}, bad: true},
		{name: "blank", dns: &DNS{Options: []string{"a b"}}, bad: true},
		{name: "empty word", dns: &DNS{Searches: []string{""}}, bad: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "resolv.conf")
			old := syscall.Umask(0o077)
			defer syscall.Umask(old)
			for range 2 {
				if err := WriteResolvConf(path, tt.dns); tt.bad != errors.Is(err, errdefs.ErrInvalid) || !tt.bad && err != nil {
					t.Fatal(err)
				}
			}
			if tt.bad {
				if _, err := os.Stat(path); err == nil {
					t.Error("written all the same")
				}
				return
			}
			if got := content(t, path); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if st, err := os.Stat(path); err != nil || st.Mode() != 0o644 {
				t.Errorf("mode %v, %v", st.Mode(), err)
			}
			if e, err := os.ReadDir(filepath.Dir(path)); err != nil || len(e) != 1 {
				t.Errorf("left beside it: %v, %v", e, err)
			}
		})
	}
}

func TestNodeResolvConf(t *testing.T) {
	for _, tt := range []struct{ name, node, resolved, want string }{
		{"ordinary", "nameserver 192.0.2.1\n", "nameserver 192.0.2.9\n", "nameserver 192.0.2.1\n"},
		{"stub", "# by systemd-resolved\nnameserver 127.0.0.53\noptions edns0\n", "nameserver 192.0.2.9\n", "nameserver 192.0.2.9\n"},
		{"stub without the list", "nameserver 127.0.0.53\n", "", "nameserver 127.0.0.53\n"},
		{"one on loopback of two", "nameserver ::1\nnameserver 192.0.2.1\n", "nameserver 192.0.2.9\n", "nameserver ::1\nnameserver 192.0.2.1\n"},
		{"none", "", "nameserver 192.0.2.9\n", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			node, resolved := filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "b")
			for path, c := range map[string]string{node: tt.node, resolved: tt.resolved} {
				if c == "" {
					continue
				}
				if err := os.WriteFile(path, []byte(c), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if got, err := nodeResolvConf(node, resolved); err != nil || string(got) != tt.want {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

func TestWriteHosts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hosts")
	ips := []netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::2")}
	for _, tt := range []struct {
		name, hostname string
		ips            []netip.Addr
		want           string
	}{
		{"dual", "web", ips, "10.0.0.2\tweb\nfd00::2\tweb\n"},
		{"no network", "web", nil, "127.0.1.1\tweb\n"},
		{"no name", "", ips, "ff02::2\tip6-allrouters\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := WriteHosts(path, tt.hostname, tt.ips); err != nil {
				t.Fatal(err)
			}
			if got := content(t, path); !strings.HasPrefix(got, "127.0.0.1\tlocalhost\n") || !strings.HasSuffix(got, tt.want) {
				t.Errorf("got %q", got)
			}
		})
	}
	if err := WriteHosts(path, "a\n6.6.6.6 b", ips); !errors.Is(err, errdefs.ErrInvalid) {
		t.Errorf("%v", err)
	}
	if err := CopyHosts(path); err != nil {
		t.Fatal(err)
	}
	if want, err := os.ReadFile(hostHosts); err == nil && content(t, path) != string(want) {
		t.Error("not the node's")
	}
	if err := WriteHosts(filepath.Join(path, "none"), "a", nil); err == nil {
		t.Error("written nowhere")
	}
}

func TestWriteHostname(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hostname")
	node, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, hostname, want string }{{"given", "web-0", "web-0\n"}, {"node's", "", node + "\n"}} {
		t.Run(tt.name, func(t *testing.T) {
			if err := WriteHostname(path, tt.hostname); err != nil || content(t, path) != tt.want {
				t.Errorf("%v, %q", err, content(t, path))
			}
		})
	}
	if err := WriteHostname(path, "a b"); !errors.Is(err, errdefs.ErrInvalid) {
		t.Errorf("%v", err)
	}
}

func TestShm(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, tt := range []struct {
		name       string
		size, want int64
	}{{"default", 0, 64 << 20}, {"asked for", 1 << 20, 1 << 20}} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "shm")
			defer UnmountShm(path)
			for range 2 {
				if err := MountShm(path, tt.size); err != nil {
					t.Fatal(err)
				}
			}
			var fs unix.Statfs_t
			if err := unix.Statfs(path, &fs); err != nil {
				t.Fatal(err)
			}
			flags := int64(unix.ST_NOSUID | unix.ST_NODEV | unix.ST_NOEXEC)
			if fs.Type != unix.TMPFS_MAGIC || int64(fs.Blocks)*fs.Bsize != tt.want || fs.Flags&flags != flags {
				t.Errorf("type %x, %d bytes, flags %x", fs.Type, int64(fs.Blocks)*fs.Bsize, fs.Flags)
			}
			if st, err := os.Stat(path); err != nil || st.Mode() != os.ModeDir|os.ModeSticky|0o777 {
				t.Errorf("mode %v, %v", st.Mode(), err)
			}
			f, err := os.Create(filepath.Join(path, "busy"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			for range 2 {
				if err := UnmountShm(path); err != nil {
					t.Fatal(err)
				}
			}
			if b := content(t, "/proc/self/mountinfo"); strings.Contains(b, path) {
				t.Error("still mounted")
			}
			if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("mount point is left: %v", err)
			}
		})
	}
}
