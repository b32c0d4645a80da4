package render_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/disktest"
	"github.com/gantry-cri/gantry/stage0/durable"
	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/idmap"
	"github.com/gantry-cri/gantry/stage0/overlay"
	"github.com/gantry-cri/gantry/stage0/render"
)

// capability is cap_net_raw+ep as a file keeps it: version 2, little endian.
const capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// filesystems are those that the copy is tried on, and whether they clone.
var filesystems = []struct {
	mkfs   string
	clones bool
}{
	{"ext4 -O ^filetype", false},
	{"ext4", false},
	{"xfs", true},
	{"btrfs", true},
}

// TestCopyIsWhatOverlayShows compares a copy with the overlay of the same trees,
// bit for bit, on file systems of several kinds.
func TestCopyIsWhatOverlayShows(t *testing.T) {
	for _, f := range filesystems {
		t.Run(f.mkfs, func(t *testing.T) {
			dir := disktest.New(t, f.mkfs).Dir
			trees := []string{"top", "middle", "base"}
			makeTrees(t, filepath.Join(dir, "trees"))
			before := free(t, dir)
			j := job(dir, trees...)
			j.Survival = durable.PowerCut
			if err := j.Run(t.Context()); err != nil {
				t.Fatal(err)
			}
			compare(t, snapshot(t, j.To), snapshot(t, mount(t, dir, trees)))
			if took := before - free(t, dir); (took < bigSize/4) != f.clones {
				t.Errorf("a copy with a file of %d bytes took %d of the disk", bigSize, took)
			}
			for _, name := range []string{"sparse", "hole"} {
				path := filepath.Join(j.To, name)
				if st := lstat(t, path); st.Blocks*512 > st.Size/4 {
					t.Errorf("%s: %d of %d bytes are allocated", name, st.Blocks*512, st.Size)
				}
			}
			if names, err := filepath.Glob(j.To + "?*"); err != nil || len(names) != 0 {
				t.Errorf("left %v, %v", names, err)
			}
		})
	}
}

// accessList lets user 5 and group 6 read, as a file keeps it.
const accessList = "\x02\x00\x00\x00" + "\x01\x00\x06\x00\xff\xff\xff\xff" + "\x02\x00\x04\x00\x05\x00\x00\x00" +
	"\x04\x00\x04\x00\xff\xff\xff\xff" + "\x08\x00\x04\x00\x06\x00\x00\x00" + "\x10\x00\x04\x00\xff\xff\xff\xff" + "\x20\x00\x04\x00\xff\xff\xff\xff"

// TestCopyWithMappedOwners compares with what the kernel's id-mapped layers show.
func TestCopyWithMappedOwners(t *testing.T) {
	for _, mkfs := range []string{"ext4", "xfs", "btrfs"} {
		t.Run(mkfs, func(t *testing.T) {
			dir := disktest.New(t, mkfs).Dir
			makeTrees(t, filepath.Join(dir, "trees"))
			base := filepath.Join(dir, "trees", "base", "rootfs")
			j := job(dir, "top", "middle", "base")
			j.IDs = &idmap.Map{
				UIDs: []specs.LinuxIDMapping{{HostID: 100000, Size: 50}},
				GIDs: []specs.LinuxIDMapping{{HostID: 200000, Size: 50}},
			}
			must(t, j.Run(t.Context()))
			p := overlay.Plan{Lower: []string{"top", "middle", "base"}, Target: filepath.Join(t.TempDir(), "merged"), IDs: j.IDs}
			must(t, os.Mkdir(p.Target, 0o700))
			must(t, overlay.Mount(filepath.Join(dir, "trees"), p))
			defer func() { must(t, overlay.Unmount(p.Target)) }()
			compare(t, snapshot(t, j.To), snapshot(t, p.Target))
			if st := lstat(t, j.To+"/var/spool/ping"); st.Uid != 100003 || st.Gid != 200004 {
				t.Errorf("owner 3:4 became %d:%d", st.Uid, st.Gid)
			}
			// Not compared: Linux before 6.2 shows those of overlays as they are in the tree.
			must(t, unix.Lsetxattr(base+"/sparse", "system.posix_acl_access", []byte(accessList), 0))
			must(t, unix.Lsetxattr(base+"/tmp", "system.posix_acl_default", []byte(accessList), 0))
			j.To += "2"
			must(t, j.Run(t.Context()))
			mapped := strings.NewReplacer("\x05\x00\x00\x00", "\xa5\x86\x01\x00", "\x06\x00\x00\x00", "\x46\x0d\x03\x00").Replace(accessList)
			for path, name := range map[string]string{"/sparse": "system.posix_acl_access", "/tmp": "system.posix_acl_default"} {
				value := make([]byte, 100)
				n, err := unix.Lgetxattr(j.To+path, name, value)
				if err != nil || string(value[:n]) != mapped {
					t.Errorf("access list of %s is %q, %v; want %q", path, value[:max(n, 0)], err, mapped)
				}
			}
			must(t, os.Lchown(base+"/sparse", 50, 0))
			j.To += "3"
			if err := j.Run(t.Context()); !errors.Is(err, errdefs.ErrInvalid) || !strings.Contains(err.Error(), `"sparse": owner 50:0`) {
				t.Errorf("an owner that is not mapped: %v", err)
			}
		})
	}
}

