package overlay

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/disktest"
	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/idmap"
)

// insideEnv makes this test a program that a test runs in a user namespace.
const insideEnv = "GANTRY_OVERLAY_INSIDE"

func TestMain(m *testing.M) {
	if os.Getenv(insideEnv) == "" {
		os.Exit(m.Run())
	}
	if err := inside(os.Args[1], os.Args[2:]); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// inside does one thing with a file.
func inside(what string, args []string) error {
	switch what {
	case "whoami":
		status, err := os.ReadFile("/proc/self/status")
		_, caps, _ := strings.Cut(string(status), "CapEff:\t")
		caps, _, _ = strings.Cut(caps, "\n")
		fmt.Print(os.Geteuid(), " ", os.Getegid(), " ", caps)
		return err
	case "stat":
		var st unix.Stat_t
		err := unix.Lstat(args[0], &st)
		fmt.Printf("%d:%d", st.Uid, st.Gid)
		return err
	case "append":
		f, err := os.OpenFile(args[0], os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
		if err != nil {
			return err
		}
		_, err = f.WriteString("more")
		return errors.Join(err, f.Close())
	case "chmod":
		mode, err := strconv.ParseUint(args[1], 8, 12)
		return errors.Join(err, unix.Chmod(args[0], uint32(mode)))
	case "chown":
		return os.Lchown(args[0], 42, 43)
	case "link":
		return os.Link(args[0], args[1])
	}
	return errors.New("what?")
}

var shifted = idmap.Map{
	UIDs: []specs.LinuxIDMapping{{HostID: 100000, Size: 50000}},
	GIDs: []specs.LinuxIDMapping{{HostID: 200000, Size: 50000}},
}

// runInside runs a program as a user of a user namespace with the map.
func runInside(uid uint32, program string, args ...string) (string, error) {
	cmd := exec.Command(program, args...)
	cmd.Env = []string{insideEnv + "=1"}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{HostID: 100000, Size: 50000}},
		GidMappings: []syscall.SysProcIDMap{{HostID: 200000, Size: 50000}},
		Credential:  &syscall.Credential{Uid: uid, Gid: uid, NoSetGroups: true},
	}
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%v: %w: %s", args, err, out)
	}
	return string(out), err
}

// open lets everybody through to a directory of the test's.
func open(t *testing.T, dir string) {
	t.Helper()
	for ; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := unix.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// capNetRaw is cap_net_raw=ep as setcap writes it.
var capNetRaw = []byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

// accessOf5 lets user 5 read, as a file keeps it.
var accessOf5 = []byte("\x02\x00\x00\x00" + "\x01\x00\x06\x00\xff\xff\xff\xff" + "\x02\x00\x04\x00\x05\x00\x00\x00" +
	"\x04\x00\x04\x00\xff\xff\xff\xff" + "\x10\x00\x04\x00\xff\xff\xff\xff" + "\x20\x00\x04\x00\xff\xff\xff\xff")

// layShifted makes a tree with files of many owners, mounts it with shifted ones, and
// returns its root directory.
func layShifted(t *testing.T, base string) (root string, p Plan) {
	t.Helper()
	trees, p := planIn(t, base, "a", "b")
	p.IDs = &shifted
	open(t, filepath.Dir(trees))
	root = filepath.Join(trees, "b", "rootfs")
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []struct {
		name     string
		uid, gid int
		mode     uint32
		content  []byte
	}{
		{"plain", 1000, 1001, 0o640, []byte("of the image")},
		{"owned", 1000, 1001, 0o644, nil},
		{"linked", 7, 8, 0o644, nil},
		{"listed", 7, 8, 0o644, nil},
		{"stranger", 70000, 8, 0o644, nil},
		{"setuid", 1000, 1000, 0o6755, self},
		{"capable", 0, 0, 0o755, self},
	} {
		path := filepath.Join(root, f.name)
		if err := errors.Join(os.WriteFile(path, f.content, 0o600), os.Lchown(path, f.uid, f.gid), unix.Chmod(path, f.mode)); err != nil {
			t.Fatal(err)
		}
	}
	top := filepath.Join(trees, "a", "rootfs")
	if err := errors.Join(
		unix.Setxattr(filepath.Join(root, "capable"), "security.capability", capNetRaw, 0),
		unix.Setxattr(filepath.Join(root, "listed"), "system.posix_acl_access", accessOf5, 0),
		os.Link(filepath.Join(root, "linked"), filepath.Join(root, "link")),
		os.Lchown(top, 3, 4), unix.Chmod(top, 0o751),
		Make(trees, p), Mount(trees, p),
	); err != nil {
		t.Fatal(err)
	}
	return root, p
}

func owner(t *testing.T, path string) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Error(err)
	}
	return fmt.Sprintf("%d:%d", st.Uid, st.Gid)
}

