package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// FuzzDecode holds that a pod manifest that is read can be written, and that what is
// written is read and written the same again.
func FuzzDecode(f *testing.F) {
	golden, err := filepath.Glob("../../translate/testdata/*.json")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range golden {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	const head = `{"acKind":"PodManifest","acVersion":"0.8.11"`
	f.Add([]byte(head + `,"isolators":[{"name":"gantry/cri","value":{"apiVersion":"v1"}},{"name":"gantry/oci-adjust","value":{"a":1}}]}`))
	f.Add([]byte(head + `,"apps":[null],"volumes":[null],"ports":[null],"annotations":[null]}`))
	f.Add([]byte(head + `,"apps":[{"name":"a","image":{"id":"sha512-00"},"app":{"exec":["/a"],"user":"0","group":"0","isolators":[{"name":"resource/cpu","value":{"limit":"1"}}]}}]}`))
	f.Add([]byte(head + `,"isolators":[{"name":"gantry/cri","value":1,"value":null}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		pm, err := Decode(text)
		if err != nil {
			if !errors.Is(err, errdefs.ErrInvalid) && !errors.Is(err, errdefs.ErrUnsupported) {
				t.Errorf("%v is of no class", err)
			}
			return
		}
		CRIOf(pm.Isolators)
		first, err := json.Marshal(pm)
		if err != nil {
			return // appc writes less than it reads: a null has no checks
		}
		again, err := Decode(first)
		if err != nil {
			t.Fatalf("%s is not read again: %v", first, err)
		}
		if second, err := json.Marshal(again); err != nil || !bytes.Equal(second, first) {
			t.Errorf("%s, then %s, %v", first, second, err)
		}
	})
}

// FuzzID holds that a pod's name is a path of one part, in one spelling alone.
func FuzzID(f *testing.F) {
	for _, s := range []string{"11111111-1111-4111-8111-111111111111", "{11111111-1111-4111-8111-111111111111}", "urn:uuid:11111111-1111-4111-8111-111111111111", "1111111111114111811111111111111111111111111141118111111111111111", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := ParseUUID(s)
		if (err == nil) != (string(u) == s && s != "") || err != nil && !errors.Is(err, errdefs.ErrInvalid) {
			t.Fatalf("%q: %q, %v", s, u, err)
		}
		if err == nil && (filepath.Base(s) != s || len(s) != 36 || len(u.Hex()) != 32) {
			t.Errorf("%q is a UUID", s)
		}
		of, err := ID(s).UUID()
		if err != nil {
			if !errors.Is(err, errdefs.ErrInvalid) {
				t.Errorf("%v is of no class", err)
			}
			return
		}
		if again, err := ParseUUID(string(of)); err != nil || again != of {
			t.Errorf("id %q is of pod %q: %v", s, of, err)
		}
	})
}
