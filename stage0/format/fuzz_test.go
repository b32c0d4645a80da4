package format_test

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/format"
	"github.com/gantry-cri/gantry/stage0/format/formattest"
)

// FuzzVersion holds that a version is one that is read, that text which is no JSON
// is of none, and that a later version is told from damage.
func FuzzVersion(f *testing.F) {
	formattest.Seed(f)
	for _, s := range []string{"", "null", "[]", `{"schema":null}`, `{"schema":1e0}`, `{"schema":-1}`, `{"schema":2,"SCHEMA":1}`, `{"schema":99999999999999999999}`, `{"schema":{}}`, "{\"schema\":6,\"name\":\"re\xc5istry\"}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, file := range format.Files {
			version, err := file.Version(text)
			if err == nil && (version < file.Oldest || version > file.Current || !json.Valid(text)) {
				t.Errorf("%s: version %d of %q", file.Name, version, text)
			}
			if errors.Is(err, errdefs.ErrUnsupported) && !json.Valid(text) {
				t.Errorf("%s: %v of what is damaged", file.Name, err)
			}
			var v any
			if file.Decode(text, &v) == nil && err != nil {
				t.Errorf("%s: decoded though %v", file.Name, err)
			}
		}
	})
}
