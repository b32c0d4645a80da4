package translate

import (
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

const (
	profileDefault    = runtimeapi.SecurityProfile_RuntimeDefault
	profileUnconfined = runtimeapi.SecurityProfile_Unconfined
	profileLocalhost  = runtimeapi.SecurityProfile_Localhost
)

// The masked and read-only paths of pods that CRI did not give any.
var (
	defaultMasked = []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
		"/sys/devices/virtual/powercap", "/sys/firmware",
	}
	defaultReadonly = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// profile returns the profile of the new field, else what the old string says; nil
// where neither says anything.
func profile(p *runtimeapi.SecurityProfile, old string) (*runtimeapi.SecurityProfile, error) {
	switch {
	case p != nil:
		return p, nil
	case old == "":
		return nil, nil
	case old == "runtime/default", old == "docker/default":
		return &runtimeapi.SecurityProfile{ProfileType: profileDefault}, nil
	case old == "unconfined":
		return &runtimeapi.SecurityProfile{ProfileType: profileUnconfined}, nil
	case strings.HasPrefix(old, "localhost/"):
		return &runtimeapi.SecurityProfile{ProfileType: profileLocalhost, LocalhostRef: strings.TrimPrefix(old, "localhost/")}, nil
	}
	return nil, fmt.Errorf("profile %q: %w", old, errdefs.ErrInvalid)
}

func checkSeccomp(p *runtimeapi.SecurityProfile, old string) error {
	const field = "linux.security_context.seccomp"
	p, err := profile(p, old)
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", field, err)
	case !knownEnum(p.GetProfileType()):
		return unsupported(field+".profile_type", "number %d", p.GetProfileType())
	case p.GetProfileType() == profileLocalhost && !path.IsAbs(p.GetLocalhostRef()):
		return invalid(field+".localhost_ref", "%q is not an absolute path", p.GetLocalhostRef())
	}
	return nil
}

func checkAppArmor(p *runtimeapi.SecurityProfile, old string) error {
	const field = "linux.security_context.apparmor"
	p, err := profile(p, old)
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", field, err)
	case !knownEnum(p.GetProfileType()):
		return unsupported(field+".profile_type", "number %d", p.GetProfileType())
	case p.GetProfileType() == profileLocalhost && armorName(p) == "":
		return invalid(field+".localhost_ref", "no profile is named")
	}
	return nil
}

// checkSandboxAppArmor refuses a profile of the node: a sandbox has no process that
// it could confine.
func checkSandboxAppArmor(p *runtimeapi.SecurityProfile) error {
	if p.GetProfileType() == profileLocalhost {
		return unsupported("linux.security_context.apparmor", "profile %q: a sandbox has no process of its own; its containers are confined", p.GetLocalhostRef())
	}
	return checkAppArmor(p, "")
}

// armorName is the name that the kernel knows a profile of the node by. Kubelets
// send it with the prefix of the old string, and without.
func armorName(p *runtimeapi.SecurityProfile) string {
	return strings.TrimPrefix(p.GetLocalhostRef(), "localhost/")
}

// confine sets the seccomp filter, the AppArmor profile and the paths that are
// hidden or read-only. The process's capabilities must be set already: they
// decide what the default filter lets through.
func (o *ociSpec) confine() error {
	o.spec.Linux.MaskedPaths, o.spec.Linux.ReadonlyPaths = []string{}, []string{}
	if err := o.selinux(); err != nil {
		return err
	}
	if err := o.appArmor(); err != nil {
		return err
	}
	if o.privileged() {
		return nil
	}
	if o.cri == nil {
		o.spec.Linux.MaskedPaths, o.spec.Linux.ReadonlyPaths = defaultMasked, defaultReadonly
		return o.seccomp(&runtimeapi.SecurityProfile{ProfileType: profileDefault})
	}
	sec := o.security()
	o.spec.Linux.MaskedPaths = append(o.spec.Linux.MaskedPaths, sec.GetMaskedPaths()...)
	o.spec.Linux.ReadonlyPaths = append(o.spec.Linux.ReadonlyPaths, sec.GetReadonlyPaths()...)

	filter, err := profile(sec.GetSeccomp(), sec.GetSeccompProfilePath()) //nolint:staticcheck // older kubelets send it
	if err != nil {
		return fmt.Errorf("seccomp: %w", err)
	}
	return o.seccomp(filter)
}

