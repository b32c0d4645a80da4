package manifest

import (
	"encoding/json"
	"testing"

	"github.com/appc/spec/schema/types"
)

// TestIsEnvName compares with what appc refuses to write.
func TestIsEnvName(t *testing.T) {
	for _, name := range []string{
		"", "A", "z", "_", "a1", "1a", "9", "a.b-c_D", ".a", "-", "a b", "a\n", "\na", "a=b", "a=", "é", "aé", "a\xff", "\xff", "a\x00", "PATH", "@", "[", "`", "{",
	} {
		_, err := json.Marshal(types.Environment{{Name: name, Value: "v"}})
		if got := IsEnvName(name); got != (err == nil) {
			t.Errorf("%q: %v, appc says %v", name, got, err)
		}
	}
}
