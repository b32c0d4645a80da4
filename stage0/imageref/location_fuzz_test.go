package imageref

import (
	"errors"
	"strings"
	"testing"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// FuzzLocation holds that an image string that names a file is read again as the
// same from how it is printed, and that nothing else than a file is one.
func FuzzLocation(f *testing.F) {
	for _, s := range []string{"oci:/a:b", "oci:a", "oci-archive://x:y:z", "docker-archive:", "aci:a:b", "file:///a.aci", "file://host/a.aci", "file:a.aci", "./a.aci", "../x", "a/./b.aci", "a.aci", "docker://a", "file:///%2e.aci", "file:///a.aci?x#y"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, parse := range []func(string) (Location, bool, error){ParseLocation, ParseFile} {
			l, ok, err := parse(s)
			if err != nil && (!ok || !errors.Is(err, errdefs.ErrInvalid)) || ok == (err == nil && l.IsZero()) {
				t.Fatalf("%q: %+v, %v, %v", s, l, ok, err)
			}
			if !ok || err != nil {
				continue
			}
			again, ok, err := ParseLocation(l.String())
			// A path that begins with two slashes loses them: they may be the transport's.
			if (err != nil || !ok || again != l) && !strings.HasPrefix(l.Path, "//") {
				t.Errorf("%q is %+v, printed %q, then %+v, %v, %v", s, l, l, again, ok, err)
			}
		}
	})
}