// appArmorOf says which profile confines an app: the default one, or one of the
// node by name; neither where nothing does. No profile at all means the default. A
// privileged container is confined only by a profile that was named.
func appArmorOf(sec *runtimeapi.LinuxContainerSecurityContext) (isDefault bool, name string, err error) {
	p, err := profile(sec.GetApparmor(), sec.GetApparmorProfile()) //nolint:staticcheck // older kubelets send it
	if err != nil {
		return false, "", fmt.Errorf("apparmor: %w", err)
	}
	switch p.GetProfileType() {
	case profileLocalhost:
		return false, armorName(p), nil
	case profileUnconfined:
		return false, "", nil
	}
	return !sec.GetPrivileged(), "", nil
}

func (o *ociSpec) appArmor() error {
	isDefault, name, err := appArmorOf(o.security())
	switch {
	case err != nil:
		return err
	case isDefault:
		o.spec.Process.ApparmorProfile = o.node.AppArmor
	case name == "":
	case !slices.Contains(o.node.AppArmorProfiles, name):
		return fmt.Errorf("AppArmor profile %q is not loaded on the node: %w", name, errdefs.ErrState)
	default:
		o.spec.Process.ApparmorProfile = name
	}
	return nil
}

// selinux refuses labels where they would mean something. On a node without
// SELinux they are without effect, as they are for every runtime: workloads that run
// on both kinds of nodes carry them.
func (o *ociSpec) selinux() error {
	l := o.security().GetSelinuxOptions()
	if o.node.SELinux && l.GetUser()+l.GetRole()+l.GetType()+l.GetLevel() != "" {
		return unsupported("linux.security_context.selinux_options", "labels are not set by this version")
	}
	return nil
}

// seccomp sets the filter of a profile; none at all is unconfined.
func (o *ociSpec) seccomp(p *runtimeapi.SecurityProfile) error {
	if p == nil || p.GetProfileType() == profileUnconfined {
		return nil
	}
	var filter *specs.LinuxSeccomp
	var err error
	switch localhost := p.GetProfileType() == profileLocalhost; {
	case o.node.NoSeccomp && localhost:
		return fmt.Errorf("seccomp profile %q: the node has no seccomp: %w", p.GetLocalhostRef(), errdefs.ErrUnsupported)
	case o.node.NoSeccomp:
		o.warn("the node has no seccomp: the default profile is left out")
		return nil
	case localhost:
		body, ok := o.node.SeccompProfiles[p.GetLocalhostRef()]
		if !ok {
			return fmt.Errorf("seccomp profile %q: %w", p.GetLocalhostRef(), errdefs.ErrNotFound)
		}
		filter, err = loadProfile(body, o.spec)
	default:
		filter, err = seccomp.GetDefaultProfile(o.spec)
	}
	if err != nil {
		return fmt.Errorf("seccomp profile %q: %w: %w", p.GetLocalhostRef(), errdefs.ErrInvalid, err)
	}
	o.spec.Linux.Seccomp = filter
	return nil
}

// loadProfile reads a profile of the node. One that says nothing, a file that lost its
// content for example, would mean no filter at all, which is to be asked for by name.
func loadProfile(body []byte, spec *specs.Spec) (*specs.LinuxSeccomp, error) {
	var rules struct{ Syscalls []*json.RawMessage }
	if err := json.Unmarshal(body, &rules); err != nil {
		return nil, err
	}
	if slices.Contains(rules.Syscalls, nil) {
		return nil, errors.New("a null among its syscalls") // moby's loader follows the nil pointer
	}
	filter, err := seccomp.LoadProfile(string(body), spec)
	if err == nil && (filter == nil || filter.DefaultAction == "") {
		err = errors.New("no default action")
	}
	return filter, err
}
