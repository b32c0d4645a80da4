package stage1

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/appc/spec/schema"
	"github.com/moby/sys/capability"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/selinux/go-selinux"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage1/cgroup"
	"github.com/gantry-cri/gantry/stage1/user"
	"github.com/gantry-cri/gantry/translate"
)

// node gathers the facts that a translation needs: those of the machine, and
// those that an app's own needs ask for.
func (r *Runner) node(ctx context.Context, needs translate.Needs, rootfs string) (translate.Node, error) {
	n, err := nodeFacts()
	if err != nil {
		return translate.Node{}, err
	}
	n.CgroupV2 = r.cgroups.Mode() == cgroup.V2
	if n.Hostname, err = os.Hostname(); err != nil {
		return translate.Node{}, fmt.Errorf("node's host name: %w", err)
	}
	if rootfs != "" {
		if n.User, err = resolveUser(rootfs, needs); err != nil {
			return translate.Node{}, err
		}
	}
	if needs.Privileged {
		if n.HostDevices, err = devicesBelow("/dev"); err != nil {
			return translate.Node{}, err
		}
	}
	if n.Devices, err = namedDevices(needs.Devices); err != nil {
		return translate.Node{}, err
	}
	if err := r.confinement(ctx, needs, &n); err != nil {
		return translate.Node{}, err
	}
	return n, nil
}

// confinement looks up the profiles that an app is to be confined by, and loads
// the default one of AppArmor if need be.
func (r *Runner) confinement(ctx context.Context, needs translate.Needs, n *translate.Node) (err error) {
	if needs.AppArmor {
		if n.AppArmor, err = r.armor.EnsureDefault(ctx); err != nil {
			return err
		}
	}
	for _, name := range needs.AppArmorProfiles {
		if err := r.armor.Check(name); err != nil {
			return err
		}
		n.AppArmorProfiles = append(n.AppArmorProfiles, name)
	}
	n.SeccompProfiles = map[string][]byte{}
	for _, path := range needs.SeccompProfiles {
		if n.SeccompProfiles[path], err = os.ReadFile(path); err != nil {
			return fmt.Errorf("seccomp profile: %w", err)
		}
	}
	return nil
}

// CheckApp says whether this node has what confines an app of a manifest, before
// the app is prepared: ErrState for an AppArmor profile that is not loaded,
// ErrUnsupported on a node without AppArmor.
func (r *Runner) CheckApp(pm *schema.PodManifest, app string) error {
	needs, err := translate.NeedsOf(pm, app)
	if err != nil {
		return err
	}
	for _, name := range needs.AppArmorProfiles {
		if err := r.armor.Check(name); err != nil {
			return err
		}
	}
	return nil
}

// LoadAppArmor loads the default profile of AppArmor, so that the first container
// need not. A start does it too.
func (r *Runner) LoadAppArmor(ctx context.Context) error {
	_, err := r.armor.EnsureDefault(ctx)
	return err
}

func resolveUser(rootfs string, needs translate.Needs) (*translate.User, error) {
	u, err := user.Resolve(rootfs, needs.User, needs.Group)
	if err != nil {
		return nil, err
	}
	return &translate.User{UID: u.UID, GID: u.GID, Groups: u.Additional}, nil
}

// nodeFacts are what cannot change while the process runs.
var nodeFacts = sync.OnceValues(func() (translate.Node, error) {
	var n translate.Node
	caps, err := capability.NewPid2(0)
	if err == nil {
		err = caps.Load()
	}
	if err != nil {
		return n, fmt.Errorf("read own capabilities: %w", err)
	}
	for _, c := range capability.ListKnown() {
		if caps.Get(capability.BOUNDING, c) {
			n.Capabilities = append(n.Capabilities, "CAP_"+strings.ToUpper(c.String()))
		}
	}
	if n.OOMScoreAdjMin, err = oomScoreAdjMin(caps); err != nil {
		return n, err
	}
	n.HugepageSizes = hugepageSizes()
	n.SwapAccounting = swapAccounting()
	n.SELinux = selinux.GetEnabled()
	_, err = unix.PrctlRetInt(unix.PR_GET_SECCOMP, 0, 0, 0, 0)
	n.NoSeccomp = errors.Is(err, unix.EINVAL)
	n.RecursiveReadOnly = recursiveReadOnly()
	return n, nil
})

