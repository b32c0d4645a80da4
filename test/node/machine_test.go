//go:build node

package node

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// hack is a script of the checkout.
func hack(name string) string { return filepath.Join("..", "..", "hack", name) }

// machine is a virtual node: a disk that lives as long as the test.
type machine struct {
	image string // directory of hack/node/image
	dir   string
	boots int
}

// newMachine makes the image, or finds it in the cache, and an empty disk on it.
func newMachine(t *testing.T) *machine {
	t.Helper()
	cmd := exec.Command(hack("node/image"))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("make image of node: %v", err)
	}
	return &machine{image: strings.TrimSpace(string(out)), dir: t.TempDir()}
}

// boot is one run of the machine.
type boot struct {
	cmd              *exec.Cmd
	console, results string
	began            time.Time
	ended            chan struct{}
}

// start boots the machine with a payload. The process is ended at the end of the
// test whatever happens.
func (m *machine) start(t *testing.T, payload string, env ...string) *boot {
	t.Helper()
	m.boots++
	b := &boot{
		console: filepath.Join(m.dir, fmt.Sprintf("console-%d", m.boots)), results: filepath.Join(m.dir, fmt.Sprintf("results-%d", m.boots)),
		began: time.Now(), ended: make(chan struct{}),
	}
	console, err := os.Create(b.console)
	if err != nil {
		t.Fatal(err)
	}
	defer console.Close()
	b.cmd = exec.Command(hack("node/boot"), m.image, filepath.Join(m.dir, "disk.qcow2"), payload, b.results)
	b.cmd.Stdout, b.cmd.Stderr = console, console
	b.cmd.Env = append(os.Environ(), env...)
	if err := b.cmd.Start(); err != nil {
		t.Fatalf("boot: %v", err)
	}
	go func() {
		_ = b.cmd.Wait()
		close(b.ended)
	}()
	t.Cleanup(b.cut)
	return b
}

// cut kills the machine as a power cut does.
func (b *boot) cut() {
	_ = b.cmd.Process.Signal(syscall.SIGKILL) // it may have ended
	<-b.ended
}

// finish waits until the machine has powered off, and returns what the payload
// wrote.
func (b *boot) finish(t *testing.T, timeout time.Duration) []byte {
	t.Helper()
	select {
	case <-b.ended:
	case <-time.After(timeout):
		b.cut()
		t.Errorf("the node did not power off within %v", timeout)
	}
	out := b.read()
	if !bytes.Contains(out, []byte(allDone)) {
		console, _ := os.ReadFile(b.console)
		t.Errorf("the payload did not come to its end; console:\n%s", tail(console))
	}
	t.Logf("boot, payload and power-off took %v", time.Since(b.began).Round(time.Second))
	return out
}

// read is what the payload has written so far.
func (b *boot) read() []byte {
	out, _ := os.ReadFile(b.results) // it appears when QEMU has started
	return out
}

// waitFor waits until the payload has written a line.
func (b *boot) waitFor(t *testing.T, line string, timeout time.Duration) {
	t.Helper()
	for deadline := time.Now().Add(timeout); ; time.Sleep(50 * time.Millisecond) {
		if bytes.Contains(b.read(), []byte(line+"\n")) {
			return
		}
		select {
		case <-b.ended:
			t.Fatalf("the node ended before it said %q:\n%s", line, tail(b.read()))
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("the node did not say %q within %v:\n%s", line, timeout, tail(b.read()))
		}
	}
}

// tail is the last 8 KiB.
func tail(data []byte) []byte { return data[max(0, len(data)-8192):] }
