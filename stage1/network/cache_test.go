package network

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage1/namespace"
)

// TestRemembered has what the cache tells of a real ADD give everything back.
func TestRemembered(t *testing.T) {
	n := newNode(t)
	a := n.plan("a", Port{HostPort: 18080, ContainerPort: 80})
	if _, err := n.Remembered(a.ContainerID); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("before ADD: %v", err)
	}
	if _, err := n.add(within(t, 30*time.Second), a); err != nil {
		t.Fatal(err)
	}
	if ids, err := n.Cached(); err != nil || !slices.Equal(ids, []string{a.ContainerID}) {
		t.Errorf("cached %v, %v", ids, err)
	}
	// The configuration of today must not matter.
	if err := os.RemoveAll(n.dir + "/net.d"); err != nil {
		t.Fatal(err)
	}
	r, err := n.Remembered(a.ContainerID)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(r.Args, a.Args) || r.NetNS != a.NetNS || r.IfName != a.IfName || r.CacheDir != a.CacheDir || len(r.Capabilities) != 1 {
		t.Errorf("remembered %+v of %+v", r, a)
	}
	if !r.Within(a.ContainerID, filepath.Dir(a.NetNS)) || r.Within(a.ContainerID, n.dir+"/n") || r.Within("b", n.dir) {
		t.Error("the mark is not told from others")
	}
	if err := n.release(t, r); err != nil {
		t.Fatal(err)
	}
	waitGone(t, n)
	if _, err := n.Remembered(a.ContainerID); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("after DEL: %v", err)
	}
}

func (n *node) release(t *testing.T, a Attachment) error {
	t.Helper()
	return namespace.Do(n.host, func() error { return n.Release(within(t, 30*time.Second), a) })
}

// TestTornCache gives back what today's configuration tells, where the result of an
// ADD cannot be read or was never written.
func TestTornCache(t *testing.T) {
	for _, torn := range []string{"half", "missing"} {
		t.Run(torn, func(t *testing.T) {
			n := newNode(t)
			a := n.plan("a")
			if _, err := n.add(within(t, 30*time.Second), a); err != nil {
				t.Fatal(err)
			}
			results, err := filepath.Glob(filepath.Join(a.CacheDir, "results", "*"))
			if err != nil || len(results) != 1 {
				t.Fatalf("results %v, %v", results, err)
			}
			if torn == "half" {
				err = os.Truncate(results[0], 100)
			} else {
				err = os.Remove(results[0])
			}
			if err != nil {
				t.Fatal(err)
			}
			r, err := n.Remembered(a.ContainerID)
			if err != nil || !r.Within(a.ContainerID, "/anywhere") {
				t.Fatalf("%+v, %v", r, err)
			}
			if err := n.release(t, r); err != nil {
				t.Fatal(err)
			}
			if left := append(n.leases(), entries(t, n.dir+"/cache")...); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func entries(t *testing.T, dir string) (names []string) {
	t.Helper()
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		names = append(names, e.Name())
	}
	return names
}

// TestReleaseWhileUsed keeps the address of a process that lives.
func TestReleaseWhileUsed(t *testing.T) {
	n := newNode(t)
	a := n.plan("a")
	if _, err := n.add(within(t, 30*time.Second), a); err != nil {
		t.Fatal(err)
	}
	user := exec.Command("nsenter", "--net="+a.NetNS, "sleep", "1000")
	if err := user.Start(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if used, err := namespace.InUse(a.NetNS, namespace.Net); used {
			break
		} else if err != nil || time.Now().After(end) {
			t.Fatalf("nobody lives in the namespace: %v", err)
		}
	}
	if err := n.release(t, a); !errors.Is(err, errdefs.ErrBusy) || !strings.Contains(err.Error(), a.NetNS) {
		t.Errorf("%v", err)
	}
	if len(n.leases()) != 2 {
		t.Errorf("leases %v", n.leases())
	}
	if err := user.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	user.Wait() // it was killed
	if err := n.release(t, a); err != nil {
		t.Error(err)
	}
	waitGone(t, n)
}
