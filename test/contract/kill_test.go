// Package contract tries to break the promise of the pod directory: gantry is
// killed at each of its named points, and afterwards the same command succeeds,
// nothing half-done was taken for done, and one sweep later nothing is left.
package contract

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/images"
)

// life is a pod of the command line from its image to its end, one command after
// another, with the killer after it.
type life struct {
	t       *testing.T
	g       *harness.Gantry
	peace   *peace
	image   string
	strikes []strike // those to come, one after another
	killed  bool     // the last of them was dealt
	uuid    string
}

// strike is the killer's one blow.
type strike struct {
	point string
	in    string // the only command that is killed; empty: whichever passes the point first
}

// fate is what becomes of a life.
type fate struct {
	name    string
	strikes []strike
}

// sweeps are the points that a command passes only while it sweeps what another one
// left that was killed, and the point at which that one is.
var sweeps = map[string]string{
	"aborted-files-deleted": "pod-in-prepare",
	"run-dir-removed":       "overlay-mounted",
}

// writers are the commands that write small files and have to do it at once.
var writers = []string{"fetch", "prepare", "run-prepared", "stop"}

// fates has one life or more struck at each point.
func fates(points []string) []fate {
	var all []fate
	for _, p := range points {
		if p == "file-written" {
			for _, in := range writers {
				all = append(all, fate{p + "/" + in, []strike{{p, in}}})
			}
			continue
		}
		f := fate{name: p}
		if first, there := sweeps[p]; there {
			f.strikes = append(f.strikes, strike{point: first})
		}
		f.strikes = append(f.strikes, strike{point: p})
		all = append(all, f)
	}
	return all
}

// spoolAll has even the smallest layers spooled.
const spoolAll = "spoolAbove: 1\n"

// newStack returns a node that spools even the smallest layers, the bystander that runs
// there, and an image of several layers for the command line.
func newStack(t *testing.T) (*harness.Gantry, *peace, string) {
	t.Helper()
	registry := harness.StartRegistry(t)
	stack, err := images.Stack(images.Options{})
	if err != nil {
		t.Fatal(err)
	}
	other, err := images.Pause(images.Options{})
	if err != nil {
		t.Fatal(err)
	}
	registry.Push(t, "contract/stack:1", stack)
	g := harness.NewGantry(t, harness.GantryOptions{Registries: []string{registry.Addr}, Config: spoolAll})
	return g, newPeace(t, g, registry, other), "docker://" + registry.Ref("contract/stack:1")
}

// TestKilledAtEveryPoint also fails for a point that no command passes: nobody is
// killed there.
func TestKilledAtEveryPoint(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("runs containers: needs root")
	}
	g, p, image := newStack(t)
	(&life{t: t, g: g, peace: p, image: image}).live() // nobody is killed
	points := strings.Fields(g.CLI(t, "failpoints"))
	kills := 0
	for _, f := range sample(t, fates(points)) {
		t.Run(f.name, func(t *testing.T) {
			l := &life{t: t, g: g, peace: p, image: image, strikes: f.strikes}
			l.live()
			if !l.killed {
				t.Fatalf("no command passed %v", l.strikes)
			}
			kills += len(f.strikes)
		})
	}
	p.unbroken(t)
	t.Logf("%d kills at %d points", kills, len(points))
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

// sample is every stride-th of all, and says which those are.
func sample[T any](t *testing.T, all []T) []T {
	t.Helper()
	n := stride(t)
	if n == 1 {
		return all
	}
	var some []T
	for i := 0; i < len(all); i += n {
		some = append(some, all[i])
	}
	t.Logf("%d of %d, because GANTRY_CONTRACT_STRIDE is %d: %v", len(some), len(all), n, some)
	return some
}

// live fetches, prepares, runs, stops and removes, and prepares once more without
// overlay; each command that is killed is
// asked again, after a sweep, and must succeed then.
func (l *life) live() {
	l.t.Helper()
	l.fetch()
	l.uuid = strings.TrimSpace(l.must("prepare", "--quiet", "--volume", "v,kind=empty,mode=1777,uid=1000,gid=1000",
		"--mount", "volume=v,target=/v", l.image))
	l.run()
	l.volume()
	l.stop()
	l.save()
	l.gone("rm", l.uuid)
	l.gone("rm", strings.TrimSpace(l.must("prepare", "--quiet", "--no-overlay", l.image)))
	l.gone("image", "rm", strings.TrimPrefix(l.image, "docker://"))
	l.must("gc", "--grace-period=0s", "--expire-prepared=0s")
	var pods []struct{ UUID string }
	if err := json.Unmarshal([]byte(l.must("list", "--format=json")), &pods); err != nil {
		l.t.Error(err)
	}
	if len(pods) != 1 || pods[0].UUID != l.peace.bystander {
		l.t.Errorf("besides the bystander are listed: %v", pods)
	}
	l.peace.restored(l.t)
}

