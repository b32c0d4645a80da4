package verify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/tree"
)

// selinuxXattr is a label, which is the mount's business and not the layer's.
const selinuxXattr = "security.selinux"

// comparison holds one tree to another, but for the contents of files. Nothing that a
// symbolic link leads to is looked at. Two directories are open at a time, and the
// memory grows with the names of one directory and with hard links alone.
type comparison struct {
	want, got int // descriptors of the roots
	report    func(Finding)
	links     map[uint64]linked // by inode of the wanted tree
}

// linked is a file with several names: the first that was seen, and its inode.
type linked struct {
	path  string
	inode uint64
}

// compareTrees reports how the tree at got differs from that at want.
func compareTrees(ctx context.Context, want, got string, report func(Finding)) error {
	c := &comparison{want: -1, got: -1, report: report, links: map[uint64]linked{}}
	defer c.close()
	var err error
	if c.want, err = openDir(unix.AT_FDCWD, want); err != nil {
		return err
	}
	c.got, err = openDir(unix.AT_FDCWD, got)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		report(Finding{Path: ".", What: Missing, Want: "directory"})
		return nil
	}
	if err != nil {
		return err
	}
	if err := c.root(want, got); err != nil {
		return err
	}
	for todo := []string{"."}; len(todo) > 0; {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		dir := todo[len(todo)-1]
		below, err := c.directory(dir)
		if err != nil {
			return fmt.Errorf("directory %q: %w", shorten(dir), err)
		}
		todo = append(todo[:len(todo)-1], below...)
	}
	return nil
}

func (c *comparison) close() {
	for _, fd := range []int{c.want, c.got} {
		if fd >= 0 {
			_ = unix.Close(fd) // only read
		}
	}
}

func openDir(at int, p string) (int, error) {
	fd, err := unix.Openat(at, p, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: p, Err: err}
	}
	return fd, nil
}

// root compares the roots themselves.
func (c *comparison) root(want, got string) error {
	var dirs [2]int
	for i, p := range []string{want, got} {
		fd, err := openDir(unix.AT_FDCWD, filepath.Dir(p))
		if err != nil {
			return err
		}
		defer unix.Close(fd) //nolint:errcheck // only read
		dirs[i] = fd
	}
	_, err := c.entry(".", pair{dirs[0], dirs[1], filepath.Base(want)})
	return err
}

// pair is a name in a directory of each tree.
type pair struct {
	want, got int
	name      string
}

// directory compares what two directories have, and returns the paths of those below
// that both have.
func (c *comparison) directory(dir string) (below []string, err error) {
	want, wantNames, err := list(c.want, dir)
	if err != nil {
		return nil, err
	}
	defer want.Close() //nolint:errcheck // only read
	got, gotNames, err := list(c.got, dir)
	if err != nil {
		c.report(Finding{Path: dir, What: Unreadable, Want: "directory", Got: err.Error()})
		return nil, nil
	}
	defer got.Close() //nolint:errcheck // only read
	for len(wantNames)+len(gotNames) > 0 {
		switch {
		case len(gotNames) == 0 || len(wantNames) > 0 && wantNames[0] < gotNames[0]:
			p := path.Join(dir, wantNames[0])
			c.report(Finding{Path: p, What: Missing, Want: kindAt(want, wantNames[0])})
			wantNames = wantNames[1:]
		case len(wantNames) == 0 || gotNames[0] < wantNames[0]:
			p := path.Join(dir, gotNames[0])
			c.report(Finding{Path: p, What: Extra, Got: kindAt(got, gotNames[0])})
			gotNames = gotNames[1:]
		default:
			p := path.Join(dir, wantNames[0])
			isDir, err := c.entry(p, pair{int(want.Fd()), int(got.Fd()), wantNames[0]})
			if err != nil {
				return nil, err
			}
			if isDir {
				below = append(below, p)
			}
			wantNames, gotNames = wantNames[1:], gotNames[1:]
		}
	}
	return below, nil
}

// list opens a directory and returns the names in it, sorted.
func list(root int, dir string) (*os.File, []string, error) {
	fd, err := tree.OpenBeneath(root, dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOATIME)
	if err != nil {
		return nil, nil, err
	}
	f := os.NewFile(uintptr(fd), dir)
	names, err := f.Readdirnames(-1)
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	slices.Sort(names)
	return f, names, nil
}

func kindAt(dir *os.File, name string) string {
	var st unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err.Error()
	}
	return kind(st)
}

func isWhiteout(st unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 }

func kind(st unix.Stat_t) string {
	if isWhiteout(st) {
		return "whiteout"
	}
	kinds := map[uint32]string{
		unix.S_IFREG: "file", unix.S_IFDIR: "directory", unix.S_IFLNK: "symbolic link", unix.S_IFCHR: "character device",
		unix.S_IFBLK: "block device", unix.S_IFIFO: "pipe", unix.S_IFSOCK: "socket",
	}
	return kinds[st.Mode&unix.S_IFMT]
}

