// Package apparmor loads the profile that containers get by default, and tells
// which profiles the kernel has. It knows nothing of pods.
package apparmor

import (
	"bufio"
	"context"
	"crypto/sha256"
	_ "embed" // the profile
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/gantry-cri/gantry/stage0/durable"
	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// Default is the name of the profile that RuntimeDefault stands for.
const Default = "gantry-default"

//go:embed gantry-default
var profile string

const (
	// parser makes the kernel's form of a profile and loads it.
	parser = "apparmor_parser"
	// loadTimeout bounds a load, which takes a tenth of a second on an idle node.
	loadTimeout = 30 * time.Second
)

// Kernel is what the kernel and the node say about AppArmor. The zero value is not
// usable; see [New].
type Kernel struct {
	enabled  string // file that says Y
	profiles string // file that lists what is loaded
	stamp    string // file that says which text of ours was loaded
	parser   string
}

// New returns the node's. stamp is a file that remembers which version of the
// default profile was loaded; its directory is made when it is missing.
func New(stamp string) *Kernel {
	return &Kernel{
		enabled:  "/sys/module/apparmor/parameters/enabled",
		profiles: "/sys/kernel/security/apparmor/profiles",
		stamp:    stamp,
		parser:   parser,
	}
}

// Enabled says whether the kernel enforces profiles.
func (k *Kernel) Enabled() bool {
	raw, err := os.ReadFile(k.enabled)
	return err == nil && strings.HasPrefix(string(raw), "Y")
}

// Loaded says whether the kernel has a profile of a name. It reads a list that is
// usually a hundred lines.
func (k *Kernel) Loaded(name string) (bool, error) {
	f, err := os.Open(k.profiles)
	if err != nil {
		return false, fmt.Errorf("list AppArmor profiles: %w", err)
	}
	defer func() { _ = f.Close() }() // only read
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// "NAME (MODE)"; a name may have spaces.
		line := lines.Text()
		if i := strings.LastIndex(line, " ("); i >= 0 && line[:i] == name {
			return true, nil
		}
	}
	if err := lines.Err(); err != nil {
		return false, fmt.Errorf("list AppArmor profiles: %w", err)
	}
	return false, nil
}

// EnsureDefault loads the default profile unless the kernel has this text of it,
// and returns its name. It is empty where there is no default: the kernel does not
// enforce profiles, or the node has no apparmor_parser to load one with.
//
// The parser's cache is left alone: it goes by file name and time, and could hold
// the text of another version. Two at once load the same twice, which does no harm.
func (k *Kernel) EnsureDefault(ctx context.Context) (name string, err error) {
	if !k.Enabled() {
		return "", nil
	}
	sum := sha256.Sum256([]byte(profile))
	version := hex.EncodeToString(sum[:])
	current, err := k.current(version)
	if err != nil || current {
		return Default, err
	}
	path, err := exec.LookPath(k.parser)
	if err != nil {
		return "", nil //nolint:nilerr // a node without the parser has no default; Status says so
	}
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "--replace", "--skip-cache")
	cmd.Stdin = strings.NewReader(profile)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("load AppArmor profile %s: %w: %s", Default, err, strings.TrimSpace(string(out)))
	}
	return Default, k.remember(version)
}

// current says whether what the kernel has under our name is the text of a
// version. A stamp of another boot is none: the kernel lists nothing then.
func (k *Kernel) current(version string) (bool, error) {
	stamp, err := os.ReadFile(k.stamp)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("version of AppArmor profile: %w", err)
	}
	if string(stamp) != version {
		return false, nil
	}
	return k.Loaded(Default)
}

// remember writes the stamp. A reader sees all of it or none.
func (k *Kernel) remember(version string) error {
	if err := os.MkdirAll(filepath.Dir(k.stamp), 0o711); err != nil {
		return fmt.Errorf("version of AppArmor profile: %w", err)
	}
	if err := durable.WriteFile(k.stamp, []byte(version), 0o600, durable.Kill); err != nil {
		return fmt.Errorf("version of AppArmor profile: %w", err)
	}
	return nil
}

// Status says in a few words what containers get, for people.
func (k *Kernel) Status() string {
	if !k.Enabled() {
		return "not enabled on this node"
	}
	loaded, err := k.Loaded(Default)
	switch {
	case err != nil:
		return "enabled, " + err.Error()
	case loaded:
		return "enabled, RuntimeDefault is " + Default
	}
	if _, err := exec.LookPath(k.parser); err != nil {
		return "enabled, but RuntimeDefault confines nothing: install " + parser
	}
	return "enabled, " + Default + " is loaded when a container needs it"
}

// Check says why containers cannot be given a profile of the node: ErrUnsupported
// where there is no AppArmor, ErrState while it is not loaded.
func (k *Kernel) Check(name string) error {
	if !k.Enabled() {
		return fmt.Errorf("AppArmor profile %q: AppArmor is not enabled on this node: %w", name, errdefs.ErrUnsupported)
	}
	loaded, err := k.Loaded(name)
	if err == nil && !loaded {
		err = fmt.Errorf("AppArmor profile %q is not loaded on this node: %w", name, errdefs.ErrState)
	}
	return err
}
