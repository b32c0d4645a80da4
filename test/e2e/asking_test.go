package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
)

// answer is what a call said.
type answer struct {
	id  string
	err error
}

// asks sends a call n times at once.
func asks(n int, call func() (string, error)) <-chan answer {
	answers := make(chan answer, n)
	for range n {
		go func() {
			id, err := call()
			answers <- answer{id, err}
		}()
	}
	return answers
}

// askSandbox sends a RunPodSandbox.
func (n *node) askSandbox(ctx context.Context, c *runtimeapi.PodSandboxConfig) (string, error) {
	resp, err := n.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: c})
	return resp.GetPodSandboxId(), err
}

// sameAnswers checks that n answers are one id, and returns it.
func sameAnswers(t *testing.T, n int, answers <-chan answer) string {
	t.Helper()
	first := <-answers
	for i := range n {
		a := first
		if i > 0 {
			a = <-answers
		}
		if a.err != nil || a.id != first.id {
			t.Errorf("answers %q (%v) and %q (%v)", first.id, first.err, a.id, a.err)
		}
	}
	return first.id
}

// other is the same metadata with another configuration.
func other(c *runtimeapi.PodSandboxConfig) *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{Metadata: c.Metadata, Hostname: "other", LogDirectory: c.LogDirectory, Linux: c.Linux}
}

func TestAskingTwiceForASandbox(t *testing.T) {
	n, gate := gatedNode(t)
	ctx := callContext(t, callTimeout)
	c := sandboxConfig(t, "twice")
	gate.shut(t)
	answers := asks(3, func() (string, error) { return n.askSandbox(ctx, c) })
	gate.await(t)
	if list := n.sandboxes(t); len(list) != 0 {
		t.Errorf("a sandbox in the making is listed: %v", list)
	}
	_, err := n.askSandbox(ctx, other(c))
	wantCode(t, err, codes.AlreadyExists, `"twice"`, "another configuration")
	began := time.Now()
	must(n.Version(ctx, &runtimeapi.VersionRequest{}))(t)
	must(n.Status(ctx, &runtimeapi.StatusRequest{}))(t)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("Version and Status took %v while a sandbox was being made", took)
	}
	gate.open(t)
	id := sameAnswers(t, 3, answers)
	if again := must(n.askSandbox(ctx, c))(t); again != id {
		t.Errorf("asked again: %s, was %s", again, id)
	}
	_, err = n.askSandbox(ctx, other(c))
	wantCode(t, err, codes.AlreadyExists, `"twice"`, "another configuration", id)
	next := sandboxConfig(t, "twice")
	next.Metadata.Attempt = 1
	if got := n.run(t, next); got.id == id {
		t.Error("another attempt got the same id")
	}
	if list := n.sandboxes(t); len(list) != 2 {
		t.Errorf("listed: %v", list)
	}
}

func TestCallerThatTimesOut(t *testing.T) {
	n, gate := gatedNode(t, "limits: {claim: 3s}")
	for _, back := range []string{"while it runs", "after its end"} {
		t.Run("comes back "+back, func(t *testing.T) {
			c := sandboxConfig(t, "late-"+strings.ReplaceAll(back, " ", "-"))
			gate.shut(t)
			_, err := n.askSandbox(callContext(t, 500*time.Millisecond), c)
			wantCode(t, err, codes.DeadlineExceeded)
			gate.await(t)
			var answers <-chan answer
			ask := func() (string, error) { return n.askSandbox(callContext(t, callTimeout), c) }
			if back == "while it runs" {
				answers = asks(2, ask)
			}
			before := len(n.Network.Addresses(t))
			gate.open(t)
			if answers == nil {
				harness.Eventually(t, patience, func() string {
					if len(n.Network.Addresses(t)) == before {
						return "not made yet"
					}
					return ""
				})
				answers = asks(2, ask)
			}
			id := sameAnswers(t, 2, answers)
			list := n.sandboxes(t)
			if len(list) != 1 || list[0].Id != id {
				t.Errorf("got %s, listed: %v", id, list)
			}
			(&box{n, id, c}).remove(t)
		})
	}
	t.Run("never comes back", func(t *testing.T) {
		c := sandboxConfig(t, "unclaimed")
		gate.shut(t)
		_, err := n.askSandbox(callContext(t, 500*time.Millisecond), c)
		wantCode(t, err, codes.DeadlineExceeded)
		gate.await(t)
		gate.open(t)
		harness.Eventually(t, patience, func() string {
			if list := n.CLI(t, "list", "--format=json"); strings.TrimSpace(list) != "[]" {
				return list
			}
			if a := n.Network.Addresses(t); len(a) > 0 {
				return fmt.Sprintf("addresses %q", a)
			}
			return ""
		})
		if list := n.sandboxes(t); len(list) != 0 {
			t.Errorf("listed: %v", list)
		}
		n.run(t, c)
	})
}

func TestAskingTwiceForAContainer(t *testing.T) {
	n := startNode(t, harness.GantryOptions{})
	b := n.pod(t, "twice")
	ctx := callContext(t, callTimeout)
	c := n.containerConfig("c", "exec sleep 1000")
	id := sameAnswers(t, 5, asks(5, func() (string, error) { return b.ask(ctx, c) }))
	changed := n.containerConfig("c", "exec sleep 2000")
	_, err := b.ask(ctx, changed)
	wantCode(t, err, codes.AlreadyExists, `"c"`, "another configuration", id)
	sameAnswers(t, 5, asks(5, func() (string, error) {
		_, err := n.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
		return "", err
	}))
	_, err = n.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
	wantCode(t, err, codes.FailedPrecondition, id)
	_, err = b.ask(ctx, c)
	wantCode(t, err, codes.AlreadyExists, "started already")
	if list := n.containers(t); len(list) != 1 || list[0].Id != id || list[0].State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("listed: %v", list)
	}
}

func TestStopAndRemoveWhatIsGone(t *testing.T) {
	n := startNode(t, harness.GantryOptions{})
	b := n.pod(t, "gone")
	id := b.start(t, "c", "exec sleep 1000")
	for _, which := range []string{id, id, strings.Repeat("0", 64), "no-such-thing", "8c9e6679-7425-40de-944b-e07fc1f90ae7"} {
		n.stop(t, which, 0)
	}
	for _, which := range []string{id, id, strings.Repeat("0", 64), "8c9e6679-7425-40de-944b-e07fc1f90ae7"} {
		if _, err := n.RemoveContainer(callContext(t, callTimeout), &runtimeapi.RemoveContainerRequest{ContainerId: which}); err != nil {
			t.Errorf("remove container %s: %v", which, err)
		}
	}
	_, err := n.ContainerStatus(callContext(t, callTimeout), &runtimeapi.ContainerStatusRequest{ContainerId: id})
	wantCode(t, err, codes.NotFound, id)
	running := b.start(t, "running", "exec sleep 1000")
	if _, err := n.RemoveContainer(callContext(t, callTimeout), &runtimeapi.RemoveContainerRequest{ContainerId: running}); err != nil {
		t.Errorf("remove a running container: %v", err)
	}
	for _, which := range []*box{b, b, {n, strings.Repeat("0", 64), nil}} {
		which.remove(t)
	}
	_, err = n.PodSandboxStatus(callContext(t, callTimeout), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: b.id})
	wantCode(t, err, codes.NotFound)
}
