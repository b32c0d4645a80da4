package harness

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// InFlightMount is where a container must have the directory of an InFlight.
const InFlightMount = "/flight"

// inFlightPatience is how long a step may take, on a slow machine with a package
// manager at work.
const inFlightPatience = 3 * time.Minute

// InFlight are commands that run in a container while its daemon is replaced. Each
// writes how far it is to a file of its name.
type InFlight struct {
	client    Raw
	container string
	dir       string // the container has it at InFlightMount

	answered, cut, streamed, hungUp chan outcome
}

// outcome is how a call ended, and what it had told until then.
type outcome struct {
	err    error
	stdout string
}

// counting numbers its lines, on both streams, until the release of its name is there.
const counting = `i=0; until [ -e /flight/release-NAME ]; do i=$((i+1)); echo $i; echo $i >&2; echo $i >/flight/NAME.new; mv /flight/NAME.new /flight/NAME; PAUSE; done; echo "ended at $i" >/flight/NAME`

// flightScript is the script of one command. Each of its pauses is a process, for which
// a slow machine has no time.
func flightScript(script, name string) string {
	pause := fmt.Sprintf("sleep %.1f", Slowly(100*time.Millisecond).Seconds())
	return strings.NewReplacer("NAME", name, "PAUSE", pause).Replace(script)
}

// StartInFlight starts the commands and returns when all run. dir is mounted into
// the container.
func StartInFlight(tb testing.TB, client Raw, container, dir string) *InFlight {
	tb.Helper()
	f := &InFlight{client: client, container: container, dir: dir}
	f.answered = f.sync(tb, flightScript("echo began >/flight/NAME; until [ -e /flight/release-NAME ]; do PAUSE; done; echo NAME", "answered"))
	f.cut = f.sync(tb, flightScript(counting, "cut"))
	f.streamed = f.stream(tb, &runtimeapi.ExecRequest{Cmd: []string{"sh", "-c", flightScript(counting, "streamed")}, Stdout: true, Stderr: true})
	f.hungUp = f.stream(tb, &runtimeapi.ExecRequest{Tty: true, Stdout: true,
		Cmd: []string{"sh", "-c", flightScript("trap 'echo hung up >/flight/NAME; exit' HUP; echo began >/flight/NAME; while :; do PAUSE; done", "terminal")}})
	for _, name := range []string{"answered", "cut", "streamed", "terminal"} {
		Eventually(tb, inFlightPatience, func() string {
			if f.says(name) == "" {
				return "command " + name + " has not begun"
			}
			return ""
		})
	}
	return f
}

func (f *InFlight) sync(tb testing.TB, script string) chan outcome {
	done := make(chan outcome, 1)
	go func() {
		resp, err := f.client.ExecSync(tb.Context(), &runtimeapi.ExecSyncRequest{ContainerId: f.container, Cmd: []string{"sh", "-c", script}})
		if err == nil && resp.ExitCode != 0 {
			err = fmt.Errorf("exit code %d, %s", resp.ExitCode, resp.Stderr)
		}
		done <- outcome{err, string(resp.GetStdout())}
	}()
	return done
}

func (f *InFlight) stream(tb testing.TB, r *runtimeapi.ExecRequest) chan outcome {
	tb.Helper()
	r.ContainerId = f.container
	resp, err := f.client.Exec(tb.Context(), r)
	if err != nil {
		tb.Fatalf("exec: %v", err)
	}
	target, err := url.Parse(resp.Url)
	if err != nil {
		tb.Fatal(err)
	}
	executor, err := remotecommand.NewSPDYExecutor(&rest.Config{Host: target.Host}, http.MethodPost, target)
	if err != nil {
		tb.Fatal(err)
	}
	done := make(chan outcome, 1)
	go func() {
		var stdout, stderr bytes.Buffer
		o := remotecommand.StreamOptions{Stdout: &stdout, Stderr: &stderr, Tty: r.Tty}
		if r.Tty {
			o.Stderr = nil
		}
		err := executor.StreamWithContext(tb.Context(), o)
		done <- outcome{err, stdout.String()}
	}()
	return done
}

