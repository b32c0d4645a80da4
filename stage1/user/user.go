// Package user finds out which numbers the user and group of an app are, from
// the /etc/passwd and /etc/group of its own root filesystem. That filesystem is
// an image's and not to be trusted: links in it never lead out of it, files are
// opened only when they are regular and read to a limit only.
package user

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	mobyuser "github.com/moby/sys/user"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// User is who a process runs as.
type User struct {
	UID, GID uint32
	// Additional are the groups of /etc/group that list the user by name, sorted,
	// without GID: what supplementalGroupsPolicy Merge adds and Strict leaves out.
	Additional []uint32
	// Name and Home are of the user's entry in /etc/passwd; empty when there is none.
	Name, Home string
}

// Split takes a user specification apart as an image's configuration spells it:
// "1000", "name", "1000:1000", "name:group" or "/path". A path is never split, it may hold a colon.
func Split(spec string) (user, group string) {
	if strings.HasPrefix(spec, "/") {
		return spec, ""
	}
	user, group, _ = strings.Cut(spec, ":")
	return user, group
}

// Resolve looks user and group up in the root filesystem mounted at rootfs.
// Each is a number, a name, or a path whose owner in the root filesystem is meant (a
// link itself, as rkt did). An empty user is 0; an empty group is the user's primary
// one: of its entry, of the path's owner, else 0. Numbers need no entry,
// and "root" needs no file. ErrInvalid says that the user, the group or the path
// is not in the image, or that its files cannot be read as such.
func Resolve(rootfs, user, group string) (User, error) {
	root, err := os.OpenFile(rootfs, os.O_RDONLY|unix.O_DIRECTORY|unix.O_PATH, 0)
	if err != nil {
		return User{}, fmt.Errorf("resolve user %q: %w", user, err)
	}
	defer root.Close() //nolint:errcheck // opened for looking only
	if user, group, err = owners(root, user, group); err != nil {
		return User{}, err
	}
	passwd, err := read(root, passwdFile)
	if err != nil {
		return User{}, fmt.Errorf("resolve user %q: %w", user, err)
	}
	groups, err := read(root, groupFile)
	if err != nil {
		return User{}, fmt.Errorf("resolve group %q: %w", group, err)
	}
	return lookup(user, group, passwd, groups)
}

const (
	passwdFile = "etc/passwd"
	groupFile  = "etc/group"
	// maxFile bounds what is read of a file, as moby/sys/user does.
	maxFile = 10 << 20
)

// owners puts numbers in the place of paths.
func owners(root *os.File, user, group string) (string, string, error) {
	if strings.HasPrefix(user, "/") {
		st, err := owner(root, user)
		if err != nil {
			return "", "", fmt.Errorf("user %q: %w", user, err)
		}
		user = strconv.FormatUint(uint64(st.Uid), 10)
		if group == "" {
			group = strconv.FormatUint(uint64(st.Gid), 10)
		}
	}
	if strings.HasPrefix(group, "/") {
		st, err := owner(root, group)
		if err != nil {
			return "", "", fmt.Errorf("group %q: %w", group, err)
		}
		group = strconv.FormatUint(uint64(st.Gid), 10)
	}
	return user, group, nil
}

func owner(root *os.File, path string) (unix.Stat_t, error) {
	var st unix.Stat_t
	fd, err := openIn(root, strings.TrimLeft(path, "/"), unix.O_PATH|unix.O_NOFOLLOW)
	if absent(err) {
		return st, fmt.Errorf("no such path in the image: %w", errdefs.ErrInvalid)
	}
	if err != nil {
		return st, err
	}
	defer unix.Close(fd) //nolint:errcheck // O_PATH
	return st, unix.Fstat(fd, &st)
}

// openIn opens a path as if the root filesystem were /.
func openIn(root *os.File, path string, flags uint64) (int, error) {
	if path == "" {
		path = "."
	}
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	for {
		fd, err := unix.Openat2(int(root.Fd()), path, &how)
		// EAGAIN: something was renamed meanwhile and the kernel would not guess.
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
			continue
		}
		return fd, err
	}
}

func absent(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}

