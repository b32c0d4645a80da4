package user

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

const (
	passwd = "root:x:0:0:root:/root:/bin/sh\n# a comment\n\nbroken:x:zero:0::/:\nwww:x:33:33:web:/var/www:/bin/false\n" +
		"app:x:1000:1000::/home/app:\nwww:x:34:34::/:\n1234:x:77:77::/:\nhuge:x:4294967296:0::/:\nshort:x\nnegative:x:-1:0::/:\n"
	group = "root:x:0:\nwww:x:33:\napp:x:1000:app\naudio:x:29:www,app\nstaff:x:50:app\nstaff:x:51:\nvideo:x:44:app,www\nbad:x:no:app\n"
)

func TestSplit(t *testing.T) {
	for _, tt := range []struct{ name, spec, user, group string }{
		{"user", "app", "app", ""},
		{"both", "1000:staff", "1000", "staff"},
		{"group alone", ":5", "", "5"},
		{"path", "/bin/a:b", "/bin/a:b", ""},
		{"empty", "", "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if u, g := Split(tt.spec); u != tt.user || g != tt.group {
				t.Errorf("%q, %q", u, g)
			}
		})
	}
}

func rootfs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(dir+"/etc", 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"passwd": passwd, "group": group} {
		if err := os.WriteFile(dir+"/etc/"+name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestResolve(t *testing.T) {
	dir := rootfs(t)
	for _, tt := range []struct {
		name, user, group string
		want              User
		bad               string
	}{
		{name: "nothing", want: User{Name: "root", Home: "/root"}},
		{name: "name", user: "www", want: User{UID: 33, GID: 33, Name: "www", Home: "/var/www", Additional: []uint32{29, 44}}},
		{name: "number with an entry", user: "1000", want: User{UID: 1000, GID: 1000, Name: "app", Home: "/home/app", Additional: []uint32{29, 44, 50}}},
		{name: "number without", user: "4711", want: User{UID: 4711}},
		{name: "number before name", user: "1234", want: User{UID: 1234}},
		{name: "numbers", user: "4711", group: "4712", want: User{UID: 4711, GID: 4712}},
		{name: "group name, first wins", user: "app", group: "staff", want: User{UID: 1000, GID: 50, Name: "app", Home: "/home/app", Additional: []uint32{29, 44, 1000}}},
		{name: "group number", user: "www", group: "7", want: User{UID: 33, GID: 7, Name: "www", Home: "/var/www", Additional: []uint32{29, 44}}},
		{name: "unknown user", user: "nosuch", bad: `user "nosuch" not found in the image's /etc/passwd`},
		{name: "unknown group", user: "app", group: "nosuch", bad: `group "nosuch" not found in the image's /etc/group`},
		{name: "an entry that would have made root", user: "broken", bad: `"broken" not found`},
		{name: "huge entry", user: "huge", bad: `"huge" not found`},
		{name: "negative entry", user: "negative", bad: `"negative" not found`},
		{name: "short entry", user: "short", bad: `"short" not found`},
		{name: "broken group", user: "app", group: "bad", bad: `"bad" not found`},
		{name: "negative", user: "-1", bad: "out of range"},
		{name: "too large", user: "4294967295", bad: "out of range"},
		{name: "far too large", user: "app", group: "99999999999999999999", bad: "out of range"},
		{name: "absent path", user: "/nosuch", bad: "no such path in the image"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Resolve(dir, tt.user, tt.group)
			if tt.bad != "" {
				if !errors.Is(err, errdefs.ErrInvalid) || !strings.Contains(err.Error(), tt.bad) {
					t.Errorf("%+v, %v, want %q", got, err, tt.bad)
				}
				return
			}
			if err != nil || !reflect.DeepEqual(normal(got), normal(tt.want)) {
				t.Errorf("got %+v, %v\nwant %+v", got, err, tt.want)
			}
		})
	}
}

func normal(u User) User {
	if len(u.Additional) == 0 {
		u.Additional = nil
	}
	return u
}

func TestResolveEmptyImage(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"", "0", "root"} {
		t.Run("user "+name, func(t *testing.T) {
			if u, err := Resolve(dir, name, "root"); err != nil || u.UID != 0 || u.GID != 0 {
				t.Errorf("%+v, %v", u, err)
			}
		})
	}
	if _, err := Resolve(dir, "app", ""); !errors.Is(err, errdefs.ErrInvalid) {
		t.Errorf("%v", err)
	}
	if _, err := Resolve(filepath.Join(dir, "none"), "0", ""); err == nil {
		t.Error("no root filesystem, no error")
	}
}

