package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/images"
)

// flagged makes a directory that a container sees as /flag.
func flagged(t *testing.T) (string, change) {
	t.Helper()
	dir := harness.Dir(t)
	return dir, mounting(&runtimeapi.Mount{HostPath: dir, ContainerPath: "/flag"})
}

// raise tells a container to go on.
func raise(t *testing.T, dir, flag string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, flag), nil, 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestKilledBetweenCalls(t *testing.T) {
	n := startNode(t, harness.GantryOptions{})
	b := n.pod(t, "survivor")
	flags, mount := flagged(t)
	chatty := b.start(t, "chatty", "i=0; while [ ! -e /flag/end ]; do echo line $i; i=$((i+1)); sleep .005; done; echo $i >/flag/said; exit 3", mount)
	mortal := b.start(t, "mortal", "until [ -e /flag/die ]; do sleep .05; done; exit 42", mount)
	created := b.create(t, "created", "true")
	dead := b.start(t, "dead", "exit 9")
	before := []string{n.waitExited(t, dead).String(), n.state(t, chatty).String(), n.state(t, created).String(), b.status(t).String()}
	n.Kill(t)
	raise(t, flags, "die")
	cgroup := cgroupDir(t, mortal, "pids")
	harness.Eventually(t, patience, func() string {
		if procs, err := os.ReadFile(filepath.Join(cgroup, "cgroup.procs")); err == nil && len(procs) > 0 {
			return "the container still runs"
		}
		return ""
	})
	down := time.Now()
	n.Start(t)
	st := n.state(t, mortal)
	if st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode != 42 || st.FinishedAt == 0 || st.FinishedAt > down.Add(time.Second).UnixNano() || st.FinishedAt < st.StartedAt {
		t.Errorf("the container that ended meanwhile: %v", st)
	}
	after := []string{n.state(t, dead).String(), n.state(t, chatty).String(), n.state(t, created).String(), b.status(t).String()}
	for i := range before {
		if before[i] != after[i] {
			t.Errorf("before: %s\nafter:  %s", before[i], after[i])
		}
	}
	for range 3 {
		n.Restart(t)
	}
	n.exec(t, chatty, "true")
	waitLog(t, n.state(t, chatty).LogPath, "line 100\n")
	n.startID(t, created)
	raise(t, flags, "end")
	if st := n.waitExited(t, chatty); st.ExitCode != 3 {
		t.Errorf("exit code %d", st.ExitCode)
	}
	lines := logLines(t, n.state(t, chatty).LogPath)
	wantLines(t, lines)
	if said := string(must(os.ReadFile(filepath.Join(flags, "said")))(t)); fmt.Sprintln(len(lines)) != said {
		t.Errorf("the log has %d lines of %s", len(lines), said)
	}
}

func TestKilledDuringRunPodSandbox(t *testing.T) {
	n, gate := gatedNode(t)
	c := sandboxConfig(t, "half-made")
	gate.shut(t)
	answers := asks(1, func() (string, error) { return n.askSandbox(callContext(t, callTimeout), c) })
	gate.await(t)
	n.Kill(t)
	if a := <-answers; a.err == nil {
		t.Error("a daemon that was killed answered")
	}
	n.Start(t)
	for _, s := range n.sandboxes(t) {
		if s.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
			t.Errorf("half-made and listed as %s", s.State)
		}
		(&box{n, s.Id, c}).remove(t)
	}
	gate.open(t)
	b := n.run(t, c)
	b.output(t, "c", "true")
	b.remove(t)
	if a := n.Network.Addresses(t); len(a) > 0 {
		t.Errorf("addresses %q", a)
	}
	if left := strings.TrimSpace(n.CLI(t, "list", "--format=json")); left != "[]" {
		t.Errorf("left: %s", left)
	}
}

// throttled slows a body down, and counts.
type throttled struct {
	io.ReadCloser
	passed *atomic.Int64
}

// Read is part of io.Reader.
func (r throttled) Read(p []byte) (int, error) {
	time.Sleep(10 * time.Millisecond) // some 400 kB/s: this is the throttle
	n, err := r.ReadCloser.Read(p[:min(len(p), 4096)])
	r.passed.Add(int64(n))
	return n, err
}