// fetch wants every tree to be whole that is there, also when it was cut short.
func (l *life) fetch() {
	l.t.Helper()
	_, err := l.try("fetch", "--quiet", l.image)
	whole(l.t, l.g.Dir)
	if l.wasKilled(err) {
		l.must("fetch", "--quiet", l.image)
		whole(l.t, l.g.Dir)
	} else if err != nil {
		l.t.Fatal(err)
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
		l.peace.undone(l.t, "")
		if _, err := os.Lstat(filepath.Join(l.g.Dir, "pods/by-id", l.uuid, "intents.json")); !errors.Is(err, fs.ErrNotExist) {
			l.t.Errorf("a prepared pod has intents: %v", err)
		}
		l.must("run-prepared", "--detach", l.uuid)
	case "running":
	default:
		l.t.Errorf("after a start that was cut short the pod is %s", state)
	}
	if state := l.state(); state != "running" {
		l.t.Errorf("the pod is %s, not running", state)
	}
}

// volume compares the pod's volume with what was asked for.
func (l *life) volume() {
	l.t.Helper()
	info, err := os.Stat(filepath.Join(l.g.Dir, "pods/by-id", l.uuid, "volumes/v"))
	if err != nil {
		l.t.Fatal(err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if want := fs.ModeDir | fs.ModeSticky | 0o777; !ok || info.Mode() != want || st.Uid != 1000 || st.Gid != 1000 {
		l.t.Errorf("the volume is %v of %d:%d, not %v of 1000:1000", info.Mode(), st.Uid, st.Gid, want)
	}
}

// stop asks first and kills then; without the asking where the kill is what counts,
// because the server obeys at once, and with a monitor that does not come to its end
// where that is what counts. A stop that is cut short is brought to its end by a
// sweep, unless the process lives.
func (l *life) stop() {
	l.t.Helper()
	args := []string{"stop", l.uuid}
	switch l.next("stop") {
	case "stop-killed":
		args = []string{"stop", "--force", l.uuid}
	case "monitor-drained":
		send(l.t, processesOf(l.t, l.g, l.uuid).Monitor.PID, syscall.SIGSTOP)
	}
	_, err := l.try(args...)
	if l.wasKilled(err) {
		ended := l.state() == "exited"
		l.must("gc")
		if ended {
			l.peace.undone(l.t, l.uuid)
		}
		_, err = l.try(args...)
	}
	if err != nil {
		l.t.Fatal(err)
	}
	l.peace.undone(l.t, l.uuid)
}

// save has a sweep bring home the exit record, which lies in the run directory as if
// there had been no room for it elsewhere.
func (l *life) save() {
	l.t.Helper()
	home := filepath.Join(l.g.Dir, "pods/by-id", l.uuid, "exit.json")
	if err := os.Rename(home, filepath.Join(l.g.RunDir, "pods", l.uuid, "exit.json")); err != nil {
		l.t.Fatal(err)
	}
	l.must("gc")
	if _, err := os.Stat(home); err != nil {
		l.t.Errorf("the exit record was not saved: %v", err)
	}
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
// may be gone already, and then asking again says just that. What it had on the node
// goes in a sweep.
func (l *life) gone(args ...string) {
	l.t.Helper()
	_, err := l.try(args...)
	if err != nil && l.wasKilled(err) {
		if args[0] == "rm" {
			l.must("gc")
			l.peace.undone(l.t, args[1])
		}
		_, err = l.try(args...)
		if err != nil && strings.Contains(err.Error(), "not found") {
			return
		}
	}
	if err != nil {
		l.t.Fatal(err)
	}
}

// wasKilled also makes the next strike due.
func (l *life) wasKilled(err error) bool {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return false
	}
	status, ok := exit.Sys().(syscall.WaitStatus)
	if !ok || !status.Signaled() || status.Signal() != syscall.SIGKILL {
		return false
	}
	if len(l.strikes) > 0 {
		l.strikes = l.strikes[1:]
	}
	l.killed = len(l.strikes) == 0
	return true
}

// next is the point at which a command is to be killed; empty: it is let go.
func (l *life) next(command string) string {
	if len(l.strikes) == 0 || l.strikes[0].in != "" && l.strikes[0].in != command {
		return ""
	}
	return l.strikes[0].point
}

func (l *life) try(args ...string) (string, error) {
	cmd := l.g.Command(l.t, args[0], args[1:]...)
	cmd.Env = append(cmd.Env, "GANTRY_FAILPOINT="+l.next(args[0]))
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