// TestCopyToAnotherFilesystem holds that trees may lie elsewhere.
func TestCopyToAnotherFilesystem(t *testing.T) {
	from, to := disktest.New(t, "xfs").Dir, disktest.New(t, "btrfs").Dir
	makeTrees(t, filepath.Join(from, "trees"))
	listed := filepath.Join(from, "trees", "base", "rootfs", "sparse")
	must(t, unix.Lsetxattr(listed, "system.posix_acl_access", []byte(accessList), 0))
	j := job(from, "top", "middle", "base")
	j.To = filepath.Join(to, "copy")
	if err := j.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n, err := unix.Lgetxattr(j.To+"/sparse", "trusted.SGI_ACL_FILE", nil); !errors.Is(err, unix.ENODATA) {
		t.Errorf("XFS's own spelling of an access list got into the copy: %d bytes, %v", n, err)
	}
	compare(t, snapshot(t, j.To), snapshot(t, mount(t, from, []string{"top", "middle", "base"})))
}

// TestUmaskAndSetgidParent holds that the copy takes nothing from where it is made.
func TestUmaskAndSetgidParent(t *testing.T) {
	dir := disktest.New(t, "ext4").Dir
	makeTrees(t, filepath.Join(dir, "trees"))
	trees := []string{"top", "middle", "base"}
	want := snapshot(t, mount(t, dir, trees))
	j := job(dir, trees...)
	j.To = filepath.Join(dir, "parent", "copy")
	must(t, os.Mkdir(filepath.Dir(j.To), 0o700))
	must(t, os.Chown(filepath.Dir(j.To), 0, 77))
	must(t, unix.Chmod(filepath.Dir(j.To), 0o2700))
	defer unix.Umask(unix.Umask(0o077))
	must(t, j.Run(t.Context()))
	compare(t, snapshot(t, j.To), want)
}

// TestManyFiles copies directories that are cut into parts, with links among them.
func TestManyFiles(t *testing.T) {
	dir := disktest.New(t, "ext4").Dir
	root := filepath.Join(dir, "trees", "one", "rootfs")
	r := rand.New(rand.NewPCG(1, 1))
	var paths []string
	for d := range 5 {
		sub := filepath.Join(root, fmt.Sprint("d", d), strings.Repeat("x", 200), strings.Repeat("y", 200))
		must(t, os.MkdirAll(sub, 0o755))
		for f := range 700 {
			path := filepath.Join(sub, fmt.Sprint(f))
			if len(paths) > 0 && r.IntN(3) == 0 {
				must(t, os.Link(paths[r.IntN(len(paths))], path))
				continue
			}
			must(t, os.WriteFile(path, fmt.Append(nil, d, f), 0o640))
			paths = append(paths, path)
		}
	}
	j := job(dir, "one")
	must(t, j.Run(t.Context()))
	compare(t, snapshot(t, j.To), snapshot(t, root))
}

// TestManyTrees copies as many trees as overlay stacks.
func TestManyTrees(t *testing.T) {
	dir := disktest.New(t, "ext4").Dir
	names := make([]string, overlay.MaxStack)
	for i := range names {
		names[i] = fmt.Sprintf("t%03d", i)
		root := filepath.Join(dir, "trees", names[i], "rootfs")
		must(t, os.MkdirAll(filepath.Join(root, "in", names[i]), 0o755))
		for _, name := range []string{"all", "in/" + names[i] + "/f", "in/" + fmt.Sprint(i%10)} {
			write(t, filepath.Join(root, name), []byte(names[i]))
		}
	}
	j := job(dir, names...)
	must(t, j.Run(t.Context()))
	compare(t, snapshot(t, j.To), snapshot(t, mount(t, dir, names)))
}