// says is what a command has written last.
func (f *InFlight) says(name string) string {
	raw, err := os.ReadFile(filepath.Join(f.dir, name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(raw))
}

func (f *InFlight) release(tb testing.TB, name string) {
	tb.Helper()
	if err := os.WriteFile(filepath.Join(f.dir, "release-"+name), nil, 0o644); err != nil {
		tb.Error(err)
	}
}

// ReleaseAnswered lets one command end once the daemon takes no more calls at its
// socket: its call must still be answered. Call it beside what stops the daemon.
func (f *InFlight) ReleaseAnswered(ctx context.Context, tb testing.TB, socket string) {
	tb.Helper()
	for ctx.Err() == nil {
		c, err := net.Dial("unix", socket)
		if err != nil {
			f.release(tb, "answered")
			return
		}
		_ = c.Close()
		time.Sleep(Slowly(10 * time.Millisecond))
	}
}

// Check fails the test unless the commands met what is promised to them, now that
// another daemon serves.
func (f *InFlight) Check(tb testing.TB) {
	tb.Helper()
	if o := f.await(tb, "answered", f.answered); o.err != nil || o.stdout != "answered\n" {
		tb.Errorf("a command that ended while the daemon waited was answered with %q, %v", o.stdout, o.err)
	}
	f.checkCut(tb)
}

// CheckKilled is Check after the daemon was killed, which could answer nobody.
func (f *InFlight) CheckKilled(tb testing.TB) {
	tb.Helper()
	if o := f.await(tb, "answered", f.answered); status.Code(o.err) != codes.Unavailable {
		tb.Errorf("ExecSync ended with %v, want Unavailable", o.err)
	}
	f.release(tb, "answered")
	f.checkCut(tb)
}

// checkCut wants the clients gone and their commands going on, but the one in a terminal.
func (f *InFlight) checkCut(tb testing.TB) {
	tb.Helper()
	if o := f.await(tb, "cut", f.cut); status.Code(o.err) != codes.Unavailable {
		tb.Errorf("ExecSync ended with %v, want Unavailable", o.err)
	}
	// Clients differ in what they say of a stream that is cut; client-go says nothing.
	if o := f.await(tb, "streamed", f.streamed); !strings.HasPrefix(o.stdout, "1\n") {
		tb.Errorf("a stream ended with %v after %.20q, and not after its lines", o.err, o.stdout)
	}
	f.await(tb, "terminal", f.hungUp)
	for _, name := range []string{"cut", "streamed"} {
		f.goesOn(tb, name)
	}
	Eventually(tb, inFlightPatience, func() string {
		if got := f.says("terminal"); got != "hung up" {
			return fmt.Sprintf("the command in a terminal says %q, want that it was hung up on", got)
		}
		return ""
	})
}

func (f *InFlight) await(tb testing.TB, name string, c <-chan outcome) outcome {
	tb.Helper()
	select {
	case o := <-c:
		return o
	case <-time.After(inFlightPatience):
		tb.Fatalf("call %s has not ended", name)
		return outcome{}
	}
}

// goesOn waits until a command has written more since its client has gone, and then
// for its end.
func (f *InFlight) goesOn(tb testing.TB, name string) {
	tb.Helper()
	begin, _ := strconv.Atoi(f.says(name))
	want := begin + 10
	Eventually(tb, inFlightPatience, func() string {
		if now, _ := strconv.Atoi(f.says(name)); now < want {
			return fmt.Sprintf("command %s was at %d and is at %d: it does not go on", name, begin, now)
		}
		return ""
	})
	f.release(tb, name)
	Eventually(tb, inFlightPatience, func() string {
		if got := f.says(name); !strings.HasPrefix(got, "ended at ") {
			return fmt.Sprintf("command %s says %q", name, got)
		}
		return ""
	})
}