// read returns a whole file of the root filesystem; nothing when it is not there.
func read(root *os.File, path string) ([]byte, error) {
	fd, err := openIn(root, path, unix.O_PATH)
	if absent(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open /%s of the image: %w", path, err)
	}
	defer unix.Close(fd) //nolint:errcheck // O_PATH
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("stat /%s of the image: %w", path, err)
	}
	// Looked at before it is opened: to open a device or a pipe may do something.
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, fmt.Errorf("/%s of the image is not a regular file: %w", path, errdefs.ErrInvalid)
	}
	f, err := os.Open("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return nil, fmt.Errorf("open /%s of the image: %w", path, err)
	}
	defer f.Close() //nolint:errcheck // opened for reading
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read /%s of the image: %w", path, err)
	}
	if len(b) > maxFile {
		return nil, fmt.Errorf("/%s of the image is larger than %d bytes: %w", path, maxFile, errdefs.ErrInvalid)
	}
	return b, nil
}

// lookup is the part without files: passwd and groups are what the files hold.
func lookup(user, group string, passwd, groups []byte) (User, error) {
	if user == "" {
		user = "0"
	}
	uid, numeric, err := number(user)
	if err != nil {
		return User{}, fmt.Errorf("user %q: %w", user, err)
	}
	entries, err := mobyuser.ParsePasswdFilter(sane(passwd, 2, 3), func(u mobyuser.User) bool {
		return inRange(u.Uid) && inRange(u.Gid) && (numeric && u.Uid == int(uid) || !numeric && u.Name == user)
	})
	if err != nil {
		return User{}, fmt.Errorf("/etc/passwd of the image: %w: %w", errdefs.ErrInvalid, err)
	}
	u := User{UID: uid}
	switch {
	case len(entries) > 0:
		e := entries[0] // the first wins, as in every libc
		u = User{UID: uint32(e.Uid), GID: uint32(e.Gid), Name: e.Name, Home: e.Home}
	case !numeric && user == "root":
		u.Name = user
	case !numeric:
		return User{}, fmt.Errorf("user %q not found in the image's /etc/passwd: %w", user, errdefs.ErrInvalid)
	}
	return withGroups(u, group, groups)
}

func withGroups(u User, group string, groups []byte) (User, error) {
	gid, numeric, err := number(group)
	if err != nil {
		return User{}, fmt.Errorf("group %q: %w", group, err)
	}
	all, err := mobyuser.ParseGroup(sane(groups, 2))
	if err != nil {
		return User{}, fmt.Errorf("/etc/group of the image: %w: %w", errdefs.ErrInvalid, err)
	}
	found := false
	for _, g := range all {
		if !inRange(g.Gid) {
			continue
		}
		if group != "" && !numeric && !found && g.Name == group {
			gid, found = uint32(g.Gid), true
		}
		if u.Name != "" && slices.Contains(g.List, u.Name) {
			u.Additional = append(u.Additional, uint32(g.Gid))
		}
	}
	switch {
	case group == "": // the primary one stands
	case numeric, found:
		u.GID = gid
	case group == "root":
		u.GID = 0
	default:
		return User{}, fmt.Errorf("group %q not found in the image's /etc/group: %w", group, errdefs.ErrInvalid)
	}
	slices.Sort(u.Additional)
	u.Additional = slices.DeleteFunc(slices.Compact(u.Additional), func(g uint32) bool { return g == u.GID })
	return u, nil
}

// number tells a number from a name; a number that is none of an id is ErrInvalid.
func number(s string) (uint32, bool, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	switch {
	case errors.Is(err, strconv.ErrSyntax):
		return 0, false, nil
	case err != nil || !inRange(int(n)):
		return 0, true, fmt.Errorf("out of range 0 to %d: %w", math.MaxInt32, errdefs.ErrInvalid)
	}
	return uint32(n), true, nil
}

// inRange holds what moby, containerd and runc hold: ids above MaxInt32 are refused.
func inRange(id int) bool { return id >= 0 && id <= math.MaxInt32 }

// sane drops the lines whose numeric fields are not numbers: the parser would take them
// for 0, and a broken line would make its user root. Lines that are too
// long for the parser go, too.
func sane(file []byte, fields ...int) io.Reader {
	var b bytes.Buffer
	for line := range bytes.Lines(file) {
		parts := bytes.Split(bytes.TrimSpace(line), []byte(":"))
		ok := len(line) < bufio.MaxScanTokenSize || len(fields) == 1 // /etc/group is read without that limit
		for _, f := range fields {
			ok = ok && f < len(parts) && isNumber(parts[f])
		}
		if ok {
			b.Write(line)
		}
	}
	return &b
}

func isNumber(b []byte) bool {
	_, err := strconv.ParseUint(string(b), 10, 31)
	return err == nil
}
