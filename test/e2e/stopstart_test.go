package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gantry-cri/gantry/test/harness"
)

// TestEndedWhileItStarts stops and removes pods that another command is just starting: the
// start may come to its end, and then its app is ended all the same.
func TestEndedWhileItStarts(t *testing.T) {
	r, busybox := startRegistry(t)
	g := harness.NewGantry(t, harness.GantryOptions{Registries: []string{r.Addr}})
	for _, verb := range []string{"stop", "rm"} {
		t.Run(verb, func(t *testing.T) {
			uuid := strings.TrimSpace(g.CLI(t, "prepare", "--quiet", "docker://"+busybox, "--exec=/bin/sleep", "--", "1000"))
			run := g.Command(t, "run-prepared", uuid)
			if err := run.Start(); err != nil {
				t.Fatal(err)
			}
			harness.Eventually(t, patience, func() string {
				if _, err := os.Lstat(filepath.Join(g.Dir, "pods", "run", uuid)); err != nil {
					return err.Error()
				}
				return ""
			})
			g.CLI(t, verb, "--force", uuid)
			if err := run.Wait(); err == nil {
				t.Error("the app ended well")
			}
			if verb == "stop" {
				g.CLI(t, "rm", uuid)
			}
		})
	}
}