// entry compares what both trees have at a path, and says whether it is a directory
// in both.
func (c *comparison) entry(p string, at pair) (isDir bool, err error) {
	var want, got unix.Stat_t
	if err := unix.Fstatat(at.want, at.name, &want, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return false, fmt.Errorf("stat %q: %w", shorten(p), err)
	}
	if err := unix.Fstatat(at.got, at.name, &got, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		c.report(Finding{Path: p, What: Unreadable, Want: kind(want), Got: err.Error()})
		return false, nil
	}
	if kind(want) != kind(got) {
		c.report(Finding{Path: p, What: Kind, Want: kind(want), Got: kind(got)})
		return false, nil
	}
	isDir = want.Mode&unix.S_IFMT == unix.S_IFDIR
	for _, f := range facts(want, got) {
		if f.Want != f.Got {
			f.Path = p
			c.report(f)
		}
	}
	if !isDir {
		c.hardLinks(p, want, got)
	}
	if want.Mode&unix.S_IFMT == unix.S_IFLNK {
		if err := c.target(p, at); err != nil {
			return false, err
		}
	}
	return isDir, c.xattrs(p, at)
}

// facts are what stat tells of two files of one kind.
func facts(want, got unix.Stat_t) []Finding {
	both := func(what What, text func(unix.Stat_t) string) Finding {
		return Finding{What: what, Want: text(want), Got: text(got)}
	}
	all := []Finding{
		both(Mode, func(st unix.Stat_t) string { return fmt.Sprintf("%04o", st.Mode&0o7777) }),
		both(Owner, func(st unix.Stat_t) string { return fmt.Sprintf("%d:%d", st.Uid, st.Gid) }),
	}
	if isWhiteout(want) {
		return all // it has the time at which it was made
	}
	all = append(all, both(MTime, func(st unix.Stat_t) string { return fmt.Sprintf("%d.%09d", st.Mtim.Sec, st.Mtim.Nsec) }))
	switch want.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		all = append(all, both(Size, func(st unix.Stat_t) string { return fmt.Sprint(st.Size) }))
	case unix.S_IFCHR, unix.S_IFBLK:
		all = append(all, both(Device, func(st unix.Stat_t) string { return fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)) }))
	}
	return all
}

// hardLinks holds that the same names are one file in both trees: as many names, and
// those that are one file in the one are one in the other.
func (c *comparison) hardLinks(p string, want, got unix.Stat_t) {
	if want.Nlink != got.Nlink {
		c.report(Finding{Path: p, What: Links, Want: fmt.Sprintf("%d names", want.Nlink), Got: fmt.Sprint(got.Nlink)})
		return
	}
	if want.Nlink == 1 {
		return
	}
	first, seen := c.links[want.Ino]
	if !seen {
		c.links[want.Ino] = linked{p, got.Ino}
	} else if first.inode != got.Ino {
		c.report(Finding{Path: p, What: Links, Want: "the same file as " + first.path, Got: "another"})
	}
}

func (c *comparison) target(p string, at pair) error {
	var targets [2]string
	for i, dir := range []int{at.want, at.got} {
		var buf [unix.PathMax]byte
		n, err := unix.Readlinkat(dir, at.name, buf[:])
		if err != nil && dir == at.got {
			c.report(Finding{Path: p, What: Unreadable, Want: "symbolic link", Got: err.Error()})
			return nil
		}
		if err != nil {
			return fmt.Errorf("read link %q: %w", shorten(p), err)
		}
		targets[i] = string(buf[:n])
	}
	if targets[0] != targets[1] {
		c.report(Finding{Path: p, What: Target, Want: shorten(targets[0]), Got: shorten(targets[1])})
	}
	return nil
}

// xattrs compares extended attributes: capabilities, access lists, overlay's marks.
func (c *comparison) xattrs(p string, at pair) error {
	want, err := readXattrs(at.want, at.name)
	if err != nil {
		return fmt.Errorf("attributes of %q: %w", shorten(p), err)
	}
	got, err := readXattrs(at.got, at.name)
	if err != nil {
		c.report(Finding{Path: p, What: Unreadable, Want: "extended attributes", Got: err.Error()})
		return nil
	}
	all := maps.Clone(want)
	maps.Copy(all, got)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		w, wanted := want[name]
		g, there := got[name]
		f := Finding{Path: p, What: Xattr}
		if wanted {
			f.Want = xattrText(name, w)
		}
		if there {
			f.Got = xattrText(name, g)
		}
		if wanted != there || !bytes.Equal(w, g) {
			c.report(f)
		}
	}
	return nil
}

func xattrText(name string, value []byte) string {
	return shorten(fmt.Sprintf("%s=%q", name, value))
}

func readXattrs(dir int, name string) (map[string][]byte, error) {
	p := fmt.Sprintf("/proc/self/fd/%d/%s", dir, name)
	list := make([]byte, 1024)
	n, err := unix.Llistxattr(p, list)
	if errors.Is(err, unix.ERANGE) {
		list = make([]byte, 64<<10) // the kernel's XATTR_LIST_MAX
		n, err = unix.Llistxattr(p, list)
	}
	all := map[string][]byte{}
	if errors.Is(err, unix.EOPNOTSUPP) || err == nil && n == 0 {
		return all, nil
	}
	if err != nil {
		return nil, err
	}
	for key := range strings.SplitSeq(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		if key == selinuxXattr {
			continue
		}
		value := make([]byte, 64<<10) // the kernel's XATTR_SIZE_MAX
		n, err := unix.Lgetxattr(p, key, value)
		if err != nil {
			return nil, err
		}
		all[key] = bytes.Clone(value[:n])
	}
	return all, nil
}
