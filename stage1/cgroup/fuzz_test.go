package cgroup

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// FuzzMountinfo holds that no mount, whose name a container's image may have chosen,
// makes the parser panic or gives a hierarchy without a place.
func FuzzMountinfo(f *testing.F) {
	for _, s := range []string{
		"30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n",
		"31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n32 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n",
		"1 1 0:1 / /a\\040b rw - cgroup2 none rw\n", "1 1 0:1 / /a rw cgroup2\n", "", "x", "1 1 0:1 / /a rw - cgroup c name=\n", "1 1 0:1 / \\777 rw - cgroup2 c rw",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		h, err := parse(bytes.NewReader(text))
		if err != nil {
			return
		}
		h.Mode()
		if len(h.mounts()) == 0 {
			t.Error("hierarchies without a mount")
		}
		for _, dir := range h.dirs("/gantry/x") {
			if !strings.HasSuffix(dir, "gantry/x") {
				t.Errorf("group at %s", dir)
			}
		}
	})
}

// FuzzFiles holds that what the kernel says of a group is a number or nothing, and
// that a group's path leads below the root of the hierarchy.
func FuzzFiles(f *testing.F) {
	for _, s := range []string{"anon 4096\nfile 1\n", "max\n", "18446744073709551616", "-1\n", "a b c\n", "\n 7 \n", "0\n12\n0\n", "x\n"} {
		f.Add([]byte(s), "/gantry/x")
		f.Add([]byte(s), "/../x")
	}
	dir := f.TempDir()
	h := &Hierarchy{unified: dir}
	f.Fuzz(func(t *testing.T, text []byte, path string) {
		if rel, err := filepath.Rel(dir, filepath.Join(dir, path)); check(path) == nil && (err != nil || !filepath.IsLocal(rel) || rel == ".") {
			t.Errorf("%q leads to %s", path, rel)
		} else if err := check(path); err != nil && !errors.Is(err, errdefs.ErrInvalid) {
			t.Error(err)
		}
		group := filepath.Join(dir, "g")
		if err := os.MkdirAll(group, 0o700); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"cgroup.procs", "memory.stat", "memory.current", "memory.max", "memory.swap.current", "memory.swap.max", "cpu.stat", "pids.current", "pids.max", "memory.events"} {
			if err := os.WriteFile(filepath.Join(group, name), text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		s, err := h.Stats("/g")
		if err != nil {
			t.Fatal(err)
		}
		if m := s.Memory; m.WorkingSet > m.Usage || m.Limit > 0 && m.Available > m.Limit {
			t.Errorf("memory %+v", m)
		}
		pids, err := readProcs(group)
		for _, pid := range pids {
			if err != nil || pid <= 0 {
				t.Errorf("pid %d, %v", pid, err)
			}
		}
	})
}
