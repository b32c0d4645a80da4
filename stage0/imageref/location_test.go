package imageref

import (
	"errors"
	"strings"
	"testing"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// TestParseFile: acceptance cases 12 and 13 of rkt-prepare.md.
func TestParseFile(t *testing.T) {
	for _, tc := range []struct {
		in, path string
		refused  bool
	}{
		{in: "/usr/libexec/x.aci", path: "/usr/libexec/x.aci"},
		{in: "./x.aci", path: "./x.aci"},
		{in: "../x.aci", path: "../x.aci"},
		{in: "./a:1.aci", path: "./a:1.aci"},
		{in: "a/b.aci", path: "a/b.aci"},
		{in: "x.aci", path: "x.aci"},
		{in: "some/../x.aci", path: "some/../x.aci"},
		{in: "file:///a%20b/x.aci", path: "/a b/x.aci"},
		{in: "file://localhost/x.aci", path: "/x.aci"},
		{in: "file:/x.aci", path: "/x.aci"},
		{in: "some/../x", refused: true},
		{in: "./x", refused: true},
		{in: "/abs/file", refused: true},
		{in: "./file.tar", refused: true},
		{in: "file:///x.tar", refused: true},
		{in: "file://x.aci", refused: true},
		{in: "file:x.aci", refused: true},
		{in: "file://host/x.aci", refused: true},
		{in: "file:///x.aci?version=1", refused: true},
		{in: "file:///%zz.aci", refused: true},
		{in: "example.com/s:1.2.3"},
		{in: "example.com/s"},
		{in: "example.com/s,version=1"},
		{in: "example.com/s:1.aci"},
		{in: "docker://busybox"},
		{in: "https://example.com/x.aci"},
		{in: "busybox"},
		{in: ""},
	} {
		l, ok, err := ParseFile(tc.in)
		switch {
		case tc.refused:
			if !ok || !errors.Is(err, errdefs.ErrInvalid) || !strings.HasPrefix(err.Error(), "invalid image string") {
				t.Errorf("ParseFile(%q) = %v, %v, %v, want a refusal", tc.in, l, ok, err)
			}
		case err != nil || ok != (tc.path != "") || l.Path != tc.path || ok && l.Transport != ACI:
			t.Errorf("ParseFile(%q) = %v, %v, %v, want %q", tc.in, l, ok, err, tc.path)
		}
	}
}

// TestParseLocationACI holds that an ACI has no name within, and may have a colon in
// its path.
func TestParseLocationACI(t *testing.T) {
	l, ok, err := ParseLocation("aci:/a/b:c")
	if err != nil || !ok || l != (Location{Transport: ACI, Path: "/a/b:c"}) {
		t.Errorf("got %+v, %v, %v", l, ok, err)
	}
	if again, _, err := ParseLocation(l.String()); err != nil || again != l {
		t.Errorf("%s is read as %+v, %v", l, again, err)
	}
	if _, ok, err := ParseLocation("aci:"); !ok || !errors.Is(err, errdefs.ErrInvalid) {
		t.Errorf("no path: %v, %v", ok, err)
	}
}
