package e2e

import (
	"fmt"
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
	// What is being written has another name, or none any more.
	harness.Eventually(t, patience, func() string {
		seen, missing := undocumented(documented, n.Dir, n.RunDir)
		if missing == "" && seen < 50 {
			return fmt.Sprintf("%d files and folders", seen)
		}
		return missing
	})
}

// undocumented counts what lies below directories, and says what of it is not documented.
func undocumented(documented map[string]bool, dirs ...string) (seen int, missing string) {
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if err != nil || p == dir {
				return err
			}
			seen++
			name := d.Name()
			if !named.MatchString(name) && !documented[name] {
				missing += fmt.Sprintf("docs/on-disk.md does not name %s\n", p)
			}
			parent := filepath.Base(filepath.Dir(p))
			if d.IsDir() && (name == "rootfs" || parent == "upper" || parent == "work" || parent == "volumes" || parent == "runtime") {
				return filepath.SkipDir // an image's, an app's or the OCI runtime's
			}
			return nil
		})
		if err != nil {
			missing += err.Error()
		}
	}
	return seen, missing
}
