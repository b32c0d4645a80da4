package images

import (
	"fmt"
	"os"
	"os/exec"
	"path"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// busyboxPath is where Debian's busybox and busybox-static put the program.
const busyboxPath = "/bin/busybox"

const searchPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// passwd and group are the users of every image made here.
const (
	passwd = `root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin
app:x:1000:1000:app:/home/app:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
`
	group = `root:x:0:
daemon:x:1:
www-data:x:33:
app:x:1000:
extra:x:50000:app
nogroup:x:65534:
`
)

// Busybox is Debian's busybox, installed here, in one layer: applets as hard
// links, users root, daemon, www-data, app (1000, also in group 50000) and
// nobody, a /tmp of mode 1777. It runs a shell unless told otherwise.
func Busybox(o Options) (v1.Image, error) {
	l := newLayerTar()
	busyboxTree(l)
	libraries, err := sharedLibraries(busyboxPath)
	if err != nil {
		return nil, err
	}
	if err := addBusybox(l, libraries); err != nil {
		return nil, err
	}
	compress, mt := l.gzipped, o.Format.mediaTypes().layer
	if o.Compression == Zstd {
		compress, mt = l.zstandard, o.Format.mediaTypes().zstdLayer
	}
	layer, err := compress(mt)
	if err != nil {
		return nil, err
	}
	return assemble(o, v1.Config{Env: []string{searchPath}, Cmd: []string{"sh"}}, layer)
}

// busyboxTree makes everything but programs.
func busyboxTree(l *layerTar) {
	for _, dir := range []string{"bin", "dev", "etc", "home", "proc", "run", "sbin", "sys", "usr", "usr/bin", "usr/sbin", "var", "var/www"} {
		l.dir(dir, 0o755)
	}
	l.dir("root", 0o700)
	l.dir("tmp", 0o1777)
	l.dir("var/tmp", 0o1777)
	l.file("etc/passwd", 0o644, passwd)
	l.file("etc/group", 0o644, group)
	l.file("var/www/index.html", 0o644, "gantry busybox\n")
}

// addBusybox adds the program, its libraries and a hard link for each applet.
func addBusybox(l *layerTar, libraries []string) error {
	for _, file := range append(libraries, busyboxPath) {
		data, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("read for busybox image: %w", err)
		}
		l.file(strings.TrimPrefix(file, "/"), 0o755, string(data))
	}
	out, err := exec.Command(busyboxPath, "--list-full").Output()
	if err != nil {
		return fmt.Errorf("list applets of %s: %w", busyboxPath, err)
	}
	for _, applet := range strings.Fields(string(out)) {
		if !strings.Contains(applet, "/") {
			applet = path.Join("bin", applet)
		}
		if applet != "bin/busybox" {
			l.hardlink(applet, "bin/busybox")
		}
	}
	return nil
}

// sharedLibraries are the files that a program is linked with, its interpreter
// included; none for a static one.
func sharedLibraries(program string) ([]string, error) {
	out, err := exec.Command("ldd", program).CombinedOutput()
	if strings.Contains(string(out), "not a dynamic executable") {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list libraries of %s: %w", program, err)
	}
	var files []string
	for word := range strings.FieldsSeq(string(out)) {
		if strings.HasPrefix(word, "/") {
			files = append(files, word)
		}
	}
	return files, nil
}
