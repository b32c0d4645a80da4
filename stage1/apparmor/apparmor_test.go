package apparmor

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// testKernel is a directory in place of the kernel's files, and a parser that puts
// what it is given into the list.
func testKernel(t *testing.T, enabled, loaded string) *Kernel {
	t.Helper()
	dir := t.TempDir()
	k := &Kernel{
		enabled: filepath.Join(dir, "enabled"), profiles: filepath.Join(dir, "profiles"),
		stamp: filepath.Join(dir, "run", "apparmor"), parser: filepath.Join(dir, "parser"),
	}
	write(t, k.enabled, enabled)
	write(t, k.profiles, loaded)
	write(t, k.parser, "#!/bin/sh\ncat >"+dir+"/text\necho \"$*\" >>"+dir+"/calls\necho 'gantry-default (enforce)' >>"+k.profiles+"\n")
	return k
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}

// loads is how often the parser was called.
func (k *Kernel) loads(t *testing.T) int {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(filepath.Dir(k.parser), "calls"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return strings.Count(string(raw), "--replace --skip-cache\n")
}

func TestEnsureDefault(t *testing.T) {
	k := testKernel(t, "Y\n", "/usr/bin/man (enforce)\n")
	ensure := func(what string, loads int) {
		t.Helper()
		if name, err := k.EnsureDefault(t.Context()); name != Default || err != nil {
			t.Errorf("%s: %q, %v", what, name, err)
		}
		if got := k.loads(t); got != loads {
			t.Errorf("%s: loaded %d times, want %d", what, got, loads)
		}
	}
	ensure("first", 1)
	text, err := os.ReadFile(filepath.Join(filepath.Dir(k.parser), "text"))
	if err != nil || string(text) != profile {
		t.Errorf("loaded %q, %v", text, err)
	}
	ensure("again", 1)
	write(t, k.profiles, "")
	ensure("after a boot that kept the run directory", 2)
	write(t, k.stamp, "another version")
	ensure("after an upgrade", 3)
	ensure("once more", 3)
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(k.stamp), ".*")); len(left) > 0 {
		t.Errorf("left %q", left)
	}
}

func TestNoDefault(t *testing.T) {
	off := testKernel(t, "N\n", "")
	bare := testKernel(t, "Y\n", "")
	bare.parser = filepath.Join(t.TempDir(), "none")
	for name, k := range map[string]*Kernel{"not enabled": off, "no parser": bare} {
		if got, err := k.EnsureDefault(t.Context()); got != "" || err != nil {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if got := off.Status(); got != "not enabled on this node" {
		t.Error(got)
	}
	if got := bare.Status(); !strings.Contains(got, "install apparmor_parser") {
		t.Error(got)
	}
}

func TestLoadFails(t *testing.T) {
	k := testKernel(t, "Y\n", "")
	write(t, k.parser, "#!/bin/sh\necho 'syntax error' >&2\nexit 1\n")
	if name, err := k.EnsureDefault(t.Context()); err == nil || name != "" || !strings.Contains(err.Error(), "syntax error") {
		t.Errorf("%q, %v", name, err)
	}
	if _, err := os.Stat(k.stamp); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("remembered what was not loaded: %v", err)
	}
}

func TestCheck(t *testing.T) {
	k := testKernel(t, "Y\n", "odd name (x) (complain)\nshort (enforce)\n")
	for name, want := range map[string]error{"short": nil, "odd name (x)": nil, "odd": errdefs.ErrState, "shor": errdefs.ErrState, "": errdefs.ErrState} {
		if err := k.Check(name); !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", name, err, want)
		}
	}
	if err := testKernel(t, "N\n", "short (enforce)\n").Check("short"); !errors.Is(err, errdefs.ErrUnsupported) {
		t.Errorf("without AppArmor: %v", err)
	}
}
