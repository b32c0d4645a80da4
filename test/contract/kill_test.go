// Package contract tries to break the promise of the pod directory: gantry is
// killed at each of its named points, and afterwards the same command succeeds,
// nothing half-done was taken for done, and one sweep later nothing is left.
package contract

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/images"
)

// life is a pod of the command line from its image to its end, one command after
// another, with the killer set on one point.
type life struct {
	t      *testing.T
	g      *harness.Gantry
	image  string
	point  string // empty: nobody is killed
	hits   string // file that collects the points that were passed
	killed bool
	uuid   string
}

// spoolAll has even the smallest layers spooled.
const spoolAll = "spoolAbove: 1\n"

func TestKilledAtEveryPoint(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("runs containers: needs root")
	}
	registry := harness.StartRegistry(t)
	web, err := images.Stack(images.Options{})
	if err != nil {
		t.Fatal(err)
	}
	registry.Push(t, "contract/stack:1", web)
	g := harness.NewGantry(t, harness.GantryOptions{Registries: []string{registry.Addr}, Config: spoolAll})
	hits := filepath.Join(t.TempDir(), "hits")
	image := "docker://" + registry.Ref("contract/stack:1")
	scope := harness.LeakScope{Dirs: []string{g.Base}, Bridge: g.Network.Bridge}

	// The first life makes what stays, such as the bridge, and names the points.
	first := &life{t: t, g: g, image: image, hits: hits}
	first.live()
	before, err := harness.TakeSnapshot(scope)
	if err != nil {
		t.Fatal(err)
	}
	points := strings.Fields(g.CLI(t, "failpoints"))
	kills := 0
	for _, p := range sample(t, points) {
		t.Run(p, func(t *testing.T) {
			l := &life{t: t, g: g, image: image, point: p, hits: hits}
			l.live()
			if l.killed {
				kills++
			}
			if _, left := harness.Leaks(t, scope, before); len(left) > 0 {
				t.Errorf("left behind:\n  %s", strings.Join(left, "\n  "))
			}
			if a := g.Network.Addresses(t); len(a) > 0 {
				t.Errorf("addresses that nobody gave back: %v", a)
			}
		})
	}
	t.Logf("%d kills at %d points", kills, len(points))
	if stride(t) == 1 {
		reached(t, hits, points)
	}
}

// stride is $GANTRY_CONTRACT_STRIDE: only every so-many-th point and call is
// struck, where a machine is too slow for all of them.
func stride(t *testing.T) int {
	t.Helper()
	asked := os.Getenv("GANTRY_CONTRACT_STRIDE")
	if asked == "" {
		return 1
	}
	n, err := strconv.Atoi(asked)
	if err != nil || n < 1 {
		t.Fatalf("GANTRY_CONTRACT_STRIDE is %q, not a number from 1 on", asked)
	}
	return n
}

// sample is every stride-th of points, and says which those are.
func sample(t *testing.T, points []string) []string {
	t.Helper()
	n := stride(t)
	if n == 1 {
		return points
	}
	var some []string
	for i := 0; i < len(points); i += n {
		some = append(some, points[i])
	}
	t.Logf("%d of %d points, because GANTRY_CONTRACT_STRIDE is %d: %v", len(some), len(points), n, some)
	return some
}

// reached fails for every point that no life has passed: it would prove nothing.
func reached(t *testing.T, hits string, points []string) {
	t.Helper()
	raw, err := os.ReadFile(hits)
	if err != nil {
		t.Fatal(err)
	}
	passed := strings.Fields(string(raw))
	for _, p := range points {
		if !slices.Contains(passed, p) {
			t.Errorf("no command of the suite passes point %s", p)
		}
	}
}

// live fetches, prepares, runs, stops and removes, and prepares once more without
// overlay; each command that is killed is
// asked again, after a sweep, and must succeed then.
func (l *life) live() {
	l.t.Helper()
	l.must("fetch", "--quiet", l.image)
	l.uuid = strings.TrimSpace(l.must("prepare", "--quiet", l.image))
	l.run()
	l.stop()
	l.gone("rm", l.uuid)
	l.gone("rm", strings.TrimSpace(l.must("prepare", "--quiet", "--no-overlay", l.image)))
	l.gone("image", "rm", strings.TrimPrefix(l.image, "docker://"))
	l.must("gc", "--grace-period=0s", "--expire-prepared=0s")
	if left := strings.TrimSpace(l.must("list", "--format=json")); left != "[]" {
		l.t.Errorf("pods are left: %s", left)
	}
	for _, dir := range []string{"trees", "tmp", "pods/by-id", "images", "refs"} {
		if left := entries(l.t, filepath.Join(l.g.Dir, dir)); len(left) > 0 {
			l.t.Errorf("%s holds %v", dir, left)
		}
	}
}

// run starts the pod. A start that was cut short was either undone, so that the
// pod is prepared again, or taken over because its process runs: never both.
func (l *life) run() {
	l.t.Helper()
	_, err := l.try("run-prepared", "--detach", l.uuid)
	if err == nil {
		return
	}
	if !l.wasKilled(err) {
		l.t.Fatal(err)
	}
	l.must("gc")
	switch state := l.state(); state {
	case "prepared":
		l.must("run-prepared", "--detach", l.uuid)
	case "running":
	default:
		l.t.Errorf("after a start that was cut short the pod is %s", state)
	}
	if state := l.state(); state != "running" {
		l.t.Errorf("the pod is %s, not running", state)
	}
}

// stop asks first and kills then; without the asking where the kill is what counts,
// because the server obeys at once.
func (l *life) stop() {
	l.t.Helper()
	if l.point == "stop-killed" {
		l.must("stop", "--force", l.uuid)
		return
	}
	l.must("stop", l.uuid)
}

func (l *life) state() string {
	l.t.Helper()
	for line := range strings.Lines(l.must("list")) {
		f := strings.Fields(line)
		if len(f) > 3 && strings.HasPrefix(l.uuid, f[0]) {
			return f[3]
		}
	}
	return "gone"
}

// must runs a command, again if it is killed the first time.
func (l *life) must(args ...string) string {
	l.t.Helper()
	out, err := l.try(args...)
	if err != nil && l.wasKilled(err) {
		out, err = l.try(args...)
	}
	if err != nil {
		l.t.Fatal(err)
	}
	return out
}

// gone runs a command that removes something. When it is killed, what it removes
// may be gone already, and then asking again says just that.
func (l *life) gone(args ...string) {
	l.t.Helper()
	_, err := l.try(args...)
	if err != nil && l.wasKilled(err) {
		_, err = l.try(args...)
		if err != nil && strings.Contains(err.Error(), "not found") {
			return
		}
	}
	if err != nil {
		l.t.Fatal(err)
	}
}

// wasKilled also takes the killer away: it kills once.
func (l *life) wasKilled(err error) bool {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return false
	}
	status, ok := exit.Sys().(syscall.WaitStatus)
	if !ok || !status.Signaled() || status.Signal() != syscall.SIGKILL {
		return false
	}
	l.killed, l.point = true, ""
	return true
}

func (l *life) try(args ...string) (string, error) {
	cmd := l.g.Command(l.t, args[0], args[1:]...)
	cmd.Env = append(cmd.Env, "GANTRY_FAILPOINT_HITS="+l.hits, "GANTRY_FAILPOINT="+l.point)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("gantry %q: %w\n%s", args, err, stderr.Bytes())
	}
	return string(out), nil
}

func entries(t *testing.T, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}
