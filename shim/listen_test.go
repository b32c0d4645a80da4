package shim

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

func TestListen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	first, err := listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != socketMode || info.Mode()&os.ModeSocket == 0 {
		t.Errorf("socket %v, %v", info, err)
	}
	if _, err := listen(t.Context(), path); !errors.Is(err, errdefs.ErrBusy) {
		t.Errorf("beside a live daemon: %v, want ErrBusy", err)
	}
	if err := first.UnixListener.Close(); err != nil { // as a killed daemon: the file stays
		t.Fatal(err)
	}
	second, err := listen(t.Context(), path)
	if err != nil {
		t.Fatalf("over a stale socket: %v", err)
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(conn.Close(), second.Close()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket stayed: %v", err)
	}
}

func TestLockDir(t *testing.T) {
	dir := t.TempDir()
	first, err := lockDir(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockDir(t.Context(), dir); !errors.Is(err, errdefs.ErrBusy) {
		t.Errorf("the second: %v, want ErrBusy", err)
	}
	// What a killed daemon forked gives its copy up a moment later.
	time.AfterFunc(50*time.Millisecond, func() { _ = first.Close() })
	second, err := lockDir(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
}
