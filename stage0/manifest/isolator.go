// Package manifest holds what Gantry adds to appc's pod manifest: the three
// isolators that carry what appc cannot say, and the two spellings of a pod's
// identity. Everything else of a manifest is appc's own schema.
package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/appc/spec/schema/types"
)

const (
	// CRIName is the isolator that holds what CRI asked for and appc cannot say.
	CRIName = types.ACIdentifier("gantry/cri")
	// OCIAdjustName is the isolator that holds what NRI and CDI changed, in OCI terms.
	OCIAdjustName = types.ACIdentifier("gantry/oci-adjust")
	// CRIVersion is the CRI API that the messages in a CRI isolator are of.
	CRIVersion = "v1/0.37.2"
)

// CRI is the value of the gantry/cri isolator: a CRI message as protojson, less
// the fields that appc carries. On a pod it holds the runtime.v1.PodSandboxConfig,
// on an app the runtime.v1.ContainerConfig.
type CRI struct {
	single
	// APIVersion says which CRI API the messages are of.
	APIVersion string
	// RuntimeHandler is the handler that a sandbox asked for; empty is the default.
	RuntimeHandler string
	// Sandbox is a runtime.v1.PodSandboxConfig in protojson, or nil.
	Sandbox json.RawMessage
	// Container is a runtime.v1.ContainerConfig in protojson, or nil.
	Container json.RawMessage
}

// OCIAdjust is the value of the gantry/oci-adjust isolator: a partial OCI runtime
// configuration (runtime-spec config.json) that is merged over the translated one.
type OCIAdjust struct {
	single
	// Spec is the partial OCI configuration.
	Spec json.RawMessage
}

// single borrows appc's unexported promise that an isolator occurs at most once.
type single struct{ types.LinuxNoNewPrivileges }

// Conflicts is part of appc's IsolatorValue: neither isolator excludes another.
func (single) Conflicts() []types.ACIdentifier { return nil }

type criJSON struct {
	APIVersion     string          `json:"apiVersion"`
	RuntimeHandler string          `json:"runtimeHandler,omitempty"`
	Sandbox        json.RawMessage `json:"sandbox,omitempty"`
	Container      json.RawMessage `json:"container,omitempty"`
}

// MarshalJSON is part of json.Marshaler.
func (c CRI) MarshalJSON() ([]byte, error) {
	return json.Marshal(criJSON{c.APIVersion, c.RuntimeHandler, c.Sandbox, c.Container})
}

// UnmarshalJSON is part of appc's IsolatorValue.
func (c *CRI) UnmarshalJSON(b []byte) error {
	var v criJSON
	if err := json.Unmarshal(b, &v); err != nil {
		return fmt.Errorf("isolator %s: %w", CRIName, err)
	}
	c.APIVersion, c.RuntimeHandler, c.Sandbox, c.Container = v.APIVersion, v.RuntimeHandler, v.Sandbox, v.Container
	return nil
}

// AssertValid is part of appc's IsolatorValue.
func (c CRI) AssertValid() error {
	if c.APIVersion == "" {
		return errors.New("isolator gantry/cri: apiVersion is missing")
	}
	return nil
}

// MarshalJSON is part of json.Marshaler.
func (a OCIAdjust) MarshalJSON() ([]byte, error) { return a.Spec, nil }

// UnmarshalJSON is part of appc's IsolatorValue.
func (a *OCIAdjust) UnmarshalJSON(b []byte) error {
	a.Spec = bytes.Clone(b)
	return nil
}

// AssertValid is part of appc's IsolatorValue.
func (a OCIAdjust) AssertValid() error {
	if !json.Valid(a.Spec) {
		return errors.New("isolator gantry/oci-adjust: the value is not JSON")
	}
	return nil
}

// RegisterIsolators tells appc's decoder about Gantry's isolators. main calls it
// once, before any manifest is read; tests call it in TestMain.
func RegisterIsolators() {
	types.AddIsolatorValueConstructor(CRIName, func() types.IsolatorValue { return &CRI{} })
	types.AddIsolatorValueConstructor(OCIAdjustName, func() types.IsolatorValue { return &OCIAdjust{} })
	types.AddIsolatorValueConstructor(UserNamespaceName, func() types.IsolatorValue { return &UserNamespace{} })
}

// Isolator wraps a value of this package as an appc isolator.
func Isolator(name types.ACIdentifier, value json.Marshaler) (types.Isolator, error) {
	raw, err := value.MarshalJSON()
	if err != nil {
		return types.Isolator{}, fmt.Errorf("isolator %s: %w", name, err)
	}
	wrapped, err := json.Marshal(struct {
		Name  types.ACIdentifier `json:"name"`
		Value json.RawMessage    `json:"value"`
	}{name, raw})
	if err != nil {
		return types.Isolator{}, fmt.Errorf("isolator %s: %w", name, err)
	}
	var i types.Isolator
	if err := i.UnmarshalJSON(wrapped); err != nil {
		return types.Isolator{}, fmt.Errorf("isolator %s: %w", name, err)
	}
	return i, nil
}