func TestErrors(t *testing.T) {
	dir := disktest.New(t, "ext4 -N 300").Dir
	must(t, os.MkdirAll(filepath.Join(dir, "trees", "one", "rootfs"), 0o755))
	for i := range 200 {
		must(t, os.WriteFile(filepath.Join(dir, "trees", "one", "rootfs", fmt.Sprint(i)), nil, 0o600))
	}
	j := job(dir, "one")
	if err := j.Run(t.Context()); !errors.Is(err, errdefs.ErrNoSpace) {
		t.Errorf("without inodes: %v", err)
	}
	must(t, os.RemoveAll(j.To+".new"))
	ended, cancel := context.WithCancelCause(t.Context())
	cancel(errdefs.ErrBusy)
	if err := j.Run(ended); !errors.Is(err, errdefs.ErrBusy) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := os.Lstat(j.To); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("half a copy is visible: %v", err)
	}
	must(t, os.RemoveAll(j.To+".new"))
	if err := job(dir, "absent").Run(t.Context()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a tree that is not there: %v", err)
	}
}

const bigSize = 40 << 20

// makeTrees makes three trees as package tree extracts layers, base at the bottom.
func makeTrees(t *testing.T, trees string) {
	t.Helper()
	base, middle, top := filepath.Join(trees, "base", "rootfs"), filepath.Join(trees, "middle", "rootfs"), filepath.Join(trees, "top", "rootfs")
	for _, d := range []string{
		base + "/usr/bin", base + "/var/spool", base + "/opt/app", base + "/gone/below", base + "/again/old", base + "/tmp", base + "/dirlink",
		middle + "/opt/app/new", middle + "/again", middle + "/became/dir", middle + "/usr/bin",
		top + "/opt", top + "/var", top + "/again/more",
	} {
		must(t, os.MkdirAll(d, 0o755))
	}
	big := make([]byte, bigSize)
	_, _ = rand.NewChaCha8([32]byte{}).Read(big)
	write(t, base+"/big", big)
	write(t, base+"/usr/bin/su", []byte("su"))
	must(t, errors.Join(os.Chown(base+"/usr/bin/su", 3, 4), unix.Chmod(base+"/usr/bin/su", 0o6755)))
	write(t, base+"/usr/bin/ping", []byte("ping"))
	must(t, os.Chown(base+"/usr/bin/ping", 3, 4))
	must(t, unix.Lsetxattr(base+"/usr/bin/ping", "security.capability", []byte(capability), 0))
	must(t, unix.Lsetxattr(base+"/usr/bin/ping", "user.empty", nil, 0))
	must(t, os.Link(base+"/usr/bin/ping", base+"/var/spool/ping"))
	must(t, os.Symlink("usr/bin", base+"/bin"))
	must(t, os.Link(base+"/bin", base+"/bin2"))
	must(t, unix.Lchown(base+"/bin", 8, 9))
	must(t, unix.Lsetxattr(base+"/bin", "trusted.of-link", []byte("x"), 0))
	must(t, unix.Mknod(base+"/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(t, os.Link(base+"/null", base+"/null2"))
	must(t, unix.Mknod(base+"/loop", unix.S_IFBLK|0o600, int(unix.Mkdev(7, 300))))
	must(t, unix.Mkfifo(base+"/fifo", 0o610))
	must(t, unix.Mknod(base+"/socket", unix.S_IFSOCK|0o700, 0))
	must(t, unix.Lsetxattr(base+"/tmp", "user.a", bytes.Repeat([]byte("v"), 300), 0))
	for _, name := range []string{"/gone/below/f", "/again/old/f", "/opt/app/old", "/became", "/removed", "/with\nnew\"line:,\\", "/\xff\xfe"} {
		write(t, base+name, []byte(name))
	}
	sparse(t, base+"/sparse", 8<<20)
	must(t, os.WriteFile(base+"/hole", nil, 0o600))
	must(t, os.Truncate(base+"/hole", 5<<20))

	whiteout(t, middle+"/gone")
	whiteout(t, middle+"/removed")
	write(t, middle+"/opt/app/new/f", []byte("middle"))
	must(t, unix.Lsetxattr(middle+"/opt/app", "trusted.overlay.opaque", []byte("y"), 0))
	must(t, unix.Lsetxattr(middle+"/again", "trusted.overlay.opaque", []byte("y"), 0))
	write(t, middle+"/became/dir/f", []byte("f"))
	write(t, middle+"/usr/bin/su", []byte("middle's"))
	whiteout(t, top+"/usr")
	write(t, top+"/dirlink", []byte("now a file"))
	write(t, top+"/removed", []byte("back"))
	must(t, unix.Lsetxattr(top+"/var", "user.b", []byte("2"), 0))
	must(t, errors.Join(os.Chown(top+"/var", 5, 6), unix.Chmod(top+"/var", 0o1777), os.Chown(top, 1, 2), unix.Chmod(top, 0o751)))
	stamp(t, trees)
}

// stamp gives everything a time of its own, the directories last.
func stamp(t *testing.T, root string) {
	t.Helper()
	var paths []string
	must(t, filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		paths = append(paths, path)
		return err
	}))
	for i, path := range slices.Backward(paths) {
		at := time.Unix(int64(1_500_000_000+1000*i), int64(123_456_789+i))
		ts := []unix.Timespec{unix.NsecToTimespec(at.UnixNano()), unix.NsecToTimespec(at.UnixNano() + 5)}
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, path, ts, unix.AT_SYMLINK_NOFOLLOW))
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	must(t, os.WriteFile(path, data, 0o644))
}

