package translate

import (
	"fmt"
	"strings"

	"github.com/appc/spec/schema/types"
)

// acName derives an appc name: lower case, every other character a dash, runs
// of dashes one. fallback is returned where nothing is left.
func acName(s, fallback string) types.ACName {
	var b strings.Builder
	for _, r := range strings.ToLower(s) {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			b.WriteRune(r)
		case b.Len() > 0 && !strings.HasSuffix(b.String(), "-"):
			b.WriteByte('-')
		}
	}
	name := strings.TrimSuffix(b.String(), "-")
	if name == "" {
		name = fallback
	}
	return types.ACName(name)
}

// names hands out appc names, each once.
type names map[types.ACName]bool

// unique returns the name, with -2, -3 … behind it where it is taken.
func (n names) unique(name types.ACName) types.ACName {
	candidate := name
	for i := 2; n[candidate]; i++ {
		candidate = types.ACName(fmt.Sprintf("%s-%d", name, i))
	}
	n[candidate] = true
	return candidate
}
