package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// Create makes the group in every hierarchy, its parents too. It is idempotent.
// On v1 cpuset's processors and memory nodes are copied from the parent, without
// which nothing can enter; on v2 the controllers are handed down as far as the
// parents allow. What was made before an error stays for Remove.
func (h *Hierarchy) Create(path string) error {
	if err := check(path); err != nil {
		return err
	}
	for c, m := range h.v1 {
		if err := createV1(m, path, inherited[c]); err != nil {
			return fmt.Errorf("create cgroup %s: %w", path, err)
		}
	}
	if h.unified == "" {
		return nil
	}
	if err := h.createV2(path); err != nil {
		return fmt.Errorf("create cgroup %s: %w", path, err)
	}
	return nil
}

// createIn makes the group in the hierarchies of some v1 controllers alone.
func (h *Hierarchy) createIn(path string, controllers []string) error {
	for _, c := range controllers {
		m, ok := h.v1[c]
		if !ok {
			continue
		}
		if err := createV1(m, path, inherited[c]); err != nil {
			return fmt.Errorf("create cgroup %s: %w", path, err)
		}
	}
	return nil
}

// CreateLeaf makes one group below an existing one, in the hierarchies of the
// named v1 controllers as far as they are mounted or, when none is named, in
// all. It returns the new group's path. A parent that is gone is ErrNotFound:
// unlike Create this never makes a parent again that somebody just removed.
func (h *Hierarchy) CreateLeaf(parent, name string, controllers ...string) (string, error) {
	path := filepath.Join(parent, name)
	if err := check(path); err != nil {
		return "", err
	}
	mounts := h.mounts()
	if len(controllers) > 0 {
		mounts = nil
		for _, c := range controllers {
			if m, ok := h.v1[c]; ok && !slices.Contains(mounts, m) {
				mounts = append(mounts, m)
			}
		}
	}
	made := false
	for _, m := range mounts {
		err := leaf(filepath.Join(m, parent), filepath.Join(m, path), h.inheritedIn(m))
		if err != nil && !absent(err) {
			return path, fmt.Errorf("create cgroup %s: %w", path, err)
		}
		made = made || err == nil
	}
	if !made {
		return path, fmt.Errorf("create cgroup %s: %s: %w", path, parent, errdefs.ErrNotFound)
	}
	return path, nil
}

// inherited are the files without which nothing can enter a new group, by v1
// controller: the parent's content is copied into them.
var inherited = map[string][]string{"cpuset": {"cpuset.cpus", "cpuset.mems"}}

// inheritedIn are those of the hierarchy at a mount point.
func (h *Hierarchy) inheritedIn(mount string) []string {
	for c, files := range inherited {
		if h.v1[c] == mount {
			return files
		}
	}
	return nil
}

func leaf(parent, dir string, files []string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	return inheritAll(parent, dir, files)
}

func inheritAll(parent, dir string, files []string) error {
	for _, f := range files {
		if err := inherit(parent, dir, f); err != nil {
			return err
		}
	}
	return nil
}

// HasV1 says whether a controller has a v1 hierarchy.
func (h *Hierarchy) HasV1(controller string) bool {
	_, ok := h.v1[controller]
	return ok
}

func createV1(mount, path string, files []string) error {
	dir := mount
	for e := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		parent := dir
		dir = filepath.Join(dir, e)
		if err := mkdir(dir); err != nil {
			return err
		}
		if err := inheritAll(parent, dir, files); err != nil {
			return err
		}
	}
	return nil
}

// inherit copies a cpuset file from the parent where the group has none yet.
func inherit(parent, dir, file string) error {
	have, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil || strings.TrimSpace(string(have)) != "" {
		return err
	}
	value, err := os.ReadFile(filepath.Join(parent, file))
	if err != nil {
		return err
	}
	return write(filepath.Join(dir, file), strings.TrimSpace(string(value)))
}

// createV2 hands controllers down where v1 does not hold them.
func (h *Hierarchy) createV2(path string) error {
	dir := h.unified
	for e := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		if len(h.v1) == 0 {
			handDown(dir)
		}
		dir = filepath.Join(dir, e)
		if err := mkdir(dir); err != nil {
			return err
		}
	}
	return nil
}

// handDown enables each controller for the children of dir. One that cannot be
// enabled (the group holds processes, or a real-time task) must not keep the
// others back, and nobody needs it before a limit is set: the runtime says so then.
func handDown(dir string) {
	have, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return
	}
	on, err := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
	if err != nil {
		return
	}
	enabled := strings.Fields(string(on))
	for _, c := range strings.Fields(string(have)) {
		if !slices.Contains(enabled, c) {
			_ = write(filepath.Join(dir, "cgroup.subtree_control"), "+"+c)
		}
	}
}

