package contract

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
)

// TestFullDisk lets containers end when there is no room for what tells of it.
func TestFullDisk(t *testing.T) {
	t.Run("mailbox", func(t *testing.T) {
		n := newNode(t)
		id := n.sandbox(t, "mailbox").start(t, "c", forever)
		boxes, err := filepath.Glob(filepath.Join(n.RunDir, "pods", uuid(id), "apps", "*", "exit"))
		if err != nil || len(boxes) != 1 {
			t.Fatalf("mailboxes of %s: %v, err %v", id, boxes, err)
		}
		// The one inode is the directory's own.
		if err := syscall.Mount("full", boxes[0], "tmpfs", 0, "nr_inodes=1"); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := syscall.Unmount(boxes[0], syscall.MNT_DETACH); err != nil {
				t.Error(err)
			}
		}()
		end(t, n.processes(t, id).Init.PID)
		n.exited(t, id, 255, "Unknown")
	})
	t.Run("record", func(t *testing.T) {
		n := newNodeOn(t, harness.SmallDisk(t, 64))
		b := n.sandbox(t, "record")
		id := b.start(t, "c", forever)
		filler := fill(t, n.Dir)
		end(t, n.processes(t, id).Init.PID)
		n.exited(t, id, 137, "Error")
		n.Restart(t)
		n.exited(t, id, 137, "Error")
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
		n.Restart(t)
		n.exited(t, id, 137, "Error")
		if records, err := filepath.Glob(filepath.Join(n.Dir, "pods/by-id", uuid(id), "exit.json")); err != nil || len(records) != 1 {
			t.Errorf("exit records: %v, %v", records, err)
		}
	})
}

// fill leaves no room on a directory's disk. It returns the file to delete.
func fill(t *testing.T, dir string) string {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 20; size > 0; {
		if _, err := f.Write(make([]byte, size)); errors.Is(err, syscall.ENOSPC) || errors.Is(err, io.ErrShortWrite) {
			size /= 2
		} else if err != nil {
			t.Fatal(err)
		}
	}
	return f.Name()
}

// TestRuntimeKilled kills the OCI runtime at moments of its commands, from before
// it did anything until after it did all. Whatever it was, the container runs or
// has ended, the next one starts, and nothing is left (newNode checks).
func TestRuntimeKilled(t *testing.T) {
	for _, command := range []string{"create", "start", "kill", "delete"} {
		t.Run(command, func(t *testing.T) {
			killer := newKiller(t, ociRuntime(t), command)
			n := newNode(t, config(t, "runtime: "+killer.program)...)
			b := n.sandbox(t, command)
			kills, started := 0, 0
			for i := 0; i < 6; i += min(3, stride(t)) {
				kills++
				killer.after(t, harness.Slowly(time.Duration(i*i)*10*time.Millisecond))
				if b.startsAndEnds(t, fmt.Sprintf("c%d", i)) {
					started++
				}
				killer.after(t, -1)
				if !b.startsAndEnds(t, fmt.Sprintf("then%d", i)) {
					t.Fatalf("after a kill of %s no container starts", command)
				}
			}
			t.Logf("%d of %d containers started although %s was killed", started, kills, command)
			b.stop(t)
		})
	}
}

// startsAndEnds creates, starts, stops and removes a container, and reports
// whether it started. One that did not has ended with a reason.
func (b *box) startsAndEnds(t *testing.T, name string) bool {
	t.Helper()
	id := b.create(t, name, forever)
	err := b.startID(t, id)
	if err != nil {
		b.exited(t, id, 128, "StartError")
	} else {
		b.wantState(t, id, "RUNNING")
		within(t, 20*time.Second, func() { b.stopID(t, id, 0) })
		b.exited(t, id, 137, "Error")
	}
	if _, err := b.RemoveContainer(call(t), &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
		t.Errorf("remove container: %v", err)
	}
	return err == nil
}

// killer is a program before another that kills it, with one of its commands, a
// while after its start.
type killer struct{ program, delay string }

func newKiller(t *testing.T, real, command string) *killer {
	t.Helper()
	dir := harness.Dir(t)
	k := &killer{program: filepath.Join(dir, "killer"), delay: filepath.Join(dir, "delay")}
	script := `#!/bin/bash
case " $* " in *" ` + command + ` "*) delay=$(cat ` + k.delay + ` 2>/dev/null);; esac
[ -n "$delay" ] || exec ` + real + ` "$@"
` + real + ` "$@" <&0 &
sleep "$delay"
kill -KILL $! 2>/dev/null
wait $!
`
	if err := os.WriteFile(k.program, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return k
}

// after sets how long the program lives; a negative time leaves it alone.
func (k *killer) after(t *testing.T, d time.Duration) {
	t.Helper()
	err := os.Remove(k.delay)
	if d >= 0 {
		err = os.WriteFile(k.delay, []byte(fmt.Sprintf("%f", d.Seconds())), 0o644)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
}
