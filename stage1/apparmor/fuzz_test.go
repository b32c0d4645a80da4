package apparmor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzLoaded holds that a profile is loaded only if a line of the kernel's names it.
func FuzzLoaded(f *testing.F) {
	f.Add([]byte("gantry-default (enforce)\nmy profile (a) (complain)\n"), "my profile (a)")
	f.Add([]byte(" (enforce)\n"), "")
	f.Add([]byte("a//b (unconfined)"), "a//b")
	file := filepath.Join(f.TempDir(), "profiles")
	k := &Kernel{profiles: file}
	f.Fuzz(func(t *testing.T, text []byte, name string) {
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		loaded, err := k.Loaded(name)
		if loaded && (err != nil || !strings.Contains("\n"+string(text), "\n"+name+" (")) {
			t.Errorf("%q is loaded, %v, by %q", name, err, text)
		}
	})
}