// mkdir makes one directory, and its parent again if somebody removed that in between.
func mkdir(dir string) error {
	err := os.Mkdir(dir, 0o755)
	if errors.Is(err, fs.ErrNotExist) {
		err = os.MkdirAll(dir, 0o755)
	}
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

// AddProcess moves a process into the group in every hierarchy where the group
// exists. A group that exists nowhere, or a process that is gone, is ErrNotFound.
func (h *Hierarchy) AddProcess(path string, pid int) error {
	if err := check(path); err != nil {
		return err
	}
	found := false
	for _, dir := range h.dirs(path) {
		err := write(filepath.Join(dir, "cgroup.procs"), strconv.Itoa(pid))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if errors.Is(err, unix.ESRCH) {
			err = errdefs.ErrNotFound
		}
		if err != nil {
			return fmt.Errorf("move process %d into %s: %w", pid, dir, err)
		}
		found = true
	}
	if !found {
		return fmt.Errorf("move process %d: cgroup %s: %w", pid, path, errdefs.ErrNotFound)
	}
	return nil
}

// Of is the group of a process in the v2 hierarchy. ErrNotFound says that the
// process is gone.
func (h *Hierarchy) Of(pid int) (string, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		err = errdefs.ErrNotFound
	}
	if err != nil {
		return "", fmt.Errorf("cgroup of process %d: %w", pid, err)
	}
	for line := range strings.Lines(string(raw)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return path, nil
		}
	}
	return "", fmt.Errorf("cgroup of process %d: it is in no v2 hierarchy: %w", pid, errdefs.ErrUnsupported)
}

// Exists says whether the group is there in at least one hierarchy.
func (h *Hierarchy) Exists(path string) bool {
	return slices.ContainsFunc(h.dirs(path), func(dir string) bool {
		_, err := os.Stat(dir)
		return err == nil
	})
}

// Children are the names of the groups right below the group, in any hierarchy,
// sorted; none below one that does not exist.
func (h *Hierarchy) Children(path string) ([]string, error) {
	if err := check(path); err != nil {
		return nil, err
	}
	var names []string
	for _, dir := range h.dirs(path) {
		entries, err := os.ReadDir(dir)
		if err != nil && !absent(err) {
			return nil, fmt.Errorf("list cgroup %s: %w", path, err)
		}
		for _, e := range entries {
			if e.IsDir() {
				names = append(names, e.Name())
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// Populated says whether a living process is in the group or below it, in any
// hierarchy. A group that does not exist is not populated.
func (h *Hierarchy) Populated(path string) (bool, error) {
	if err := check(path); err != nil {
		return false, err
	}
	if len(h.v1) == 0 {
		return populatedV2(filepath.Join(h.unified, path))
	}
	pids, err := h.Procs(path)
	return len(pids) > 0, err
}

func populatedV2(dir string) (bool, error) {
	events, err := keyed(filepath.Join(dir, "cgroup.events"))
	if absent(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("is %s populated: %w", dir, err)
	}
	return events["populated"] != 0, nil
}

// Procs are the pids in the group and below it, in any hierarchy, sorted. It is
// empty for a group that does not exist. Processes of other PID namespaces than
// ours, which have no number here, are left out.
func (h *Hierarchy) Procs(path string) ([]int, error) {
	if err := check(path); err != nil {
		return nil, err
	}
	var pids []int
	for _, dir := range h.dirs(path) {
		list, err := procs(dir)
		if err != nil {
			return nil, fmt.Errorf("processes of cgroup %s: %w", path, err)
		}
		pids = append(pids, list...)
	}
	slices.Sort(pids)
	return slices.Compact(pids), nil
}

func procs(root string) ([]int, error) {
	var pids []int
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if absent(err) || err == nil && !d.IsDir() {
			return nil
		}
		if err != nil {
			return err
		}
		list, err := readProcs(p)
		pids = append(pids, list...)
		return err
	})
	return pids, err
}

func readProcs(dir string) ([]int, error) {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if absent(err) {
		return nil, nil
	}
	if errors.Is(err, unix.EOPNOTSUPP) { // a threaded group: its processes are listed above it
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, f := range strings.Fields(string(b)) {
		pid, err := strconv.Atoi(f)
		if err != nil {
			return nil, fmt.Errorf("%s/cgroup.procs: %w", dir, err)
		}
		if pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// check refuses what would mean the root of the hierarchies, or a way out.
func check(path string) error {
	if !strings.HasPrefix(path, "/") || filepath.Clean(path) != path || path == "/" {
		return fmt.Errorf("cgroup path %q: %w", path, errdefs.ErrInvalid)
	}
	return nil
}

// absent says that a group is gone: reads in a removed directory give ENODEV.
func absent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV)
}

// write writes a kernel file, which must exist: it never makes one.
func write(file, value string) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// keyed reads a file of "name number" lines.
func keyed(file string) (map[string]uint64, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	m := map[string]uint64{}
	for line := range strings.Lines(string(b)) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok {
			continue
		}
		if n, err := strconv.ParseUint(value, 10, 64); err == nil {
			m[name] = n
		}
	}
	return m, nil
}
