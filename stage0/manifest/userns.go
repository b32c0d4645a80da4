package manifest

import (
	"encoding/json"
	"fmt"

	"github.com/appc/spec/schema/types"

	"github.com/gantry-cri/gantry/stage0/idmap"
)

// UserNamespaceName is the isolator that gives a pod of the command line a user namespace.
const UserNamespaceName = types.ACIdentifier("gantry/user-namespace")

// UserNamespace is the value of the gantry/user-namespace isolator: the node's ids
// of the pod's.
type UserNamespace struct {
	single
	IDs idmap.Map
}

// MarshalJSON is part of json.Marshaler.
func (u UserNamespace) MarshalJSON() ([]byte, error) { return json.Marshal(u.IDs) }

// UnmarshalJSON is part of appc's IsolatorValue.
func (u *UserNamespace) UnmarshalJSON(b []byte) error {
	if err := json.Unmarshal(b, &u.IDs); err != nil {
		return fmt.Errorf("isolator %s: %w", UserNamespaceName, err)
	}
	return nil
}

// AssertValid is part of appc's IsolatorValue.
func (u UserNamespace) AssertValid() error {
	if err := u.IDs.Check(); err != nil {
		return fmt.Errorf("isolator %s: %w", UserNamespaceName, err)
	}
	return nil
}

// UserNamespaceOf returns the ids of a pod's user namespace; nil for a pod that has none
// of its own.
func UserNamespaceOf(list types.Isolators) *idmap.Map {
	i := list.GetByName(UserNamespaceName)
	if i == nil {
		return nil
	}
	u, ok := i.Value().(*UserNamespace)
	if !ok {
		return nil
	}
	return &u.IDs
}
