package shim

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

// TestLingering has a server that ends a stream while its client is far behind with
// reading and goes on sending, as one that pings does.
func TestLingering(t *testing.T) {
	const size = 8 << 20
	closed := make(chan struct{})
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = serveHTTP(t.Context(), lingering{inner}, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			defer close(closed)
			conn, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			ended := make(chan error, 1)
			go func() {
				_, err := io.Copy(io.Discard, conn)
				ended <- err
			}()
			if _, err := conn.Write(bytes.Repeat([]byte("x"), size)); err != nil {
				t.Error(err)
			}
			if err := conn.Close(); err != nil {
				t.Error(err)
			}
			if err := <-ended; err == nil {
				t.Error("a read goes on after the end")
			}
			if err := conn.Close(); err == nil {
				t.Error("closed twice")
			}
		}))
	}()
	client, err := net.Dial("tcp", inner.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	// A small window leaves the most in the server's hands.
	if err := client.(*net.TCPConn).SetReadBuffer(64 << 10); err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(client, "GET / HTTP/1.1\r\nHost: test\r\n\r\n")
	in := bufio.NewReader(client)
	// The server can write the last bytes only once there is room for them.
	if n, err := io.CopyN(io.Discard, in, size/2); err != nil {
		t.Fatalf("%d bytes came: %v", n, err)
	}
	got := int64(size / 2)
	for ; ; time.Sleep(time.Millisecond) {
		n, err := io.CopyN(io.Discard, in, 64<<10)
		got += n
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%d bytes of %d came: %v", got, size, err)
		}
		if _, err := client.Write([]byte("ping")); err != nil {
			t.Fatalf("write after %d bytes: %v", got, err)
		}
	}
	if got != size {
		t.Errorf("%d bytes of %d came", got, size)
	}
	<-closed
}
