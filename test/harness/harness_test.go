package harness

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gantry-cri/gantry/test/images"
)

// needs skips a test where root or a program is missing.
func needs(t *testing.T, programs ...string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("needs %s (hack/deps bench): %v", p, err)
		}
	}
}

func TestRegistry(t *testing.T) {
	needs(t, "docker-registry")
	r := StartRegistry(t)
	img, err := images.Busybox(images.Options{})
	if err != nil {
		t.Fatal(err)
	}
	digest := r.Push(t, "test/busybox:1", img)
	if !strings.HasPrefix(digest, r.Addr+"/test/busybox@sha256:") {
		t.Errorf("pushed as %q", digest)
	}
	r.Stop(t)
	if r.Running() || httpOK("http://"+r.Addr+"/v2/") == nil {
		t.Error("registry answers after Stop")
	}
	r.Start(t)
	if err := httpOK("http://" + r.Addr + "/v2/test/busybox/tags/list"); err != nil {
		t.Errorf("image is gone after a restart: %v", err)
	}
}

func TestLeaks(t *testing.T) {
	needs(t, "sleep")
	dir := Dir(t)
	scope := LeakScope{Dirs: []string{dir}}
	before, err := TakeSnapshot(scope)
	if err != nil {
		t.Fatal(err)
	}
	mount := filepath.Join(dir, "mnt")
	if err := os.Mkdir(mount, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("none", mount, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	copied := exec.Command("unshare", "--mount", "sleep", "1000")
	if err := copied.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = copied.Process.Kill(), copied.Wait() })
	sleep := StartProcess(t, dir, "sleep", []string{"sh", "-c", "sleep 1000 # " + mount + "/x"})
	t.Cleanup(func() { sleep.Kill(t) })
	hs, err := hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	cgroup := filepath.Join(hs[0].mount, "leak-"+filepath.Base(dir))
	if err := os.Mkdir(cgroup, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, owner := range map[string]string{"ours": dir + "/run/pods", "theirs": dir + "else/run/pods"} {
		marked := filepath.Join(hs[0].mount, "leak-"+name+"-"+filepath.Base(dir))
		if err := os.MkdirAll(filepath.Join(marked, "c"), 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = removeCgroup(marked) })
		if err := syscall.Setxattr(marked, "trusted.gantry", []byte(owner), 0); err != nil {
			t.Fatal(err)
		}
	}
	after, err := TakeSnapshot(scope)
	if err != nil {
		t.Fatal(err)
	}
	found := after.Since(before)
	if ours, theirs := "leak-ours-"+filepath.Base(dir)+"/c", "leak-theirs-"+filepath.Base(dir); !strings.Contains(strings.Join(found, "\n"), ours) ||
		strings.Contains(strings.Join(found, "\n"), theirs) {
		t.Errorf("%s is to be among %q, and %s not", ours, found, theirs)
	}
	for _, want := range []string{"mount " + mount, "process ", "cgroup " + cgroup} {
		if !slices.ContainsFunc(found, func(s string) bool { return strings.HasPrefix(s, want) }) {
			t.Errorf("%q is not among %q", want, found)
		}
	}
	if pid := fmt.Sprintf("process %d:", copied.Process.Pid); strings.Contains(strings.Join(found, "\n"), pid) {
		t.Errorf("a process that only has a copy of the mounts is among %q", found)
	}
	after.clear(before)
	<-sleep.Exited()
	cleared, err := TakeSnapshot(scope)
	if err != nil {
		t.Fatal(err)
	}
	if left := cleared.Since(before); slices.ContainsFunc(left, func(s string) bool { return slices.Contains(found, s) }) {
		t.Errorf("not cleared: %q", left)
	}
}

func TestSmallDisk(t *testing.T) {
	needs(t, "mkfs.ext4")
	dir := SmallDisk(t, 8)
	err := os.WriteFile(filepath.Join(dir, "f"), make([]byte, 16<<20), 0o644)
	if !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("writing 16 MiB to a disk of 8: %v", err)
	}
}

func TestPrometheus(t *testing.T) {
	needs(t, "prometheus")
	mux := http.NewServeMux()
	mux.HandleFunc("/metrics", func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "# TYPE answer gauge\nanswer{a=\"b\"} 42\n") //nolint:errcheck // a test server
	})
	server := httptest.NewServer(mux)
	defer server.Close()
	p := StartPrometheus(t, strings.TrimPrefix(server.URL, "http://"))
	Eventually(t, 10*time.Second, func() string {
		if got := p.Query(t, `answer{a="b"}`); len(got) != 1 || got[0] != 42 {
			return fmt.Sprintf("query gave %v", got)
		}
		return ""
	})
}
