package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/gantry-cri/gantry/test/harness"
)

// readOnly becomes a program that can write to nothing but the directory above its
// --run-dir, and to what is no file system on a disk: cgroups, /proc and devices.
var readOnly = []string{"unshare", "-m", "sh", "-e", "-c", `
for arg; do [ "$last" != --run-dir ] || base=${arg%/*}; last=$arg; done
mount --bind "$base" "$base"
findmnt -rno TARGET | while read -r at; do
	case $at in /proc|/proc/*|/sys|/sys/*|/dev|/dev/pts|"$base"|"$base"/*) ;;
	*) mount -o remount,bind,ro "$at" ;;
	esac
done
exec "$@"`, "sh"}

// TestApart runs two daemons beside one another, to which all is read-only that was
// not named to them. Each has a pod of the same name and sees no other.
func TestApart(t *testing.T) {
	needs(t, "unshare", "findmnt")
	var nodes []*node
	for range 2 {
		n := startNode(t, harness.GantryOptions{Wrapper: readOnly})
		c := sandboxConfig(t, "apart")
		c.LogDirectory = filepath.Join(n.Base, "logs")
		id := n.run(t, c).start(t, "c", "echo began; exec sleep 1000")
		waitLog(t, n.state(t, id).LogPath, " stdout F began\n")
		n.exec(t, id, "echo written >/file; cat /file")
		nodes = append(nodes, n)
	}
	for _, n := range nodes {
		if boxes, containers, pods := n.sandboxes(t), n.containers(t), n.list(t); len(boxes) != 1 || len(containers) != 1 || len(pods) != 2 {
			t.Errorf("beside another daemon: sandboxes %v, containers %v, pods %v", boxes, containers, pods)
		}
		n.exec(t, n.containers(t)[0].Id, "true")
		n.checkCommands(t)
		(&box{n, n.sandboxes(t)[0].Id, nil}).remove(t)
		n.removeImage(t, n.busybox)
		if log := must(os.ReadFile(n.Log))(t); bytes.Contains(log, []byte("read-only file system")) {
			t.Errorf("the daemon tried to write elsewhere:\n%s", log)
		}
	}
}

// checkCommands runs commands that write as the daemon runs.
func (n *node) checkCommands(t *testing.T) {
	t.Helper()
	flags := n.Command(t, "list").Args[2:]
	script := `gantry=$1; shift; uuid=$("$gantry" prepare --quiet "$@" docker://` + n.busybox + ` --exec=/bin/echo -- said)
"$gantry" run-prepared "$@" "$uuid"
"$gantry" status "$@" "$uuid" | grep -q '^exited=true$'
"$gantry" rm "$@" "$uuid"
"$gantry" gc "$@"`
	argv := slices.Concat(readOnly, []string{"sh", "-e", "-c", script, "sh", n.Binary}, flags)
	out, err := exec.CommandContext(t.Context(), argv[0], argv[1:]...).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "said\n") || strings.Contains(string(out), "read-only file system") {
		t.Errorf("commands: %v\n%s", err, out)
	}
}
