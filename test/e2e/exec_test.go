package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	utilexec "k8s.io/client-go/util/exec"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
)

// TestInside reaches into containers that run, in one daemon.
func TestInside(t *testing.T) {
	n := startNode(t, harness.GantryOptions{})
	b := n.pod(t, "inside")
	for name, test := range map[string]func(*testing.T, *box){
		"exec sync":       testExecSync,
		"exec":            testExec,
		"exec tty":        testExecTTY,
		"attach":          testAttach,
		"attach tty":      testAttachTTY,
		"port-forward":    testPortForward,
		"log format":      testLogFormat,
		"log reopened":    testLogReopened,
		"stop signal":     testStopSignal,
		"grace shortened": testGraceShortened,
		"ignores SIGTERM": testIgnoresTerm,
	} {
		t.Run(name, func(t *testing.T) { test(t, b) })
	}
}

func testExecSync(t *testing.T, b *box) {
	id := b.start(t, "exec-sync", "exec sleep 1000")
	ctx := callContext(t, callTimeout)
	r := must(b.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", "echo out; echo err >&2; exit 3"}, Timeout: 10}))(t)
	if string(r.Stdout) != "out\n" || string(r.Stderr) != "err\n" || r.ExitCode != 3 {
		t.Errorf("got %v", r)
	}
	began := time.Now()
	_, err := b.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", "sleep 4321 & sleep 4322"}, Timeout: 1})
	wantCode(t, err, codes.DeadlineExceeded)
	if took := time.Since(began); took < time.Second || took > 15*time.Second {
		t.Errorf("a timeout of 1 s took %v", took)
	}
	if got := b.exec(t, id, "ps -o args | grep '[s]leep 432' || echo none"); got != "none" {
		t.Errorf("left running: %q", got)
	}
	r = must(b.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", "head -c 300000 /dev/zero"}}))(t)
	if len(r.Stdout) != 300000 {
		t.Errorf("got %d bytes", len(r.Stdout))
	}
	_, err = b.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"/no-such-program"}, Timeout: 5})
	if err != nil && !strings.Contains(err.Error(), "no-such-program") {
		t.Errorf("a program that is missing: %v", err)
	}
	b.stop(t, id, 0)
	_, err = b.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}})
	wantCode(t, err, codes.FailedPrecondition, "not running")
}