func TestKilledDuringPullImage(t *testing.T) {
	n := startNode(t, harness.GantryOptions{})
	big := must(images.Big(t.TempDir(), images.BigSpec{MB: 20, Files: 200, Layers: 3, Seed: 4}, images.Options{Unique: "killed"}))(t)
	n.registry.Push(t, "big:1", big)
	var passed atomic.Int64
	slow := proxy(t, n.registry.Addr, func(r *http.Response) error {
		if strings.Contains(r.Request.URL.Path, "/blobs/") {
			r.Body = throttled{r.Body, &passed}
		}
		return nil
	})
	harness.WriteHosts(t, n.RegistryDir, slow)
	ask := func() (string, error) {
		r, err := n.PullImage(callContext(t, callTimeout), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: slow + "/big:1"}})
		return r.GetImageRef(), err
	}
	answers := asks(1, ask)
	harness.Eventually(t, patience, func() string {
		if passed.Load() < 300_000 {
			return fmt.Sprintf("%d bytes passed", passed.Load())
		}
		return ""
	})
	n.Kill(t)
	if a := <-answers; a.err == nil {
		t.Error("a daemon that was killed answered")
	}
	n.Start(t)
	n.wantOnlyBusybox(t)
	if img := n.image(t, slow+"/big:1"); img != nil {
		t.Errorf("half an image: %v", img)
	}
	ref := n.registry.Ref("big:1")
	if got, want := n.pull(t, ref), must(big.ConfigName())(t).String(); got != want {
		t.Errorf("pulled %s, want %s", got, want)
	}
	n.pod(t, "big").output(t, "c", "[ $(find /opt -type f | wc -l) = 200 ]", func(c *runtimeapi.ContainerConfig) { c.Image.Image = ref })
}

func TestKilledDuringStartContainer(t *testing.T) {
	needs(t, "runc")
	gate := newGate(t, "runc", `echo " $* " | grep -q " create "`, "exit 1")
	n := startNode(t, harness.GantryOptions{Args: config(t, "runtime: "+gate.program)})
	t.Cleanup(func() { gate.open(t) })
	b := n.pod(t, "starting")
	id := b.create(t, "c", "exec sleep 1000")
	gate.shut(t)
	answers := asks(1, func() (string, error) {
		_, err := n.StartContainer(callContext(t, callTimeout), &runtimeapi.StartContainerRequest{ContainerId: id})
		return "", err
	})
	gate.await(t)
	n.Kill(t)
	if a := <-answers; a.err == nil {
		t.Error("a daemon that was killed answered")
	}
	n.Start(t)
	gate.open(t)
	// Whatever came of it, it is said, and it ends.
	harness.Eventually(t, patience, func() string {
		if st := n.state(t, id); st.State == runtimeapi.ContainerState_CONTAINER_CREATED {
			return "still created"
		}
		return ""
	})
	n.stop(t, id, 0)
	if st := n.waitExited(t, id); st.ExitCode == 0 || st.FinishedAt == 0 {
		t.Errorf("status: %v", st)
	}
	again := b.start(t, "again", "exec sleep 1000")
	n.exec(t, again, "true")
	b.remove(t)
}

func TestKilledDuringStopContainer(t *testing.T) {
	n := startNode(t, harness.GantryOptions{})
	b := n.pod(t, "stopping")
	id := b.start(t, "c", "trap 'echo heard' TERM; echo ready; while :; do sleep .1; done")
	path := n.state(t, id).LogPath
	waitLog(t, path, "ready")
	answers := asks(1, func() (string, error) {
		_, err := n.StopContainer(callContext(t, callTimeout), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 60})
		return "", err
	})
	waitLog(t, path, "heard")
	n.Kill(t)
	if a := <-answers; a.err == nil {
		t.Error("a daemon that was killed answered")
	}
	n.Start(t)
	if st := n.state(t, id); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("after the restart: %v", st)
	}
	n.stop(t, id, 1)
	if st := n.state(t, id); st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode != 137 {
		t.Errorf("after the second stop: %v", st)
	}
}

func TestOrderlyRestart(t *testing.T) {
	n := startNode(t, harness.GantryOptions{})
	b := n.pod(t, "orderly")
	id := b.start(t, "c", "exec sleep 1000")
	before := n.state(t, id).String()
	n.Stop(t)
	_, err := n.Version(context.Background(), &runtimeapi.VersionRequest{})
	wantCode(t, err, codes.Unavailable)
	n.Start(t)
	if after := n.state(t, id).String(); after != before {
		t.Errorf("before: %s\nafter:  %s", before, after)
	}
}
