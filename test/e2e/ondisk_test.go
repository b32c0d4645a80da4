package e2e

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/gantry-cri/gantry/test/harness"
)

// named are elements of paths that are somebody's name: ids, digests, trees, UUIDs, what
// runs, what an app's volume is called.
var named = regexp.MustCompile(`^([0-9a-f]{64}|[0-9a-f-]{36}|[a-z2-7]{12}|runc|crun|busybox|busybox.log|c|v)$|^.*-[0-9a-f]{64}-eth0$`)

// TestOnDiskIsDocumented looks at all that pods of both doors keep while they run, and finds
// each file and folder named in docs/on-disk.md.
func TestOnDiskIsDocumented(t *testing.T) {
	raw := must(os.ReadFile("../../docs/on-disk.md"))(t)
	documented := map[string]bool{}
	for _, code := range regexp.MustCompile("`[^`\n]+`").FindAllString(string(raw), -1) {
		for _, word := range regexp.MustCompile(`[A-Za-z0-9_.-]+`).FindAllString(code, -1) {
			documented[word] = true
		}
	}
	n := startNode(t, harness.GantryOptions{})
	n.pod(t, "kept").start(t, "c", "exec sleep 1000")
	uuid := strings.TrimSpace(n.CLI(t, "prepare", "--quiet", "docker://"+n.busybox, "--exec=/bin/sleep", "--volume=v,kind=empty", "--mount=volume=v,target=/v", "--", "1000"))
	run := n.Command(t, "run-prepared", uuid)
	if err := run.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		n.CLI(t, "stop", "--force", uuid)
		_ = run.Wait() // its status is the app's
		n.CLI(t, "rm", uuid)
	}()
	harness.Eventually(t, patience, func() string {
		if state := n.CLI(t, "status", uuid); !strings.Contains(state, "running") {
			return state
		}
		return ""
	})
	seen := 0
	for _, dir := range []string{n.Dir, n.RunDir} {
		if err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if err != nil || p == dir {
				return err
			}
			seen++
			name := d.Name()
			if name == "state.json" && strings.Contains(p, "/runtime/") {
				return nil // the OCI runtime's own
			}
			if !named.MatchString(name) && !documented[name] {
				t.Errorf("docs/on-disk.md does not name %s", p)
			}
			parent := filepath.Base(filepath.Dir(p))
			if d.IsDir() && (name == "rootfs" || parent == "upper" || parent == "work" || parent == "volumes") {
				return filepath.SkipDir // an image's or an app's
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	}
	if seen < 50 {
		t.Errorf("%d files and folders", seen)
	}
}
