package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/gantry-cri/gantry/stage0/pod"
)

func TestFollower(t *testing.T) {
	path := filepath.Join(t.TempDir(), "app.log")
	var stdout, stderr strings.Builder
	f := follower{path: path, out: output{&stdout, &stderr}}
	if err := f.copy(); err != nil {
		t.Fatalf("no log yet: %v", err)
	}
	log, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{
		"2026-01-01T00:00:00.0Z stdout F one  two\n2026-01-01T00:00:00.0Z std",
		"err F oops\n",
		"2026-01-01T00:00:00.0Z stdout P half\n",
		"2026-01-01T00:00:00.0Z stdout F  whole\n2026-01-01T00:00:00.0Z stdout F \n",
	} {
		if _, err := log.WriteString(part); err != nil {
			t.Fatal(err)
		}
		if err := f.copy(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := log.WriteString("2026-01-01T00:00:00.0Z stdout F last\n"); err != nil {
		t.Fatal(err)
	}
	exits := make(chan pod.Exit, 1)
	exits <- pod.Exit{Code: 7}
	code, err := f.until(exits)
	if code != 7 || err != nil {
		t.Errorf("exit code %d, %v; want 7", code, err)
	}
	if want := "one  two\nhalf whole\n\nlast\n"; stdout.String() != want {
		t.Errorf("stdout %q, want %q", stdout.String(), want)
	}
	if stderr.String() != "oops\n" {
		t.Errorf("stderr %q", stderr.String())
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
}

// FuzzFollow holds that what an app said comes out of its log byte for byte, wherever
// the monitor cut it and whenever it is read, and that no log makes more of it.
func FuzzFollow(f *testing.F) {
	for _, s := range []string{"one\ntwo\n", "half", "", "\n\n", " stdout F x\n", "\x00\xff\r\n", "P \n"} {
		f.Add([]byte(s), uint8(3), []byte("2026-01-01T00:00:00Z stderr P "+s))
		f.Add([]byte(s), uint8(0), []byte(s))
	}
	path := filepath.Join(f.TempDir(), "app.log")
	f.Fuzz(func(t *testing.T, said []byte, cut uint8, log []byte) {
		var written []byte
		for rest := said; len(rest) > 0; {
			part, tag := rest[:min(len(rest), int(cut)+1)], "P "
			n := len(part)
			if i := bytes.IndexByte(part, '\n'); i >= 0 {
				part, n, tag = part[:i], i+1, "F "
			}
			written = slices.Concat(written, []byte("2026-01-01T00:00:00Z stdout "), []byte(tag), part, []byte("\n"))
			rest = rest[n:]
		}
		stdout, stderr, err := followed(t, path, written, int(cut))
		if err != nil || stdout != string(said) || stderr != "" {
			t.Errorf("%q is %q and %q, %v", said, stdout, stderr, err)
		}
		stdout, stderr, err = followed(t, path, log, int(cut))
		if len(stdout)+len(stderr) > len(log) || err != nil && len(err.Error()) > 1000 {
			t.Errorf("%q is %q and %q, %v", log, stdout, stderr, err)
		}
	})
}

// followed prints a log that is written in two pieces.
func followed(t *testing.T, path string, log []byte, cut int) (stdout, stderr string, err error) {
	t.Helper()
	var out, errs strings.Builder
	f := follower{path: path, out: output{&out, &errs}}
	for _, size := range []int{min(cut, len(log)), len(log)} {
		if err := os.WriteFile(path, log[:size], 0o600); err != nil {
			t.Fatal(err)
		}
		if err = f.copy(); err != nil {
			break
		}
	}
	if err := f.close(); err != nil {
		t.Error(err)
	}
	return out.String(), errs.String(), err
}

func TestFollowerLostExit(t *testing.T) {
	exits := make(chan pod.Exit)
	close(exits)
	f := follower{path: filepath.Join(t.TempDir(), "app.log")}
	if _, err := f.until(exits); err == nil {
		t.Error("an exit code that was lost is no error")
	}
}
