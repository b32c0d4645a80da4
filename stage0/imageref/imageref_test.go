package imageref

import (
	"errors"
	"strings"
	"testing"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

const sum = "sha256:9700f9a2f5bf2c45f2f605a0bd3bce7cf37420ec9d3ed50ac2758413308766bf"

func TestParse(t *testing.T) {
	for _, tc := range []struct {
		name, in               string
		full, repo, tag, canon string
	}{
		{name: "short", in: "busybox", full: "docker.io/library/busybox:latest", repo: "docker.io/library/busybox", tag: "docker.io/library/busybox:latest"},
		{name: "rkt URL", in: "docker://busybox", full: "docker.io/library/busybox:latest", repo: "docker.io/library/busybox", tag: "docker.io/library/busybox:latest"},
		{name: "an image called docker", in: "docker:27-dind", full: "docker.io/library/docker:27-dind", repo: "docker.io/library/docker", tag: "docker.io/library/docker:27-dind"},
		{name: "user's image", in: "a/b:1", full: "docker.io/a/b:1", repo: "docker.io/a/b", tag: "docker.io/a/b:1"},
		{name: "port", in: "docker://127.0.0.1:5000/a/b", full: "127.0.0.1:5000/a/b:latest", repo: "127.0.0.1:5000/a/b", tag: "127.0.0.1:5000/a/b:latest"},
		{name: "IPv6", in: "[::1]:5000/a:x", full: "[::1]:5000/a:x", repo: "[::1]:5000/a", tag: "[::1]:5000/a:x"},
		{name: "index.docker.io", in: "index.docker.io/busybox", full: "docker.io/library/busybox:latest", repo: "docker.io/library/busybox", tag: "docker.io/library/busybox:latest"},
		{name: "digest", in: "quay.io/a@" + sum, full: "quay.io/a@" + sum, repo: "quay.io/a", canon: "quay.io/a@" + sum},
		{name: "tag and digest", in: "quay.io/a:v1@" + sum, full: "quay.io/a:v1@" + sum, repo: "quay.io/a", canon: "quay.io/a@" + sum},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, err := Parse(tc.in)
			if err != nil {
				t.Fatal(err)
			}
			if r.String() != tc.full || r.Repository() != tc.repo || r.Tagged() != tc.tag {
				t.Errorf("Parse(%q) = %q, repository %q, tag %q", tc.in, r, r.Repository(), r.Tagged())
			}
			want := tc.tag
			if tc.canon != "" {
				want = tc.canon
			}
			if r.Name() != want {
				t.Errorf("Name() = %q, want %q", r.Name(), want)
			}
			if again, err := Parse(r.String()); err != nil || again != r {
				t.Errorf("Parse(%q) = %v, %v; want it to be stable", r, again, err)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	for _, tc := range []struct{ name, in string }{
		{"empty", ""},
		{"prefix alone", "docker://"},
		{"upper case", "Busybox"},
		{"space", "busy box"},
		{"two prefixes", "docker://docker://a"},
		{"another scheme", "https://example.com/a"},
		{"short digest", "a@sha256:1234"},
		{"unknown algorithm", "a@md4:9700f9a2f5bf2c45f2f605a0bd3bce7c"},
		{"an image id", strings.TrimPrefix(sum, "sha256:")},
		{"parent directory", "a/../b"},
		{"tag of 129 characters", "a:" + strings.Repeat("x", 129)},
		{"newline", "a:b\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, err := Parse(tc.in)
			if !errors.Is(err, errdefs.ErrInvalid) {
				t.Fatalf("Parse(%q) = %v, %v, want ErrInvalid", tc.in, r, err)
			}
			if !r.IsZero() {
				t.Errorf("Parse(%q) returned %v beside its error", tc.in, r)
			}
		})
	}
	if _, err := Parse("Busy box"); err == nil || !strings.Contains(err.Error(), `"Busy box"`) {
		t.Errorf("error %v does not quote the input", err)
	}
}

func TestParseArgument(t *testing.T) {
	for _, tc := range []struct{ name, in, want string }{
		{"prefix", "docker:busybox", "docker.io/library/busybox:latest"},
		{"prefix, port and tag", "docker:host:4000/busybox:1.0", "host:4000/busybox:1.0"},
		{"prefix and digest", "docker:a@" + sum, "docker.io/library/a@" + sum},
		{"URL", "docker://busybox:1", "docker.io/library/busybox:1"},
		{"none", "busybox", "docker.io/library/busybox:latest"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if r, err := ParseArgument(tc.in); err != nil || r.String() != tc.want {
				t.Errorf("ParseArgument(%q) = %v, %v, want %s", tc.in, r, err, tc.want)
			}
		})
	}
	if _, err := ParseArgument("docker:"); !errors.Is(err, errdefs.ErrInvalid) || !strings.Contains(err.Error(), `"docker:"`) {
		t.Errorf("ParseArgument: %v, want ErrInvalid that quotes the input", err)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"busybox", "docker://a:b", "h:1/a@" + sum, "[::1]:5/a:b@" + sum, "a//b", "", "docker.io/x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := Parse(s)
		if err != nil {
			if !errors.Is(err, errdefs.ErrInvalid) {
				t.Fatalf("Parse(%q): %v is of no class", s, err)
			}
			return
		}
		again, err := Parse(r.String())
		if err != nil || again != r {
			t.Fatalf("Parse(%q) = %q, which parses as %q, %v", s, r, again, err)
		}
		if named, err := Parse(r.Name()); err != nil || named.Name() != r.Name() {
			t.Fatalf("name %q parses as %q, %v", r.Name(), named, err)
		}
	})
}
