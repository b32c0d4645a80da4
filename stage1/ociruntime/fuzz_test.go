package ociruntime

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// FuzzReason holds that what a runtime writes to its log becomes a short text that
// may stand in a message of gRPC, and the same each time.
func FuzzReason(f *testing.F) {
	for _, s := range []string{
		`{"level":"error","msg":"no such file","time":"x"}` + "\n", "plain\nlines\n", `{"msg":"x"}`, "{", "", "\xff\xfe", `{"level":"error","msg":"\ud800"}`, `{"level":"fatal","msg":" "}`, "null\n[]\n1",
	} {
		f.Add([]byte(s))
	}
	f.Add(bytes.Repeat([]byte("a\xff"), maxReason)) // each becomes a character of three bytes
	f.Add(bytes.Repeat([]byte("ä"), maxReason))
	f.Fuzz(func(t *testing.T, log []byte) {
		r := Reason(log)
		if len(r) > maxReason+len("…") || !utf8.ValidString(r) {
			t.Errorf("%d bytes: %q", len(r), r)
		}
		if len(log) == 0 && r != "" {
			t.Errorf("of nothing %q", r)
		}
	})
}

// FuzzAnswers holds that what a runtime answers to state, features and --version is an
// error of bounded length, or says all that is asked for.
func FuzzAnswers(f *testing.F) {
	for _, s := range []string{
		`{"ociVersion":"1.0.2","id":"c","status":"running","pid":42,"bundle":"/b","annotations":{"a":"b"}}`, `{"id":"c","status":"stopped"}`, `{"id":"c","status":"running"}`,
		`{"id":"c","status":"running","pid":-1}`, `{"id":"other","status":"created","pid":1}`, `{"id":"c","status":"running","pid":1e3}`, `{"id":"c","status":"running","pid":99999999999999999999}`,
		`{"ociVersionMin":"1.0.0","ociVersionMax":"1.2.0","hooks":["prestart"],"mountOptions":["rro"],"linux":{"cgroup":null,"seccomp":{"enabled":true},"mountExtensions":{"idmap":{"enabled":true}}}}`,
		`{"linux":null}`, "crun version 1.8.1\ncommit: x", "crun version 1.8.1 and more", "\x1b[31mcrun version \xff", "a  version b", "", "null", "[]", "{",
	} {
		f.Add([]byte(s))
	}
	f.Add([]byte(strings.Repeat("v", 100) + " version 1"))
	f.Add([]byte(`{"id":"c","status":"running","pid":` + strings.Repeat("9", 5000) + `}`))
	f.Fuzz(func(t *testing.T, out []byte) {
		if s, err := parseState(out, "c"); err == nil {
			if s.ID != "c" || s.Status == "" || s.Pid < 0 || s.Status == specs.StateRunning && s.Pid < 1 {
				t.Errorf("state %+v", s)
			}
		} else if len(err.Error()) > 1000 {
			t.Errorf("state: an error of %d bytes", len(err.Error()))
		}
		if got, err := parseFeatures(out); err == nil {
			if again, err := json.Marshal(got); err != nil || got.OCIVersionMin == "" {
				t.Errorf("features %s, %v", again, err)
			}
		} else if len(err.Error()) > 1000 {
			t.Errorf("features: an error of %d bytes", len(err.Error()))
		}
		if name, version, ok := parseVersion(string(out)); ok {
			for _, s := range []string{name, version} {
				if s == "" || len(s) > 64 || !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
					t.Errorf("version %q of %q", version, name)
				}
			}
		}
	})
}

// A runtime that talks without end ends at what is kept of it.
func TestTalkative(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "talks")
	if err := os.WriteFile(path, []byte("#!/bin/sh\nhead -c 20000000 /dev/zero >&2\nhead -c 20000000 /dev/zero\n"), 0o755); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	c := Client{Runtime: Runtime{Name: "talks", Path: path}, Root: dir}
	if _, err := c.State(t.Context(), filepath.Base(path)); err == nil || !strings.Contains(err.Error(), "it said more than") {
		t.Errorf("state: %v", err)
	}
	out, stderr, err := output(command(t.Context(), path))
	if err == nil || len(out) != maxOutput || len(stderr) != maxOutput {
		t.Errorf("%d and %d bytes are kept, %v", len(out), len(stderr), err)
	}
}
