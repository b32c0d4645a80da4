package main

import (
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// TestCommonFlags holds that every command takes what names its directories, before
// its name and after it, and after an image too.
func TestCommonFlags(t *testing.T) {
	dir := t.TempDir()
	flags := []string{"--dir", dir + "/d", "--run-dir=" + dir + "/r"}
	check := func(args ...string) {
		if code := run(t.Context(), append(args, "--help"), io.Discard, io.Discard); code != 0 {
			t.Errorf("gantry %q ended with %d", args, code)
		}
	}
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		for _, sub := range c.Commands() {
			walk(sub)
		}
		name := strings.Fields(c.CommandPath())[1:]
		check(slices.Concat(name, flags)...)
		check(slices.Concat(flags, name)...)
	}
	walk(newRoot())
	for _, name := range []string{"prepare", "run"} {
		check(slices.Concat([]string{name, "docker://x"}, flags)...)
	}
}

func TestExitCodes(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		name string
		args []string
		want int
	}{
		{"success", []string{"version"}, 0},
		{"help", []string{"prepare", "--help"}, 0},
		{"no command", nil, 2},
		{"unknown command", []string{"nosuch"}, 2},
		{"unknown flag", []string{"list", "--nosuch"}, 2},
		{"unknown flag after an image", []string{"prepare", "docker:x", "--nosuch"}, 2},
		{"bad value", []string{"prepare", "--pull-policy=bogus", "docker:x"}, 2},
		{"kind of image", []string{"prepare", "https://example.com/x.aci"}, 2},
		{"kind of image to fetch", []string{"fetch", "/x.tar"}, 2},
		{"arguments", []string{"status"}, 2},
		{"failure", []string{"--dir", dir, "--run-dir", dir, "status", "nosuch"}, 1},
		{"unreadable file", []string{"prepare", "--set-env-file=/nonexistent", "docker:x"}, 1},
		{"configuration that is not there", []string{"--config=/nonexistent", "list"}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := run(t.Context(), c.args, io.Discard, io.Discard); got != c.want {
				t.Errorf("exit code %d, want %d", got, c.want)
			}
		})
	}
}
