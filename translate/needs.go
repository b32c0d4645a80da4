package translate

import (
	"fmt"

	"github.com/appc/spec/schema"
	"github.com/appc/spec/schema/types"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// Needs says what ToOCI wants to know about an app: stage1 looks it up and puts
// the answers into a [Node] and a [Place].
type Needs struct {
	// User and Group are to be resolved in the root filesystem: a number, a name,
	// or a path whose owner is meant. An empty Group is the user's primary group in
	// /etc/passwd, 0 for a user who is not there.
	User, Group string
	// Privileged says that Node.HostDevices is used.
	Privileged bool
	// Devices are paths on the host of device nodes or directories of them.
	Devices []string
	// SeccompProfiles are absolute paths of profiles on the node.
	SeccompProfiles []string
	// AppArmor says that Node.AppArmor is used, and AppArmorProfiles names the
	// profiles that the kernel must have.
	AppArmor         bool
	AppArmorProfiles []string
	// Volumes are the directories to make for the app.
	Volumes []EmptyVolume
}

// EmptyVolume is a directory that is made when the pod first runs.
type EmptyVolume struct {
	// Name is the key in Place.Volumes.
	Name string
	// Mode is octal, as appc has it; UID and GID own the directory.
	Mode     string
	UID, GID int
	// Seed is the path in the image whose content, owner and mode the directory
	// takes on; empty for a declared volume. A seeded one may be left out: its path
	// then lies in the app's root filesystem.
	Seed string
}

// NeedsOf returns what ToOCI will want to know about an app of a pod.
func NeedsOf(pm *schema.PodManifest, app string) (Needs, error) {
	ra := pm.Apps.Get(types.ACName(app))
	if ra == nil || ra.App == nil {
		return Needs{}, fmt.Errorf("the pod has no app %q: %w", app, errdefs.ErrNotFound)
	}
	c, err := containerRest(ra)
	if err != nil {
		return Needs{}, err
	}
	var needs Needs
	needs.User, needs.Group = identityOf(ra)
	sec := c.GetLinux().GetSecurityContext()
	needs.Privileged = sec.GetPrivileged()
	for _, d := range c.GetDevices() {
		needs.Devices = append(needs.Devices, d.GetHostPath())
	}
	filter, err := profile(sec.GetSeccomp(), sec.GetSeccompProfilePath()) //nolint:staticcheck // older kubelets send it
	if err != nil {
		return Needs{}, fmt.Errorf("app %s: seccomp: %w", app, err)
	}
	if filter.GetProfileType() == profileLocalhost && !needs.Privileged {
		needs.SeccompProfiles = append(needs.SeccompProfiles, filter.GetLocalhostRef())
	}
	isDefault, armor, err := appArmorOf(sec)
	if err != nil {
		return Needs{}, fmt.Errorf("app %s: %w", app, err)
	}
	needs.AppArmor = isDefault
	if armor != "" {
		needs.AppArmorProfiles = append(needs.AppArmorProfiles, armor)
	}
	mounts, err := appMounts(pm, ra, c)
	if err != nil {
		return Needs{}, fmt.Errorf("app %s: %w", app, err)
	}
	for _, m := range mounts {
		if m.volume.Kind == kindEmpty {
			needs.Volumes = append(needs.Volumes, emptyVolume(m))
		}
	}
	return needs, nil
}

// emptyVolume fills in the defaults of appc, which its decoder does too.
func emptyVolume(m appMount) EmptyVolume {
	v := EmptyVolume{Name: m.volume.Name.String(), Mode: "0755", Seed: m.seed}
	if m.volume.Mode != nil {
		v.Mode = *m.volume.Mode
	}
	if m.volume.UID != nil {
		v.UID = *m.volume.UID
	}
	if m.volume.GID != nil {
		v.GID = *m.volume.GID
	}
	return v
}

// InitNeeds returns the seccomp profiles on the node that ToOCIInit wants to see.
func InitNeeds(sandbox *schema.PodManifest) (profiles []string, err error) {
	pod, _, err := SandboxConfig(sandbox)
	if err != nil {
		return nil, err
	}
	sec := pod.GetLinux().GetSecurityContext()
	filter, err := profile(sec.GetSeccomp(), sec.GetSeccompProfilePath()) //nolint:staticcheck // older kubelets send it
	if err != nil {
		return nil, fmt.Errorf("seccomp: %w", err)
	}
	if filter.GetProfileType() == profileLocalhost {
		profiles = append(profiles, filter.GetLocalhostRef())
	}
	return profiles, nil
}
