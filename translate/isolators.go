package translate

import (
	"encoding/json"
	"fmt"

	"github.com/appc/spec/schema/types"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/manifest"
)

// Gantry's annotations on a RuntimeApp: facts that appc has no field for and that
// CRI did not ask for.
const (
	// annotationStopSignal is the image's STOPSIGNAL.
	annotationStopSignal = types.ACIdentifier("gantry/image-stop-signal")
	// annotationEnv is a JSON list of the image's variables whose names appc refuses.
	annotationEnv = types.ACIdentifier("gantry/image-env")
	// annotationGroup says that nobody named a group: app.group stands for the
	// user's primary group.
	annotationGroup = types.ACIdentifier("gantry/group")
	groupPrimary    = "primary"
)

// isolatorList collects isolators and keeps the first error.
type isolatorList struct {
	list types.Isolators
	err  error
}

// add appends an isolator of any value that JSON can hold.
func (l *isolatorList) add(name types.ACIdentifier, value any) {
	if l.err != nil {
		return
	}
	raw, err := json.Marshal(value)
	if err != nil {
		l.err = fmt.Errorf("isolator %s: %w", name, err)
		return
	}
	i, err := manifest.Isolator(name, json.RawMessage(raw))
	if err != nil {
		l.err = fmt.Errorf("%w: %w", errdefs.ErrInvalid, err)
		return
	}
	l.list = append(l.list, i)
}

// value returns the value of the last isolator of a name as a T; ok is false
// where there is none.
func value[T types.IsolatorValue](isolators types.Isolators, name types.ACIdentifier) (v T, ok bool) {
	i := isolators.GetByName(name)
	if i == nil {
		return v, false
	}
	v, ok = i.Value().(T)
	return v, ok
}

// honoured are the isolators that ToOCI understands on an app.
var honoured = map[types.ACIdentifier]bool{
	manifest.CRIName:                     true,
	manifest.OCIAdjustName:               true,
	types.ResourceMemoryName:             true,
	types.ResourceCPUName:                true,
	types.LinuxCPUSharesName:             true,
	types.LinuxOOMScoreAdjName:           true,
	types.LinuxNoNewPrivilegesName:       true,
	types.LinuxCapabilitiesRetainSetName: true,
	types.LinuxCapabilitiesRevokeSetName: true,
}

// checkHonoured refuses isolators that would be dropped without a word.
func checkHonoured(app string, isolators types.Isolators) error {
	for _, i := range isolators {
		if !honoured[i.Name] {
			return fmt.Errorf("app %s: isolator %q: %w", app, i.Name, errdefs.ErrUnsupported)
		}
	}
	return nil
}

// memoryLimit is the value of resource/memory with a limit alone.
type memoryLimit struct {
	Default bool    `json:"default"`
	Request *string `json:"request"`
	Limit   string  `json:"limit"`
}
