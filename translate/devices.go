package translate

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// runtimeDevices are made by the OCI runtime itself in every container.
var runtimeDevices = []string{
	"/dev/console", "/dev/full", "/dev/null", "/dev/ptmx", "/dev/random", "/dev/tty", "/dev/urandom", "/dev/zero",
}

// devices sets the device nodes and the rules of the device cgroup: all for a
// privileged container, else the usual ones and those that were asked for.
func (o *ociSpec) devices() error {
	l := o.spec.Linux
	l.Resources.Devices = defaultDeviceRules()
	if o.privileged() {
		l.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
		for _, d := range o.node.HostDevices {
			o.addDevice(d)
		}
	}
	for _, asked := range o.cri.GetDevices() {
		found, ok := o.node.Devices[asked.GetHostPath()]
		if !ok {
			return fmt.Errorf("device %q: %w", asked.GetHostPath(), errdefs.ErrNotFound)
		}
		access := asked.GetPermissions()
		if access == "" {
			access = "rwm"
		}
		for _, d := range found {
			d.Path = devicePath(d.Path, asked.GetHostPath(), asked.GetContainerPath())
			o.addDevice(d)
			if !o.privileged() {
				l.Resources.Devices = append(l.Resources.Devices, deviceRule(d.Type, d.Major, d.Minor, access))
			}
		}
	}
	return nil
}

// devicePath moves a node from below one directory to below another. One that lies
// elsewhere was reached by a symbolic link and is the device itself.
func devicePath(p, from, to string) string {
	from = path.Clean(from)
	if below, ok := strings.CutPrefix(path.Clean(p), from+"/"); ok {
		return path.Join(to, below)
	}
	return path.Clean(to)
}

// addDevice adds a node, or replaces the one at the same path.
func (o *ociSpec) addDevice(d specs.LinuxDevice) {
	if slices.Contains(runtimeDevices, d.Path) {
		return
	}
	l := o.spec.Linux
	for i := range l.Devices {
		if l.Devices[i].Path == d.Path {
			l.Devices[i] = d
			return
		}
	}
	l.Devices = append(l.Devices, d)
}

func deviceRule(kind string, major, minor int64, access string) specs.LinuxDeviceCgroup {
	rule := specs.LinuxDeviceCgroup{Allow: true, Type: kind, Access: access}
	if major >= 0 {
		rule.Major = &major
	}
	if minor >= 0 {
		rule.Minor = &minor
	}
	return rule
}

// defaultDeviceRules deny everything, then allow making any node (without opening
// it) and using the usual ones.
func defaultDeviceRules() []specs.LinuxDeviceCgroup {
	return []specs.LinuxDeviceCgroup{
		{Allow: false, Access: "rwm"},
		deviceRule("c", -1, -1, "m"),
		deviceRule("b", -1, -1, "m"),
		deviceRule("c", 1, 3, "rwm"),    // null
		deviceRule("c", 1, 5, "rwm"),    // zero
		deviceRule("c", 1, 7, "rwm"),    // full
		deviceRule("c", 1, 8, "rwm"),    // random
		deviceRule("c", 1, 9, "rwm"),    // urandom
		deviceRule("c", 5, 0, "rwm"),    // tty
		deviceRule("c", 5, 1, "rwm"),    // console
		deviceRule("c", 5, 2, "rwm"),    // ptmx
		deviceRule("c", 136, -1, "rwm"), // pts
	}
}
