package tree

import (
	"encoding/json"
	"errors"
	"slices"
	"testing"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// FuzzPaths holds that every path comes back from JSON as it was, and that no
// text makes the reader panic.
func FuzzPaths(f *testing.F) {
	for _, s := range []string{"a/b", "\xff", "ä\xe4ö", "\xff\xfe/\x80", "�", "\x00ff", "\x00f", "\x00zz", "a\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if _, err := fromText(s); err != nil && !errors.Is(err, errdefs.ErrInvalid) {
			t.Error(err)
		}
		if slices.Contains([]byte(s), 0) {
			return // no path
		}
		b, err := json.Marshal(Paths{s, "x"})
		if err != nil {
			t.Fatal(err)
		}
		var got Paths
		if err := json.Unmarshal(b, &got); err != nil || !slices.Equal(got, Paths{s, "x"}) {
			t.Errorf("%q became %q, %v, by %s", s, got, err, b)
		}
	})
}