func whiteout(t *testing.T, path string) {
	t.Helper()
	must(t, os.RemoveAll(path))
	must(t, unix.Mknod(path, unix.S_IFCHR, 0))
}

// sparse makes a file with data at the beginning and in the middle.
func sparse(t *testing.T, path string, size int64) {
	t.Helper()
	f, err := os.Create(path)
	must(t, err)
	for _, at := range []int64{0, size / 2} {
		_, err := f.WriteAt(bytes.Repeat([]byte("data"), 5000), at)
		must(t, err)
	}
	must(t, errors.Join(f.Truncate(size), f.Sync(), f.Close()))
}

func job(dir string, trees ...string) render.Job {
	j := render.Job{To: filepath.Join(dir, "copy")}
	for _, name := range trees {
		j.Roots = append(j.Roots, filepath.Join(dir, "trees", name, "rootfs"))
	}
	return j
}

// mount mounts the trees, and fails the test if it cannot.
func mount(t *testing.T, dir string, trees []string) string {
	t.Helper()
	p := overlay.Plan{Lower: trees, Target: filepath.Join(t.TempDir(), "merged")}
	must(t, os.Mkdir(p.Target, 0o700))
	must(t, overlay.Mount(filepath.Join(dir, "trees"), p))
	t.Cleanup(func() { must(t, overlay.Unmount(p.Target)) })
	return p.Target
}

// free is the number of free bytes, when all is written.
func free(t *testing.T, dir string) int64 {
	t.Helper()
	must(t, durable.SyncFS(dir))
	var st unix.Statfs_t
	must(t, unix.Statfs(dir, &st))
	return int64(st.Bfree) * st.Bsize
}

func lstat(t *testing.T, path string) (st unix.Stat_t) {
	t.Helper()
	must(t, unix.Lstat(path, &st))
	return st
}

// snapshot describes all that lies below root, one line a path. Names of one file
// are told by the first of them: an overlay counts links that are hidden.
func snapshot(t *testing.T, root string) map[string]string {
	t.Helper()
	all, first := map[string]string{}, map[uint64]string{}
	must(t, filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		must(t, err)
		st := lstat(t, path)
		s := fmt.Sprintf("%06o %d:%d %d.%09d", st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			s += fmt.Sprintf(" size=%d dev=%x", st.Size, st.Rdev)
			if _, ok := first[st.Ino]; !ok {
				first[st.Ino] = rel
			}
			s += fmt.Sprintf(" file=%q", first[st.Ino])
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b, err := os.ReadFile(path)
			must(t, err)
			s += fmt.Sprintf(" sum=%x", sha256.Sum256(b))
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			must(t, err)
			s += " -> " + target
		}
		all[rel] = s + xattrs(t, path)
		return nil
	}))
	return all
}

func xattrs(t *testing.T, path string) string {
	t.Helper()
	list, value := make([]byte, 4096), make([]byte, 4096)
	n, err := unix.Llistxattr(path, list)
	must(t, err)
	names := strings.FieldsFunc(string(list[:n]), func(r rune) bool { return r == 0 })
	slices.Sort(names)
	var s string
	for _, name := range names {
		if strings.HasPrefix(name, "trusted.SGI_ACL_") {
			continue // XFS tells access lists twice
		}
		n, err := unix.Lgetxattr(path, name, value)
		must(t, err)
		s += fmt.Sprintf(" %s=%q", name, value[:n])
	}
	return s
}

func compare(t *testing.T, got, want map[string]string) {
	t.Helper()
	if len(want) < 10 {
		t.Fatalf("only %d paths to compare with", len(want))
	}
	for path, w := range want {
		if got[path] != w {
			t.Errorf("%q:\n got %s\nwant %s", path, got[path], w)
		}
	}
	for path, g := range got {
		if want[path] == "" {
			t.Errorf("%q is too much: %s", path, g)
		}
	}
}