// stream connects streams to a URL that Exec or Attach answered.
func stream(t *testing.T, address string, o remotecommand.StreamOptions) error {
	t.Helper()
	target := must(url.Parse(address))(t)
	executor := must(remotecommand.NewSPDYExecutor(&rest.Config{Host: target.Host}, http.MethodPost, target))(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	return executor.StreamWithContext(ctx, o)
}

func testExec(t *testing.T, b *box) {
	id := b.start(t, "exec", "exec sleep 1000")
	r := must(b.Exec(callContext(t, callTimeout), &runtimeapi.ExecRequest{
		ContainerId: id, Cmd: []string{"sh", "-c", "cat; echo err >&2; exit 5"}, Stdin: true, Stdout: true, Stderr: true,
	}))(t)
	var stdout, stderr bytes.Buffer
	in := strings.Repeat("0123456789abcdef", 10000)
	err := stream(t, r.Url, remotecommand.StreamOptions{Stdin: strings.NewReader(in), Stdout: &stdout, Stderr: &stderr})
	var exit utilexec.CodeExitError
	if !errors.As(err, &exit) || exit.Code != 5 || stdout.String() != in || stderr.String() != "err\n" {
		t.Errorf("got %v, %d bytes of output, errors %q", err, stdout.Len(), stderr.String())
	}
	if err := stream(t, r.Url, remotecommand.StreamOptions{Stdin: strings.NewReader(""), Stdout: io.Discard, Stderr: io.Discard}); err == nil {
		t.Error("the URL works twice")
	}
}

// oneSize is a terminal that has one size.
type oneSize struct {
	sizes chan remotecommand.TerminalSize
}

// Next is part of remotecommand.TerminalSizeQueue.
func (q oneSize) Next() *remotecommand.TerminalSize {
	s, ok := <-q.sizes
	if !ok {
		return nil
	}
	return &s
}

func newOneSize() oneSize {
	q := oneSize{make(chan remotecommand.TerminalSize, 1)}
	q.sizes <- remotecommand.TerminalSize{Width: 123, Height: 45}
	return q
}

func testExecTTY(t *testing.T, b *box) {
	id := b.start(t, "exec-tty", "exec sleep 1000")
	r := must(b.Exec(callContext(t, callTimeout), &runtimeapi.ExecRequest{
		ContainerId: id, Cmd: []string{"sh", "-c", "until stty size 2>&1 | grep -q '45 123'; do sleep .05; done; tty; stty size"}, Tty: true, Stdin: true, Stdout: true,
	}))(t)
	var stdout bytes.Buffer
	size := newOneSize()
	defer close(size.sizes)
	// It has to end although the standard input stays open.
	err := stream(t, r.Url, remotecommand.StreamOptions{Stdin: blocked(t), Stdout: &stdout, Tty: true, TerminalSizeQueue: size})
	if got := stdout.String(); err != nil || !strings.HasPrefix(got, "/dev/pts/") || !strings.HasSuffix(got, "45 123\r\n") {
		t.Errorf("got %q, %v", got, err)
	}
}

func testAttach(t *testing.T, b *box) {
	id := b.start(t, "attach", "cat; echo ended", func(c *runtimeapi.ContainerConfig) { c.Stdin, c.StdinOnce = true, true })
	r := must(b.Attach(callContext(t, callTimeout), &runtimeapi.AttachRequest{ContainerId: id, Stdin: true, Stdout: true, Stderr: true}))(t)
	var stdout bytes.Buffer
	err := stream(t, r.Url, remotecommand.StreamOptions{Stdin: strings.NewReader("hello\n"), Stdout: &stdout, Stderr: io.Discard})
	if err != nil || stdout.String() != "hello\nended\n" {
		t.Errorf("got %q, %v", stdout.String(), err)
	}
	st := b.waitExited(t, id)
	if got := logText(t, st.LogPath); st.ExitCode != 0 || got != "hello\nended\n" {
		t.Errorf("exit code %d, log %q", st.ExitCode, got)
	}
}

func testAttachTTY(t *testing.T, b *box) {
	id := b.start(t, "attach-tty", "read line; echo got $line; tty", func(c *runtimeapi.ContainerConfig) { c.Stdin, c.Tty = true, true })
	r := must(b.Attach(callContext(t, callTimeout), &runtimeapi.AttachRequest{ContainerId: id, Stdin: true, Stdout: true, Tty: true}))(t)
	var stdout bytes.Buffer
	size := newOneSize()
	defer close(size.sizes)
	stdin := io.MultiReader(strings.NewReader("word\n"), blocked(t))
	err := stream(t, r.Url, remotecommand.StreamOptions{Stdin: stdin, Stdout: &stdout, Tty: true, TerminalSizeQueue: size})
	if err != nil || !strings.Contains(stdout.String(), "got word\r\n/dev/") {
		t.Errorf("got %q, %v", stdout.String(), err)
	}
	b.waitExited(t, id)
}

func testPortForward(t *testing.T, b *box) {
	served := b.start(t, "served", "exec httpd -f -p 127.0.0.1:7070 -h /var/www")
	// The client closes a tunnel for good when a port refuses.
	b.exec(t, served, "until wget -q -O - http://127.0.0.1:7070/; do usleep 50000; done")
	r := must(b.PortForward(callContext(t, callTimeout), &runtimeapi.PortForwardRequest{PodSandboxId: b.id}))(t)
	target := must(url.Parse(r.Url))(t)
	transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{Host: target.Host})
	if err != nil {
		t.Fatal(err)
	}
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, target)
	stop, ready := make(chan struct{}), make(chan struct{})
	defer close(stop)
	f := must(portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, []string{"0:7070"}, stop, ready, io.Discard, io.Discard))(t)
	ended := make(chan error, 1)
	go func() { ended <- f.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatalf("port-forward: %v", err)
	}
	port := must(f.GetPorts())(t)[0].Local
	for range 3 {
		if got := httpBody(t, fmt.Sprintf("http://127.0.0.1:%d/", port)); got != page {
			t.Errorf("through the tunnel: %q", got)
		}
	}
}