// onDisks runs a test where the machine's files are, and on file systems made for it.
func onDisks(t *testing.T, test func(t *testing.T, dir string)) {
	t.Run("here", func(t *testing.T) { test(t, t.TempDir()) })
	for _, mkfs := range []string{"ext4", "xfs", "btrfs"} {
		t.Run(mkfs, func(t *testing.T) { test(t, disktest.New(t, mkfs).Dir) })
	}
}

// TestMapped looks at a mount from within the user namespace and from outside, and at
// what lies on the disk when files were changed.
func TestMapped(t *testing.T) {
	onDisks(t, func(t *testing.T, dir string) {
		root, p := layShifted(t, dir)
		merged := func(name string) string { return filepath.Join(p.Target, name) }
		see := func(name, inside, outside string) {
			t.Helper()
			if got, err := runInside(0, "/proc/self/exe", "stat", merged(name)); err != nil || got != inside {
				t.Errorf("%s has owner %s inside, %v; want %s", name, got, err, inside)
			}
			if got := owner(t, merged(name)); got != outside {
				t.Errorf("%s has owner %s outside, want %s", name, got, outside)
			}
		}
		do := func(args ...string) {
			t.Helper()
			if _, err := runInside(0, "/proc/self/exe", args...); err != nil {
				t.Error(err)
			}
		}
		see(".", "3:4", "100003:200004")
		see("plain", "1000:1001", "101000:201001")
		see("stranger", "65534:8", "65534:200008") // as the kernel shows who is not there

		do("append", merged("plain"))
		do("chown", merged("owned"))
		do("append", merged("linked"))
		do("append", merged("listed"))
		do("append", merged("new"))
		do("link", merged("plain"), merged("second"))
		do("chmod", merged("capable"), "711")
		see("plain", "1000:1001", "101000:201001")
		see("link", "7:8", "100007:200008") // whose other name was copied up
		for name, want := range map[string]string{
			".": "100003:200004", "plain": "101000:201001", "second": "101000:201001", "owned": "100042:200043",
			"linked": "100007:200008", "new": "100000:200000", "capable": "100000:200000",
		} {
			if got := owner(t, filepath.Join(p.Upper, name)); got != want {
				t.Errorf("upper %s is owned by %s, want %s", name, got, want)
			}
		}
		value := make([]byte, 64)
		n, err := unix.Getxattr(filepath.Join(p.Upper, "listed"), "system.posix_acl_access", value)
		want := uint32(100005)
		if _, err := unix.Getxattr(filepath.Join(p.Upper, "listed"), "trusted.SGI_ACL_FILE", nil); err == nil {
			want = 5 // Linux copies XFS's own spelling after the one that it maps: docs/rootfs.md
		}
		if err != nil || n != len(accessOf5) || binary.LittleEndian.Uint32(value[16:]) != want {
			t.Errorf("upper has access list %x, %v; want user %d in it", value[:max(n, 0)], err, want)
		}
		for name, want := range map[string]string{"plain": "1000:1001", "owned": "1000:1001", "linked": "7:8", "capable": "0:0"} {
			if got := owner(t, filepath.Join(root, name)); got != want {
				t.Errorf("the tree's %s is owned by %s, want %s", name, got, want)
			}
		}
		if got, err := os.ReadFile(filepath.Join(p.Upper, "plain")); err != nil || string(got) != "of the imagemore" {
			t.Errorf("copied up: %q, %v", got, err)
		}
		if out, err := runInside(0, "/proc/self/exe", "append", merged("stranger")); err == nil {
			t.Errorf("a file of nobody's was written: %s", out)
		}
	})
}

