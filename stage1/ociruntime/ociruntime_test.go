package ociruntime

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage1/cgroup"
)

func TestParseVersion(t *testing.T) {
	tests := []struct {
		name, in, program, version string
		ok                         bool
	}{
		{"crun", "crun version 1.8.1\ncommit: f8a0\nspec: 1.0.0\n", "crun", "1.8.1", true},
		{"a space that is none", "crun\u00a0version 1.8.1\n", "", "", false},
		{"runc", "runc version 1.1.5+ds1\ncommit: 1.1.5+ds1-1+deb12u1\n", "runc", "1.1.5+ds1", true},
		{"another program", "GNU coreutils 9.1\n", "", "", false},
		{"nothing", "", "", "", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			program, version, ok := parseVersion(tt.in)
			if program != tt.program || version != tt.version || ok != tt.ok {
				t.Fatalf("got %q %q %v", program, version, ok)
			}
		})
	}
}

func TestReason(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"json", `{"level":"warning","msg":"w"}` + "\n" + `{"level":"error","msg":"bad thing","time":"t"}` + "\n", "bad thing"},
		{"twice", `{"level":"error","msg":"bad thing"}` + "\nbad thing\n", "bad thing"},
		{"text", "first\n\nlast\n", "first; last"},
		{"many lines", "1\n2\n3\n4\n5\n6\n7\n", "3; 4; 5; 6; 7"},
		{"torn json", `{"level":"error","ms`, `{"level":"error","ms`},
		{"only a warning", `{"level":"warning","msg":"w"}`, ""},
		{"empty", "", ""},
		{"not text", "a\xffb", "a�b"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := Reason([]byte(tt.in)); got != tt.want {
				t.Fatalf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// programs makes a PATH of runtimes that only know their version.
func programs(t *testing.T, names ...string) {
	t.Helper()
	dir := t.TempDir()
	for _, n := range names {
		script := "#!/bin/sh\necho " + n + " version 9.9\n"
		if err := os.WriteFile(filepath.Join(dir, n), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir)
}

func TestChooseConfigured(t *testing.T) {
	h, err := cgroup.Detect()
	if err != nil {
		t.Skip(err)
	}
	programs(t, "other")
	r, err := Choose(t.Context(), "other", h)
	if err != nil || r.Name != "other" || r.Version != "9.9" || !filepath.IsAbs(r.Path) || r.Reason == "" {
		t.Fatalf("%+v, %v", r, err)
	}
	for _, name := range []string{"/no/such/runtime", "nosuchruntime"} {
		if _, err := Choose(t.Context(), name, h); !errors.Is(err, errdefs.ErrUnsupported) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Choose(t.Context(), "/bin/true", h); !errors.Is(err, errdefs.ErrUnsupported) {
		t.Errorf("not a runtime: %v", err)
	}
}

// TestChoose has every set of runtimes on a node that crun works on, and on one that it
// refuses.
func TestChoose(t *testing.T) {
	const no = "crun refuses (here: hugetlb)"
	for _, tt := range []struct {
		name, installed, configured, refused string
		want, reason                         string // the reason, or what the error says
		err                                  error
	}{
		{name: "both", installed: "crun runc", want: "crun", reason: "crun is preferred"},
		{name: "crun alone", installed: "crun", want: "crun", reason: "crun is preferred"},
		{name: "runc alone", installed: "runc", want: "runc", reason: "crun is not installed"},
		{name: "neither", reason: "neither crun nor runc is in PATH", err: errdefs.ErrUnsupported},
		{name: "runc configured", installed: "crun runc", configured: "runc", want: "runc", reason: "it is configured"},
		{name: "both, crun refuses", installed: "crun runc", refused: no, want: "runc", reason: no},
		{name: "crun alone, and refuses", installed: "crun", refused: no, reason: no + ": install runc", err: errdefs.ErrUnsupported},
		{name: "runc alone, crun would refuse", installed: "runc", refused: no, want: "runc", reason: "crun is not installed"},
		{name: "crun configured, and refuses", installed: "crun runc", configured: "crun", refused: no, reason: no + ": install runc", err: errdefs.ErrUnsupported},
	} {
		t.Run(tt.name, func(t *testing.T) {
			programs(t, strings.Fields(tt.installed)...)
			r, err := choose(t.Context(), tt.configured, tt.refused, exec.LookPath)
			if !errors.Is(err, tt.err) || err != nil && !strings.Contains(err.Error(), tt.reason) {
				t.Fatalf("error %v, want %v that says %q", err, tt.err, tt.reason)
			}
			if err == nil && (r.Name != tt.want || r.Reason != tt.reason) {
				t.Errorf("%+v, want %s: %s", r, tt.want, tt.reason)
			}
		})
	}
}

// On a hybrid hierarchy with controllers in its v2 part crun is passed over.
func TestChooseHybrid(t *testing.T) {
	h, err := cgroup.Detect()
	if err != nil || h.Mode() != cgroup.Hybrid || len(h.UnifiedControllers()) == 0 {
		t.Skip("needs a hybrid hierarchy with controllers in v2")
	}
	r, err := Choose(t.Context(), "", h)
	if err != nil || r.Name != "runc" || !strings.Contains(r.Reason, "hybrid") || !strings.Contains(r.Reason, h.UnifiedControllers()[0]) {
		t.Fatalf("%+v, %v", r, err)
	}
}

func TestFeatures(t *testing.T) {
	h, err := cgroup.Detect()
	if err != nil {
		t.Skip(err)
	}
	r, err := Choose(t.Context(), "runc", h)
	if err != nil {
		t.Skip(err)
	}
	f, err := r.Features(t.Context())
	if err != nil || len(f.MountOptions) == 0 {
		t.Fatalf("%+v, %v", f, err)
	}
	r.Path = "/bin/false"
	if _, err := r.Features(t.Context()); !errors.Is(err, errdefs.ErrUnsupported) {
		t.Fatalf("without the command: %v", err)
	}
}

// A runtime that hangs, with a child that holds its stderr, ends at the deadline.
func TestDeadline(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "hang")
	if err := os.WriteFile(path, []byte("#!/bin/sh\nsleep 3 &\nwait\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	c := Client{Runtime: Runtime{Name: "hang", Path: path}, Root: dir, Timeout: 100 * time.Millisecond}
	if err := os.Mkdir(filepath.Join(dir, "id"), 0o700); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	err := c.Start(t.Context(), "id")
	if err == nil || !strings.Contains(err.Error(), "deadline") || time.Since(begin) > 2*time.Second {
		t.Fatalf("after %v: %v", time.Since(begin), err)
	}
}

func TestRuntimeGone(t *testing.T) {
	dir := t.TempDir()
	c := Client{Runtime: Runtime{Name: "gone", Path: "/no/such/runtime"}, Root: dir}
	if err := c.Start(t.Context(), "id"); err == nil || !strings.Contains(err.Error(), "/no/such/runtime") {
		t.Fatal(err)
	}
}