func testLogFormat(t *testing.T, b *box) {
	before := time.Now()
	id := b.start(t, "log", "echo out; echo err >&2; head -c 40000 /dev/zero | tr '\\0' x; echo; printf tail")
	st := b.waitExited(t, id)
	if st.LogPath != b.config.LogDirectory+"/log/0.log" {
		t.Errorf("log path %s", st.LogPath)
	}
	lines := logLines(t, st.LogPath)
	streams, long, partial := map[string]int{}, 0, 0
	for _, l := range lines {
		streams[l.stream]++
		if l.at.Before(before.Add(-time.Second)) || l.at.After(time.Now()) {
			t.Errorf("time %v", l.at)
		}
		long += strings.Count(l.text, "x")
		if l.tag == "P" {
			partial++
		}
	}
	if streams["stderr"] != 1 || streams["stdout"]+streams["stderr"] != len(lines) || long != 40000 || partial < 2 {
		t.Errorf("streams %v, %d bytes of the long line, %d partial lines", streams, long, partial)
	}
	if last := lines[len(lines)-1]; !strings.HasSuffix(logText(t, st.LogPath), "tail\n") && last.text != "tail" {
		t.Errorf("the unfinished last line is %v", last)
	}
}

func testLogReopened(t *testing.T, b *box) {
	id := b.start(t, "reopen", "i=0; while :; do echo line $i; i=$((i+1)); sleep .01; done")
	path := b.state(t, id).LogPath
	waitLog(t, path, "line 20\n")
	old := path + ".20261125-000000"
	if err := os.Rename(path, old); err != nil {
		t.Fatal(err)
	}
	if _, err := b.ReopenContainerLog(callContext(t, callTimeout), &runtimeapi.ReopenContainerLogRequest{ContainerId: id}); err != nil {
		t.Fatalf("reopen: %v", err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("no new file when the call returned: %v", err)
	}
	waitLog(t, path, "\n")
	b.stop(t, id, 0)
	b.waitExited(t, id)
	wantLines(t, append(logLines(t, old), logLines(t, path)...))
	_, err := b.ReopenContainerLog(callContext(t, callTimeout), &runtimeapi.ReopenContainerLogRequest{ContainerId: id})
	wantCode(t, err, codes.FailedPrecondition)
}

// wantLines checks that numbered lines have no hole and no repetition.
func wantLines(t *testing.T, lines []logLine) {
	t.Helper()
	for i, l := range lines {
		if l.tag != "F" || l.text != fmt.Sprintf("line %d", i) {
			t.Fatalf("line %d of %d is %q", i, len(lines), l.text)
		}
	}
}

func testStopSignal(t *testing.T, b *box) {
	id := b.start(t, "usr1", "trap 'echo bye; exit 7' USR1; echo ready; while :; do sleep .1; done", func(c *runtimeapi.ContainerConfig) {
		c.StopSignal = runtimeapi.Signal_SIGNAL_SIGUSR1
	})
	waitLog(t, b.state(t, id).LogPath, "ready")
	b.stop(t, id, 20)
	st := b.state(t, id)
	if st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode != 7 || !strings.HasSuffix(logText(t, st.LogPath), "bye\n") {
		t.Errorf("after the stop: %v", st)
	}
}

func testGraceShortened(t *testing.T, b *box) {
	id := b.start(t, "grace", "trap '' TERM; echo ready; while :; do sleep .1; done")
	waitLog(t, b.state(t, id).LogPath, "ready")
	began := time.Now()
	long := asks(1, func() (string, error) {
		_, err := b.StopContainer(callContext(t, callTimeout), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 60})
		return "", err
	})
	// A call that ends gives the first one time to arrive.
	_, err := b.StopContainer(callContext(t, time.Second), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 60})
	wantCode(t, err, codes.DeadlineExceeded)
	b.stop(t, id, 1)
	if a := <-long; a.err != nil {
		t.Errorf("the first stop: %v", a.err)
	}
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("a grace of 60 s shortened to 1 s took %v", took)
	}
	if st := b.state(t, id); st.ExitCode != 137 {
		t.Errorf("status: %v", st)
	}
}

func testIgnoresTerm(t *testing.T, b *box) {
	id := b.start(t, "term", "trap 'echo heard' TERM; echo ready; while :; do sleep .1; done")
	path := b.state(t, id).LogPath
	waitLog(t, path, "ready")
	began := time.Now()
	b.stop(t, id, 1)
	if took := time.Since(began); took < time.Second || took > 15*time.Second {
		t.Errorf("a grace of 1 s took %v", took)
	}
	st := b.state(t, id)
	if st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode != 137 || !strings.Contains(logText(t, path), "heard") {
		t.Errorf("status: %v", st)
	}
}