// TestMappedPrivileges holds that programs with a setuid bit or capabilities get in the
// user namespace what they have in the image, before they are copied up and after.
func TestMappedPrivileges(t *testing.T) {
	onDisks(t, func(t *testing.T, dir string) {
		_, p := layShifted(t, dir)
		programs := map[string]string{"setuid": "1000 1000 0000000000000000", "capable": "5 5 0000000000002000"}
		for _, copied := range []bool{false, true} {
			for name, want := range programs {
				path := filepath.Join(p.Target, name)
				if got, err := runInside(5, path, "whoami"); err != nil || got != want {
					t.Errorf("%s (copied up: %t) runs as %s, %v; want %s", name, copied, got, err, want)
				}
				if !copied {
					mode := map[string]string{"setuid": "6711", "capable": "711"}[name]
					if _, err := runInside(0, "/proc/self/exe", "chmod", path, mode); err != nil {
						t.Error(err)
					}
				}
			}
		}
		value := make([]byte, 64)
		n, err := unix.Getxattr(filepath.Join(p.Upper, "capable"), "security.capability", value)
		if err != nil || n != 24 || binary.LittleEndian.Uint32(value[20:]) != 100000 {
			t.Errorf("upper has capabilities %x, %v; want those of root 100000", value[:max(n, 0)], err)
		}
	})
}

// TestMountMapped mounts short and long stacks, below awkward names.
func TestMountMapped(t *testing.T) {
	for _, n := range []int{1, 3, 130, MaxStack} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			names := make([]string, n)
			for i := range names {
				names[i] = fmt.Sprintf("tree%08d", i)
			}
			trees, p := plan(t, names...)
			p.IDs = &shifted
			if err := errors.Join(Make(trees, p), Mount(trees, p)); err != nil {
				t.Fatal(err)
			}
			for _, name := range names {
				if got := owner(t, filepath.Join(p.Target, name)); got != "100000:200000" {
					t.Errorf("%s is owned by %s", name, got)
				}
			}
			if b, err := os.ReadFile(filepath.Join(p.Target, "all")); err != nil || string(b) != names[0] {
				t.Errorf("all = %q, %v; want %q", b, err, names[0])
			}
			if left, err := os.ReadDir(filepath.Dir(p.Target)); err != nil || len(left) != 3 {
				t.Errorf("left %v, %v; want trees, pod and merged", left, err)
			}
			if now := mounts(t); len(now) != 1 {
				t.Errorf("mounts %v, want one", now)
			}
			if err := Unmount(p.Target); err != nil {
				t.Error(err)
			}
			if left, err := os.ReadDir(p.Target); err != nil || len(left) != 0 {
				t.Errorf("left in the mount point: %v, %v", left, err)
			}
			if now := mounts(t); len(now) != 0 {
				t.Errorf("mounts %v are left", now)
			}
		})
	}
}

// mounts are those at and below the directories of this test.
func mounts(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	test, _, _ := strings.Cut(t.Name(), "/")
	return slices.DeleteFunc(strings.Split(string(text), "\n"), func(line string) bool { return !strings.Contains(line, "/"+test) })
}