func TestResolvePath(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := rootfs(t)
	if err := os.WriteFile(dir+"/tool", nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("tool", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Lchown(dir+"/tool", 1000, 29), os.Lchown(dir+"/link", 33, 44)); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, user, group string
		uid, gid          uint32
		who               string
	}{
		{"owner and group", "/tool", "", 1000, 29, "app"},
		{"the link itself", "/link", "/tool", 33, 29, "www"},
		{"group by path", "app", "/link", 1000, 44, "app"},
		{"root of the image", "/", "", 0, 0, "root"},
		{"dots stay inside", "/../../tool", "", 1000, 29, "app"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if u, err := Resolve(dir, tt.user, tt.group); err != nil || u.UID != tt.uid || u.GID != tt.gid || u.Name != tt.who {
				t.Errorf("%+v, %v", u, err)
			}
		})
	}
}

// What an image can put in the place of its files.
func TestHostileImage(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "passwd")
	if err := os.WriteFile(outside, []byte("evil:x:0:0::/:\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		make func(t *testing.T, passwd string) error
		bad  string
	}{
		{"absolute link out", func(_ *testing.T, p string) error { return os.Symlink(outside, p) }, "not found"},
		{"relative link out", func(_ *testing.T, p string) error {
			return os.Symlink(strings.Repeat("../", 40)+outside, p)
		}, "not found"},
		{"magic link", func(_ *testing.T, p string) error { return os.Symlink("/proc/self/fd/0", p) }, "not found"},
		{"link to itself", func(_ *testing.T, p string) error { return os.Symlink("passwd", p) }, "not found"},
		{"pipe", func(_ *testing.T, p string) error { return unix.Mkfifo(p, 0o644) }, "not a regular file"},
		{"directory", func(_ *testing.T, p string) error { return os.Mkdir(p, 0o755) }, "not a regular file"},
		{"endless", func(_ *testing.T, p string) error {
			return errors.Join(os.WriteFile(p, nil, 0o644), os.Truncate(p, 1<<40))
		}, "larger than"},
		{"one long line", func(_ *testing.T, p string) error {
			return os.WriteFile(p, []byte("evil:x:0:0:"+strings.Repeat("a", 1<<17)+"::\n"), 0o644)
		}, "not found"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := rootfs(t)
			if err := os.Remove(dir + "/etc/passwd"); err != nil {
				t.Fatal(err)
			}
			if err := tt.make(t, dir+"/etc/passwd"); err != nil {
				t.Fatal(err)
			}
			u, err := Resolve(dir, "evil", "")
			if !errors.Is(err, errdefs.ErrInvalid) || !strings.Contains(err.Error(), tt.bad) {
				t.Errorf("%+v, %v, want %q", u, err, tt.bad)
			}
		})
	}
	t.Run("link inside", func(t *testing.T) {
		dir := rootfs(t)
		if err := errors.Join(os.Rename(dir+"/etc/passwd", dir+"/real"), os.Symlink("/real", dir+"/etc/passwd")); err != nil {
			t.Fatal(err)
		}
		if u, err := Resolve(dir, "app", ""); err != nil || u.UID != 1000 {
			t.Errorf("%+v, %v", u, err)
		}
	})
}

func FuzzLookup(f *testing.F) {
	f.Add("app", "", passwd, group)
	f.Add("1000", "staff", passwd, group)
	f.Add("a", "b", "a:::\n:a::\na:x:1:1", "b:x:1:a,,a\r\n")
	f.Add("+", "-", "+::::::\n", "+:::")
	f.Fuzz(func(t *testing.T, name, grp, passwd, group string) {
		u, err := lookup(name, grp, []byte(passwd), []byte(group))
		if err != nil {
			if !errors.Is(err, errdefs.ErrInvalid) {
				t.Errorf("%v is not ErrInvalid", err)
			}
			return
		}
		for _, id := range append([]uint32{u.UID, u.GID}, u.Additional...) {
			if id > math.MaxInt32 {
				t.Errorf("id %d of %q", id, name)
			}
		}
		// Nobody becomes root but by a number of zero or the name root.
		if u.UID == 0 && name != "" && name != "root" && !strings.Contains(name+passwd, "0") {
			t.Errorf("%q is root", name)
		}
		again, err := lookup(name, grp, []byte(passwd), []byte(group))
		if err != nil || !reflect.DeepEqual(u, again) {
			t.Errorf("%+v, then %+v, %v", u, again, err)
		}
	})
}
