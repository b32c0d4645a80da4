package main

import (
	"os"
	"path/filepath"
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

func TestFollowerLostExit(t *testing.T) {
	exits := make(chan pod.Exit)
	close(exits)
	f := follower{path: filepath.Join(t.TempDir(), "app.log")}
	if _, err := f.until(exits); err == nil {
		t.Error("an exit code that was lost is no error")
	}
}