// TestMountMappedRefused holds that what goes wrong leaves no mount.
func TestMountMappedRefused(t *testing.T) {
	unmappable := t.TempDir()
	if os.Getuid() == 0 {
		if err := unix.Mount("ramfs", unmappable, "ramfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = unix.Unmount(unmappable, 0) }()
		if err := os.MkdirAll(filepath.Join(unmappable, "tree", "rootfs"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	before := mounts(t)
	for _, tt := range []struct {
		name   string
		change func(*Plan)
		is     error
	}{
		{"no tree", func(p *Plan) { p.Lower = append(p.Lower, "gone") }, errdefs.ErrNotFound},
		{"no target", func(p *Plan) { p.Target += "-gone" }, unix.ENOENT},
		{"no work directory", func(p *Plan) { p.Work += "-gone" }, unix.ENOENT},
		{"a file system without owners to map", func(p *Plan) { p.Lower = append(p.Lower, filepath.Join(unmappable, "tree")) }, unix.EINVAL},
		{"no map", func(p *Plan) { p.IDs = &idmap.Map{} }, unix.EINVAL},
	} {
		t.Run(tt.name, func(t *testing.T) {
			trees, p := plan(t, "a")
			if err := Make(trees, p); err != nil {
				t.Fatal(err)
			}
			p.IDs = &shifted
			tt.change(&p)
			if err := Mount(trees, p); !errors.Is(err, tt.is) {
				t.Errorf("Mount: %v, want %v", err, tt.is)
			}
			if now := mounts(t); !slices.Equal(now, before) {
				t.Errorf("mounts %v, before %v", now, before)
			}
		})
	}
}

// TestMakeMapped holds that the root directory of a mount belongs to somebody.
func TestMakeMapped(t *testing.T) {
	trees, p := plan(t, "a")
	p.IDs = &shifted
	root := rootOf(trees, "a")
	if err := os.Lchown(root, 50000, 0); err != nil {
		t.Fatal(err)
	}
	if err := Make(trees, p); !errors.Is(err, errdefs.ErrInvalid) || !strings.Contains(err.Error(), "owner 50000:0") {
		t.Errorf("Make: %v", err)
	}
	if err := os.Lchown(root, 49999, 0); err != nil {
		t.Fatal(err)
	}
	if err := Make(trees, p); err != nil || owner(t, p.Upper) != "149999:200000" {
		t.Errorf("upper is owned by %s, %v", owner(t, p.Upper), err)
	}
}

func TestDetectIDMapped(t *testing.T) {
	var refused, failed error
	var tried [][]string
	n := machine
	n.trial = func(context.Context, string) (error, error) { return nil, nil }
	n.trialMapped = func(_ context.Context, _ string, trees []string) (error, error) {
		tried = append(tried, trees)
		return refused, failed
	}
	s, near, far := newSite(t, t.TempDir()), t.TempDir(), disktest.New(t, "ext4").Dir
	look := func(reason string, trees ...string) [][]string {
		t.Helper()
		tried = nil
		got, err := s.detectIDMapped(t.Context(), trees, n)
		if err != nil || got.OK != (reason == "") || got.Reason != reason {
			t.Errorf("detectIDMapped = %+v, %v; want %q", got, err, reason)
		}
		return tried
	}
	want := func(got [][]string, want ...[]string) {
		t.Helper()
		if !slices.EqualFunc(got, want, slices.Equal) {
			t.Errorf("tried %v, want %v", got, want)
		}
	}
	refused = unix.EINVAL
	want(look("trial mount of id-mapped layers: invalid argument", near), []string{})
	want(look("trial mount of id-mapped layers: invalid argument", near), []string{}) // it may work by now
	refused = nil
	want(look("", near, filepath.Join(near, "gone")), []string{})
	want(look("", near, near))
	refused = unix.EPERM
	want(look("trial mount of id-mapped layers: operation not permitted", near, far, far), []string{far})
	refused = nil
	want(look("", far), []string{far})
	want(look("", near, far))
	if got, err := s.detect(t.Context(), n); err != nil || !got.OK {
		t.Errorf("detect = %+v, %v", got, err)
	}
	failed = unix.ENOSPC
	if _, err := newSite(t, near).detectIDMapped(t.Context(), nil, n); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a trial that could not be made: %v", err)
	}
	n.getdents = untyped
	want(look("unsupported filesystem: missing d_type support", near))
}

// TestDetectIDMappedHere asks the kernel itself.
func TestDetectIDMappedHere(t *testing.T) {
	onDisks(t, func(t *testing.T, dir string) {
		_, p := planIn(t, t.TempDir(), "elsewhere")
		tree := filepath.Join(filepath.Dir(p.Target), "trees", "elsewhere")
		s := newSite(t, dir)
		for range 2 {
			if got, err := s.DetectIDMapped(t.Context(), []string{tree}); err != nil || !got.OK {
				t.Errorf("DetectIDMapped = %+v, %v", got, err)
			}
		}
		unmappable := filepath.Join(t.TempDir(), "ramfs")
		if err := errors.Join(os.Mkdir(unmappable, 0o700), unix.Mount("ramfs", unmappable, "ramfs", 0, "")); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = unix.Unmount(unmappable, 0) }()
		tree = filepath.Join(unmappable, "tree")
		if err := os.MkdirAll(filepath.Join(tree, "rootfs"), 0o755); err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprintf("trial mount of id-mapped layers: tree %s: mount_setattr id map %s/rootfs: invalid argument", tree, tree)
		if got, err := s.DetectIDMapped(t.Context(), []string{tree}); err != nil || got.OK || got.Reason != want {
			t.Errorf("DetectIDMapped = %+v, %v; want %q", got, err, want)
		}
		if entries, err := os.ReadDir(filepath.Join(dir, "tmp")); err != nil || len(entries) != 0 {
			t.Errorf("left %v, %v", entries, err)
		}
	})
}

// BenchmarkMount mounts and unmounts six trees, plain and with mapped owners.
func BenchmarkMount(b *testing.B) {
	for _, tt := range []struct {
		name string
		ids  *idmap.Map
	}{{"plain", nil}, {"mapped", &shifted}} {
		b.Run(tt.name, func(b *testing.B) {
			trees, p := planIn(b, b.TempDir(), "a", "b", "c", "d", "e", "f")
			p.IDs = tt.ids
			if err := Make(trees, p); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if err := errors.Join(Mount(trees, p), Unmount(p.Target)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
