package shim

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestWatchdogIsToldWhileTheDaemonAnswers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "20000")
	ctx, cancel := context.WithCancel(t.Context())
	calls := 0
	ended := make(chan error, 1)
	go func() {
		ended <- watch(ctx, func() error {
			if calls++; calls == 1 {
				return errors.New("cannot list")
			}
			return nil
		})
	}()
	buf := make([]byte, 100)
	if err := socket.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	n, err := socket.Read(buf)
	if err != nil || !strings.Contains(string(buf[:n]), "WATCHDOG=1") {
		t.Fatalf("told %q, %v", buf[:n], err)
	}
	cancel()
	if err := <-ended; err != nil || calls < 2 {
		t.Errorf("ended with %v after %d checks, of which the first failed", err, calls)
	}
}