// swapAccounting asks the memory controller; on v2 only cgroups below the root
// have the file, and every one has it or none.
func swapAccounting() bool {
	for _, pattern := range []string{"/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes", "/sys/fs/cgroup/*/memory.swap.max"} {
		if names, err := filepath.Glob(pattern); err == nil && len(names) > 0 {
			return true
		}
	}
	return false
}

// recursiveReadOnly says that the kernel has mount_setattr(2), since 5.12; crun
// and runc of the versions that we can drive know the option.
func recursiveReadOnly() bool {
	err := unix.MountSetattr(-1, "", 0, &unix.MountAttr{})
	return !errors.Is(err, unix.ENOSYS)
}

// oomScoreAdjMin is the process's own value unless it may go below it.
func oomScoreAdjMin(caps capability.Capabilities) (int, error) {
	if caps.Get(capability.EFFECTIVE, capability.CAP_SYS_RESOURCE) {
		return -1000, nil
	}
	raw, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return 0, fmt.Errorf("read own OOM score: %w", err)
	}
	own, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		return 0, fmt.Errorf("read own OOM score: %w", err)
	}
	return own, nil
}

// hugepageSizes are the page sizes that a hugetlb controller of the node can
// limit, in CRI's spelling ("2MB").
func hugepageSizes() []string {
	var sizes []string
	// A hybrid hierarchy's v2 part is none that an OCI runtime would write to.
	for _, pattern := range []string{"/sys/fs/cgroup/hugetlb/hugetlb.*.limit_in_bytes", "/sys/fs/cgroup/*.slice/hugetlb.*.max"} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			continue // only a malformed pattern fails
		}
		for _, n := range names {
			if size := strings.Split(filepath.Base(n), ".")[1]; !slices.Contains(sizes, size) {
				sizes = append(sizes, size)
			}
		}
	}
	return sizes
}

func namedDevices(paths []string) (map[string][]specs.LinuxDevice, error) {
	found := map[string][]specs.LinuxDevice{}
	for _, path := range paths {
		real, err := filepath.EvalSymlinks(path)
		if err != nil {
			return nil, fmt.Errorf("device: %w", err)
		}
		if found[path], err = devicesBelow(real); err != nil {
			return nil, err
		}
	}
	return found, nil
}

// devicesBelow lists the device nodes at a path or below it. What a container
// gets by itself (pts, shm, mqueue, the console) is left out.
func devicesBelow(root string) ([]specs.LinuxDevice, error) {
	skip := map[string]bool{"/dev/pts": true, "/dev/shm": true, "/dev/mqueue": true, "/dev/fd": true, "/dev/console": true, "/dev/.lxc": true, "/dev/.udev": true}
	var found []specs.LinuxDevice
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a device that was unplugged meanwhile
		}
		if err != nil {
			return err
		}
		if path != root && skip[path] {
			if e.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if e.Type()&fs.ModeDevice == 0 {
			return nil
		}
		dev, err := device(path)
		if err != nil {
			return err
		}
		found = append(found, dev)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	return found, nil
}

func device(path string) (specs.LinuxDevice, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return specs.LinuxDevice{}, &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	kind := "b"
	if st.Mode&unix.S_IFMT == unix.S_IFCHR {
		kind = "c"
	}
	mode := fs.FileMode(st.Mode & 0o777)
	return specs.LinuxDevice{
		Path:     path,
		Type:     kind,
		Major:    int64(unix.Major(st.Rdev)),
		Minor:    int64(unix.Minor(st.Rdev)),
		FileMode: &mode,
		UID:      &st.Uid,
		GID:      &st.Gid,
	}, nil
}
