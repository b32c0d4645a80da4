package overlay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/disktest"
	"github.com/gantry-cri/gantry/stage0/errdefs"
)

func TestDetect(t *testing.T) {
	fsType := func(magic int64) func(string, *unix.Statfs_t) error {
		return func(_ string, st *unix.Statfs_t) error { st.Type = magic; return nil }
	}
	lists := t.TempDir()
	with, without := filepath.Join(lists, "with"), filepath.Join(lists, "without")
	for path, list := range map[string]string{with: "nodev\tproc\nnodev\toverlay\n", without: "nodev\tproc\n\text4\n"} {
		if err := os.WriteFile(path, []byte(list), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	trial := func(refused, err error) func(context.Context, string) (error, error) {
		return func(context.Context, string) (error, error) { return refused, err }
	}
	works, fails := trial(nil, nil), trial(unix.EINVAL, nil)
	tests := []struct {
		name   string
		node   node
		reason string
	}{
		{"ext4", node{fsType(unix.EXT4_SUPER_MAGIC), unix.Getdents, with, works, nil}, ""},
		{"aufs", node{fsType(magicAUFS), unix.Getdents, with, works, nil}, "unsupported filesystem: aufs"},
		{"zfs", node{fsType(magicZFS), unix.Getdents, with, works, nil}, "unsupported filesystem: zfs"},
		{"XFS with ftype=0", node{fsType(unix.XFS_SUPER_MAGIC), untyped, with, works, nil}, "unsupported filesystem: missing d_type support"},
		{"module that the mount loads", node{fsType(unix.EXT4_SUPER_MAGIC), unix.Getdents, without, works, nil}, ""},
		{"kernel without", node{fsType(unix.EXT4_SUPER_MAGIC), unix.Getdents, without, fails, nil}, "overlay entry not present in " + without},
		{"no list", node{fsType(unix.EXT4_SUPER_MAGIC), unix.Getdents, "/nonexistent", fails, nil}, "cannot open /nonexistent: open /nonexistent: no such file or directory"},
		{"trial", node{fsType(unix.EXT4_SUPER_MAGIC), unix.Getdents, with, fails, nil}, "trial mount: invalid argument"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := newSite(t, t.TempDir()).detect(t.Context(), tt.node)
			if err != nil || got.Reason != tt.reason || got.OK != (tt.reason == "") {
				t.Errorf("detect = %+v, %v; want %q", got, err, tt.reason)
			}
		})
	}
	full := node{fsType(unix.EXT4_SUPER_MAGIC), unix.Getdents, with, trial(nil, unix.ENOSPC), nil}
	if _, err := newSite(t, t.TempDir()).detect(t.Context(), full); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a trial that could not be made: %v", err)
	}
	if _, err := newSite(t, filepath.Join(lists, "absent")).Detect(t.Context()); !errors.Is(err, unix.ENOENT) {
		t.Errorf("Detect of nothing: %v", err)
	}
}

func newSite(t *testing.T, dir string) Site {
	t.Helper()
	return Site{Dir: dir, Known: filepath.Join(t.TempDir(), "overlay")}
}

