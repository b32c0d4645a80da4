package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/gantry-cri/gantry/test/harness"
)

// What of the transcript is another's on another machine or at another time.
var (
	readmeUUID  = regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`)
	readmeOther = strings.NewReplacer("127.0.0.1:5000", "REGISTRY")
	readmeVague = regexp.MustCompile(`\d+s ago|[\d.]+ [kM]B in [\d.]+m?s|freed \d+ bytes \([\d.]+ [kM]?B\)`)
	readmeSpace = regexp.MustCompile(` +`)
)

// same makes two runs of the transcript comparable.
func same(text, registry, uuid string) string {
	text = strings.ReplaceAll(readmeOther.Replace(text), registry, "REGISTRY")
	text = strings.ReplaceAll(text, uuid, "UUID")
	text = strings.ReplaceAll(text, uuid[:8], "SHORT")
	return strings.TrimSpace(readmeSpace.ReplaceAllString(readmeVague.ReplaceAllString(text, "VAGUE"), " "))
}

// TestReadme types what the transcript in README.md types, and gets what stands there.
func TestReadme(t *testing.T) {
	needs(t, "jq")
	raw := must(os.ReadFile("../../README.md"))(t)
	_, rest, _ := strings.Cut(string(raw), "```console\n")
	transcript, _, ok := strings.Cut(rest, "```\n")
	written := readmeUUID.FindString(transcript)
	if !ok || written == "" {
		t.Fatal("README.md has no transcript")
	}
	r, _ := startRegistry(t)
	r.Push(t, "busybox", must(busybox())(t))
	g := harness.NewGantry(t, harness.GantryOptions{})
	dir := t.TempDir()
	list := g.Command(t, "list")
	script := fmt.Sprintf("#!/bin/sh\nsub=$1; shift; exec %s \"$sub\" %s \"$@\"\n", list.Path, strings.Join(list.Args[2:], " "))
	if err := os.WriteFile(filepath.Join(dir, "gantry"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	uuid := written
	for _, step := range strings.Split(transcript, "# ")[1:] {
		line, want, _ := strings.Cut(step, "\n")
		typed := strings.NewReplacer("127.0.0.1:5000", r.Addr, written, uuid, written[:8], uuid[:8]).Replace(line)
		cmd := exec.Command("bash", "-c", typed)
		cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"))
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v", typed, err)
		}
		if strings.HasPrefix(line, "gantry prepare") {
			uuid = readmeUUID.FindString(string(out))
		}
		if uuid == "" {
			t.Fatalf("%s: no UUID in\n%s", typed, out)
		}
		if got, want := same(string(out), r.Addr, uuid), same(want, r.Addr, written); got != want {
			t.Errorf("%s\ngot\n%s\nREADME.md has\n%s", typed, got, want)
		}
	}
}
