package translate

import (
	"fmt"
	"slices"
	"strings"

	"github.com/appc/spec/schema"
	"github.com/appc/spec/schema/types"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// defaultCapabilities are docker's, containerd's and rkt's.
var defaultCapabilities = []string{
	"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
	"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
}

// knownCapabilities are those that runc 1.1 and crun 1.8 know, in sorted order.
var knownCapabilities = []string{
	"CAP_AUDIT_CONTROL", "CAP_AUDIT_READ", "CAP_AUDIT_WRITE", "CAP_BLOCK_SUSPEND", "CAP_BPF",
	"CAP_CHECKPOINT_RESTORE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER",
	"CAP_FSETID", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_KILL", "CAP_LEASE", "CAP_LINUX_IMMUTABLE",
	"CAP_MAC_ADMIN", "CAP_MAC_OVERRIDE", "CAP_MKNOD", "CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE",
	"CAP_NET_BROADCAST", "CAP_NET_RAW", "CAP_PERFMON", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP",
	"CAP_SETUID", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_CHROOT", "CAP_SYSLOG", "CAP_SYS_MODULE",
	"CAP_SYS_NICE", "CAP_SYS_PACCT", "CAP_SYS_PTRACE", "CAP_SYS_RAWIO", "CAP_SYS_RESOURCE",
	"CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_WAKE_ALARM",
}

const capabilityAll = "ALL"

// capability returns the kernel's spelling of a name with or without CAP_.
func capability(name string) (string, error) {
	c := strings.ToUpper(name)
	if c == capabilityAll {
		return c, nil
	}
	if !strings.HasPrefix(c, "CAP_") {
		c = "CAP_" + c
	}
	if !slices.Contains(knownCapabilities, c) {
		return "", fmt.Errorf("capability %q: %w", name, errdefs.ErrInvalid)
	}
	return c, nil
}

func checkCapabilities(c *runtimeapi.Capability) error {
	const field = "linux.security_context.capabilities."
	for _, l := range []struct {
		field string
		list  []string
	}{
		{"add_capabilities", c.GetAddCapabilities()},
		{"drop_capabilities", c.GetDropCapabilities()},
		{"add_ambient_capabilities", c.GetAddAmbientCapabilities()},
	} {
		for _, name := range l.list {
			if _, err := capability(name); err != nil {
				return fmt.Errorf("%s%s: %w", field, l.field, err)
			}
		}
	}
	return nil
}

// capSet is a set of capabilities that holds back what the runtime itself lacks.
type capSet struct {
	has map[string]bool
	all []string // what the runtime has
}

func newCapSet(n Node) *capSet {
	s := &capSet{has: map[string]bool{}, all: n.Capabilities}
	if len(s.all) == 0 {
		s.all = knownCapabilities
	}
	return s
}

// fill adds those of the list that the runtime has.
func (s *capSet) fill(list []string) {
	for _, c := range list {
		if slices.Contains(s.all, c) {
			s.has[c] = true
		}
	}
}

// add adds one that was asked for by name.
func (s *capSet) add(name string) error {
	c, err := capability(name)
	switch {
	case err != nil:
		return err
	case c == capabilityAll:
		s.fill(s.all)
	case !slices.Contains(s.all, c):
		return fmt.Errorf("capability %s: the runtime itself does not have it: %w", c, errdefs.ErrUnsupported)
	default:
		s.has[c] = true
	}
	return nil
}

// drop removes one, or all.
func (s *capSet) drop(name string) error {
	c, err := capability(name)
	switch {
	case err != nil:
		return err
	case c == capabilityAll:
		clear(s.has)
	default:
		delete(s.has, c)
	}
	return nil
}

func (s *capSet) sorted() []string {
	list := []string{}
	for c := range s.has {
		list = append(list, c)
	}
	slices.Sort(list)
	return list
}

// processCapabilities returns the capability sets of an app.
func processCapabilities(ra *schema.RuntimeApp, c *runtimeapi.ContainerConfig, n Node) (*specs.LinuxCapabilities, error) {
	set, ambient := newCapSet(n), newCapSet(n)
	var err error
	switch sec := c.GetLinux().GetSecurityContext(); {
	case sec.GetPrivileged():
		set.fill(set.all)
	case c != nil:
		err = criCapabilities(set, ambient, sec.GetCapabilities())
	default:
		err = appcCapabilities(set, ra.App.Isolators)
	}
	if err != nil {
		return nil, fmt.Errorf("app %s: %w", ra.Name, err)
	}
	// Inheritable stays empty: a file's inheritable capabilities would otherwise be
	// gained by any user. Ambient ones need it.
	list := set.sorted()
	return &specs.LinuxCapabilities{
		Bounding: list, Effective: list, Permitted: list,
		Inheritable: ambient.sorted(), Ambient: ambient.sorted(),
	}, nil
}

// criCapabilities applies ALL first, so that "drop ALL, add X" leaves X.
func criCapabilities(set, ambient *capSet, c *runtimeapi.Capability) error {
	set.fill(defaultCapabilities)
	isAll := func(name string) bool { return strings.EqualFold(name, capabilityAll) }
	if slices.ContainsFunc(c.GetAddCapabilities(), isAll) {
		set.fill(set.all)
	}
	if slices.ContainsFunc(c.GetDropCapabilities(), isAll) {
		clear(set.has)
	}
	for _, name := range c.GetAddCapabilities() {
		if isAll(name) {
			continue
		}
		if err := set.add(name); err != nil {
			return err
		}
	}
	for _, name := range c.GetDropCapabilities() {
		if isAll(name) {
			continue
		}
		if err := set.drop(name); err != nil {
			return err
		}
	}
	for _, name := range c.GetAddAmbientCapabilities() {
		if err := first(ambient.add(name), set.add(name)); err != nil {
			return err
		}
	}
	return nil
}

// appcCapabilities: a retain set is the whole set, a remove set is taken from the default.
func appcCapabilities(set *capSet, isolators types.Isolators) error {
	var retain, remove []types.LinuxCapability
	retained := false
	for _, i := range isolators {
		switch v := i.Value().(type) {
		case *types.LinuxCapabilitiesRetainSet:
			retain, retained = append(retain, v.Set()...), true
		case *types.LinuxCapabilitiesRevokeSet:
			remove = append(remove, v.Set()...)
		}
	}
	if !retained {
		set.fill(defaultCapabilities)
	}
	for _, c := range retain {
		if err := set.add(string(c)); err != nil {
			return err
		}
	}
	for _, c := range remove {
		if err := set.drop(string(c)); err != nil {
			return err
		}
	}
	return nil
}