// TestTrialOnce holds that a trial that succeeds is made once a device, and one
// that fails again and again.
func TestTrialOnce(t *testing.T) {
	var refused error
	trials := 0
	n := node{statfs: unix.Statfs, getdents: unix.Getdents, filesystems: "/proc/filesystems"}
	n.trial = func(context.Context, string) (error, error) { trials++; return refused, nil }
	s := newSite(t, t.TempDir())
	look := func(ok bool, want int) {
		t.Helper()
		if got, err := s.detect(t.Context(), n); err != nil || got.OK != ok || trials != want {
			t.Errorf("detect = %+v, %v after %d trials; want %v after %d", got, err, trials, ok, want)
		}
	}
	refused = unix.EPERM
	look(false, 1)
	look(false, 2)
	refused = nil
	look(true, 3)
	look(true, 3)
	was, err := os.ReadFile(s.Known)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.Known, bytes.Replace(was, []byte("boot "), []byte("boot 0"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	look(true, 4) // the file is of another boot
	if now, err := os.ReadFile(s.Known); err != nil || !bytes.Equal(now, was) {
		t.Errorf("remembers %q, %v; want %q alone", now, err, was)
	}
	n.statfs = func(path string, st *unix.Statfs_t) error {
		err := unix.Statfs(path, st)
		st.Fsid.Val[0]++
		return err
	}
	look(true, 5) // another file system on the same device
}

// untyped answers as a file system that does not keep entries' types.
func untyped(fd int, buf []byte) (int, error) {
	n, err := unix.Getdents(fd, buf)
	for b := buf[:max(n, 0)]; len(b) > 18; b = b[int(b[16])|int(b[17])<<8:] {
		b[18] = unix.DT_UNKNOWN
	}
	return n, err
}

func TestDetectHere(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	s := newSite(t, dir)
	left := filepath.Join(dir, "tmp", trialName, "merged") // by a trial that was killed
	if err := os.MkdirAll(left, 0o700); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if got, err := s.Detect(t.Context()); err != nil || !got.OK {
			t.Errorf("Detect = %+v, %v", got, err)
		}
	}
	if entries, err := os.ReadDir(filepath.Join(dir, "tmp")); err != nil || len(entries) != 0 {
		t.Errorf("left %v, %v", entries, err)
	}
	if mounts, err := os.ReadFile("/proc/self/mounts"); err != nil || bytes.Contains(mounts, []byte(dir)) {
		t.Errorf("a mount is left in %s, or %v", dir, err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(dir, 0) }()
	// Neither can be copied to it: no reason to go on without overlay.
	if got, err := s.Detect(t.Context()); !errors.Is(err, unix.EROFS) {
		t.Errorf("Detect of a read-only directory = %+v, %v", got, err)
	}
}

// TestDetectOnFilesystems asks the kernel itself.
func TestDetectOnFilesystems(t *testing.T) {
	for _, tt := range []struct{ name, reason string }{
		{"ext4 -O ^filetype", "unsupported filesystem: missing d_type support"},
		{"ext4", ""},
		{"xfs", ""},
		{"btrfs", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := newSite(t, disktest.New(t, tt.name).Dir).Detect(t.Context())
			if err != nil || got.Reason != tt.reason || got.OK != (tt.reason == "") {
				t.Errorf("Detect = %+v, %v; want %q", got, err, tt.reason)
			}
		})
	}
}

// TestDetectOnOverlay holds that the trial finds what no list has: overlay cannot
// write to an overlay, which is what a data directory in a container lies on.
func TestDetectOnOverlay(t *testing.T) {
	trees, p := plan(t, "a")
	if err := errors.Join(Make(trees, p), Mount(trees, p)); err != nil {
		t.Fatal(err)
	}
	got, err := newSite(t, p.Target).Detect(t.Context())
	if want := "trial mount: mount: invalid argument"; err != nil || got.Reason != want {
		t.Errorf("Detect = %+v, %v; want %q", got, err, want)
	}
}

// plan lays trees with one file each below a directory with an awkward name.
func plan(t *testing.T, names ...string) (string, Plan) {
	t.Helper()
	return planIn(t, t.TempDir(), names...)
}

func planIn(t testing.TB, base string, names ...string) (string, Plan) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := filepath.Join(base, `a:b,c\d e`)
	trees := filepath.Join(dir, "trees")
	for _, name := range names {
		root := filepath.Join(trees, name, "rootfs")
		if err := os.MkdirAll(root, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, f := range []string{name, "all"} {
			if err := os.WriteFile(filepath.Join(root, f), []byte(name), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	p := Plan{
		Lower: names, Upper: filepath.Join(dir, "pod", "upper"), Work: filepath.Join(dir, "pod", "work"),
		Target: filepath.Join(dir, "merged"),
	}
	for _, d := range []string{trees, p.Target} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if err := Unmount(p.Target); err != nil {
			t.Error(err)
		}
	})
	return trees, p
}

func TestMount(t *testing.T) {
	many := make([]string, 127)
	for i := range many {
		many[i] = fmt.Sprintf("tree%08d", i)
	}
	most := make([]string, MaxStack)
	for i := range most {
		most[i] = fmt.Sprintf("tree%08d", i)
	}
	for _, names := range [][]string{{}, {"a"}, {"c", "b", "a"}, {"a", "b", "a"}, many, most} {
		t.Run(fmt.Sprint(len(names)), func(t *testing.T) {
			trees, p := plan(t, names...)
			if err := Make(trees, p); err != nil {
				t.Fatal(err)
			}
			if err := Mount(trees, p); err != nil {
				t.Fatal(err)
			}
			if len(names) > 0 {
				if b, err := os.ReadFile(filepath.Join(p.Target, "all")); err != nil || string(b) != names[0] {
					t.Errorf("all = %q, %v; want %q", b, err, names[0])
				}
			}
			for _, name := range names {
				if _, err := os.Lstat(filepath.Join(p.Target, name)); err != nil {
					t.Error(err)
				}
			}
			if err := os.WriteFile(filepath.Join(p.Target, "new"), nil, 0o600); err != nil {
				t.Error(err)
			}
			if left, err := os.ReadDir(filepath.Dir(p.Target)); err != nil || len(left) > 3 {
				t.Errorf("left %v, %v; want trees, pod and merged", left, err)
			}
			if _, err := os.Lstat(filepath.Join(p.Upper, "new")); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestMountReadOnly mounts trees without an upper.
func TestMountReadOnly(t *testing.T) {
	trees, p := plan(t, "a", "b")
	p.Upper, p.Work = "", ""
	if err := Mount(trees, p); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(p.Target, "new"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("write: %v", err)
	}
}

func TestMountRefuses(t *testing.T) {
	tooMany := make([]string, MaxStack+1)
	for i := range tooMany {
		tooMany[i] = fmt.Sprintf("tree%08d", i)
	}
	tests := []struct {
		name   string
		trees  []string
		change func(*Plan)
		is     error
	}{
		{"missing tree", []string{"a"}, func(p *Plan) { p.Lower = []string{"a", "gone"} }, errdefs.ErrNotFound},
		{"one tree alone", []string{"a"}, func(p *Plan) { p.Upper, p.Work = "", "" }, errdefs.ErrInvalid},
		{"nothing", nil, func(p *Plan) { p.Upper, p.Work = "", "" }, errdefs.ErrInvalid},
		{"upper without work", []string{"a"}, func(p *Plan) { p.Work = "" }, errdefs.ErrInvalid},
		{"too many", tooMany, func(*Plan) {}, errdefs.ErrUnsupported},
		{"no target", []string{"a"}, func(p *Plan) { p.Target += "-gone" }, unix.ENOENT},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			trees, p := plan(t, tt.trees...)
			if err := Make(trees, p); err != nil {
				t.Fatal(err)
			}
			tt.change(&p)
			if err := Mount(trees, p); !errors.Is(err, tt.is) {
				t.Errorf("Mount: %v, want %v", err, tt.is)
			}
		})
	}
}

// TestMakeOnAFullDisk holds that callers can tell a disk without inodes.
func TestMakeOnAFullDisk(t *testing.T) {
	trees, p := plan(t, "a")
	full := t.TempDir()
	if err := unix.Mount("tmpfs", full, "tmpfs", 0, "nr_inodes=2"); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(full, 0) }()
	p.Upper, p.Work = filepath.Join(full, "upper"), filepath.Join(full, "work")
	if err := Make(trees, p); !errors.Is(err, errdefs.ErrNoSpace) {
		t.Errorf("got %v, want ErrNoSpace", err)
	}
}

// TestMake holds that a new upper looks like the stack's root and one that
// exists stays as it is.
func TestMake(t *testing.T) {
	trees, p := plan(t, "a", "b")
	root := filepath.Join(trees, "a", "rootfs")
	if err := errors.Join(os.Lchown(root, 5, 6), os.Chmod(root, 0o1751)); err != nil {
		t.Fatal(err)
	}
	// What an interrupted Make left.
	if err := os.MkdirAll(p.Upper+".new", 0o700); err != nil {
		t.Fatal(err)
	}
	want := unix.Stat_t{}
	if err := errors.Join(Make(trees, p), unix.Lstat(root, &want)); err != nil {
		t.Fatal(err)
	}
	var got unix.Stat_t
	if err := unix.Lstat(p.Upper, &got); err != nil {
		t.Fatal(err)
	}
	if got.Mode != want.Mode || got.Uid != 5 || got.Gid != 6 || got.Mtim != want.Mtim {
		t.Errorf("upper is %o %d:%d %v", got.Mode, got.Uid, got.Gid, got.Mtim)
	}
	if err := errors.Join(os.Chmod(p.Upper, 0o700), Make(trees, p), unix.Lstat(p.Upper, &got)); err != nil {
		t.Fatal(err)
	}
	if got.Mode&0o7777 != 0o700 {
		t.Errorf("an existing upper was changed to %o", got.Mode)
	}
}

func TestUnmount(t *testing.T) {
	trees, p := plan(t, "a")
	if err := errors.Join(Make(trees, p), Mount(trees, p)); err != nil {
		t.Fatal(err)
	}
	busy, err := os.Open(filepath.Join(p.Target, "a"))
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	for range 2 {
		if err := Unmount(p.Target); err != nil {
			t.Errorf("Unmount: %v", err)
		}
	}
	if entries, err := os.ReadDir(p.Target); err != nil || len(entries) != 0 {
		t.Errorf("still there: %v, %v", entries, err)
	}
	if err := Unmount(p.Target + "-gone"); err != nil {
		t.Errorf("Unmount of nothing: %v", err)
	}
}

func TestEscape(t *testing.T) {
	if got := Escape(`/a:b,c\d`); got != `/a\:b\,c\\d` {
		t.Errorf("Escape = %s", got)
	}
}

// TestMountFromSeveralStores stacks trees of the directory on trees of another one,
// few and so many that they are mounted through links.
func TestMountFromSeveralStores(t *testing.T) {
	for _, n := range []int{1, 200} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			trees, p := plan(t, "own")
			var others []string
			for i := range n {
				others = append(others, fmt.Sprintf("other%d", i))
			}
			elsewhere, _ := plan(t, others...)
			for _, name := range others {
				p.Lower = append(p.Lower, filepath.Join(elsewhere, name))
			}
			if err := errors.Join(Make(trees, p), Mount(trees, p)); err != nil {
				t.Fatal(err)
			}
			for file, want := range map[string]string{"all": "own", "own": "own", others[n-1]: others[n-1]} {
				if got, err := os.ReadFile(filepath.Join(p.Target, file)); err != nil || string(got) != want {
					t.Errorf("%s: %q, %v", file, got, err)
				}
			}
		})
	}
}
