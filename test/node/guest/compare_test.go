//go:build node

package guest

import (
	"fmt"
	"hash/crc32"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// compare lists in what two directories differ, of which describe made left and
// right: names, contents, attributes, extended attributes, links. Directories' sizes
// and link counts are the file system's.
func compare(left, right map[string]string) []string {
	var differences []string
	for _, name := range slices.Sorted(maps.Keys(left)) {
		if left[name] != right[name] {
			differences = append(differences, fmt.Sprintf("%s is %q, want %q", name, left[name], right[name]))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(right)) {
		if _, ok := left[name]; !ok {
			differences = append(differences, name+" is missing")
		}
	}
	return differences
}

// describe says all that is compared of each file below root.
func describe(root string) map[string]string {
	files := map[string]string{}
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		files[path[len(root):]] = describeFile(path)
		return nil
	})
	if err != nil {
		files["error"] = err.Error()
	}
	return files
}

// describeFile sums contents by CRC-32: it finds what a power cut tears, and the node,
// whose processor has no instructions for SHA-256, does three megabytes of that a second.
func describeFile(path string) string {
	var st syscall.Stat_t
	if err := syscall.Lstat(path, &st); err != nil {
		return err.Error()
	}
	text := fmt.Sprintf("mode %o owner %d:%d time %d.%d", st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
	switch st.Mode & syscall.S_IFMT {
	case syscall.S_IFREG:
		data, err := os.ReadFile(path)
		text += fmt.Sprintf(" links %d size %d sum %08x %v", st.Nlink, st.Size, crc32.ChecksumIEEE(data), err)
	case syscall.S_IFLNK:
		target, err := os.Readlink(path)
		text += fmt.Sprintf(" to %s %v", target, err)
	case syscall.S_IFCHR, syscall.S_IFBLK:
		text += fmt.Sprintf(" device %d", st.Rdev)
	}
	names := make([]byte, 4096)
	n, err := unix.Llistxattr(path, names)
	if err != nil {
		return text + err.Error()
	}
	return text + fmt.Sprintf(" attributes %q", names[:n])
}
