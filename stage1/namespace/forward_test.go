package namespace

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// listen serves each connection on an address in a network namespace.
func listen(t *testing.T, netns, addr string, serve func(*net.TCPConn)) uint16 {
	t.Helper()
	var l net.Listener
	if err := Do(netns, func() (err error) { l, err = net.Listen("tcp", addr); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); serve(c.(*net.TCPConn)) }()
		}
	}()
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

func echo(c *net.TCPConn) { io.Copy(c, c) }

func TestDial(t *testing.T) {
	dir := pins(t)
	if err := Make(Spec{Dir: dir, Net: true}); err != nil {
		t.Fatal(err)
	}
	pod := Pin(dir, Net)
	for _, tt := range []struct{ name, netns, listen string }{
		{"IPv4 of the pod", pod, "127.0.0.1:0"},
		{"IPv6 of the pod", pod, "[::1]:0"},
		{"all addresses", pod, ":0"},
		{"node's network", "", "127.0.0.1:0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			port := listen(t, tt.netns, tt.listen, echo)
			c, err := Dial(context.Background(), tt.netns, port)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := io.WriteString(c, "hello"); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 5)
			if _, err := io.ReadFull(c, got); err != nil || string(got) != "hello" {
				t.Errorf("%q, %v", got, err)
			}
			if tt.netns != "" {
				if c, err := Dial(context.Background(), "", port); err == nil {
					c.Close()
					t.Error("the pod's port is on the node too")
				}
			}
		})
	}
	t.Run("refused", func(t *testing.T) {
		_, err := Dial(context.Background(), pod, 9)
		if !errors.Is(err, unix.ECONNREFUSED) || !strings.Contains(err.Error(), "port 9") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v", err)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if _, err := Dial(ctx, pod, 9); err == nil {
			t.Error("dialled")
		}
	})
}

// spdyish is a stream whose Close ends one direction only, as SPDY's does.
type spdyish struct {
	io.Reader
	mu     sync.Mutex
	out    bytes.Buffer
	closed chan struct{}
	once   sync.Once
	broken bool
}

func (s *spdyish) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken {
		return 0, errors.New("stream reset")
	}
	return s.out.Write(p)
}

func (s *spdyish) Close() error { s.once.Do(func() { close(s.closed) }); return nil }

func (s *spdyish) got() string { s.mu.Lock(); defer s.mu.Unlock(); return s.out.String() }

func stream(r io.Reader) *spdyish { return &spdyish{Reader: r, closed: make(chan struct{})} }

func forward(t *testing.T, port uint16, s *spdyish) chan error {
	t.Helper()
	c, err := Dial(context.Background(), "", port)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- Forward(context.Background(), c, s) }()
	return done
}

func ends(t *testing.T, done chan error) error {
	t.Helper()
	select {
	case err := <-done:
		return err
	case <-time.After(15 * time.Second):
		t.Fatal("Forward does not end")
		return nil
	}
}

func TestForwardSlowAnswerAfterHalfClose(t *testing.T) {
	port := listen(t, "", "127.0.0.1:0", func(c *net.TCPConn) {
		b, _ := io.ReadAll(c) // until the client's end
		time.Sleep(drain + 500*time.Millisecond)
		c.Write(append([]byte("answer to "), b...))
	})
	s := stream(strings.NewReader("question"))
	if err := ends(t, forward(t, port, s)); err != nil {
		t.Error(err)
	}
	if got := s.got(); got != "answer to question" {
		t.Errorf("got %q", got)
	}
}

func TestForwardServerEndsFirst(t *testing.T) {
	port := listen(t, "", "127.0.0.1:0", func(c *net.TCPConn) { io.WriteString(c, "bye") })
	r, w := io.Pipe() // a client that says nothing and waits for us
	defer w.Close()
	s := stream(r)
	done := forward(t, port, s)
	select {
	case <-s.closed:
	case <-time.After(time.Second):
		t.Error("the client is not told of the server's end at once")
	}
	if err := ends(t, done); err != nil {
		t.Error(err)
	}
	if s.got() != "bye" {
		t.Errorf("got %q", s.got())
	}
}

func TestForwardUploadAfterServersHalfClose(t *testing.T) {
	var mu sync.Mutex
	var up bytes.Buffer
	served := make(chan struct{})
	port := listen(t, "", "127.0.0.1:0", func(c *net.TCPConn) {
		defer close(served)
		c.CloseWrite()
		mu.Lock()
		defer mu.Unlock()
		io.Copy(&up, c)
	})
	r, w := io.Pipe()
	done := forward(t, port, stream(r))
	for range 4 {
		io.WriteString(w, "x")
		time.Sleep(drain / 2)
	}
	w.Close()
	if err := ends(t, done); err != nil {
		t.Error(err)
	}
	<-served
	mu.Lock()
	defer mu.Unlock()
	if up.String() != "xxxx" {
		t.Errorf("server got %q", up.String())
	}
}

func TestForwardPeersThatLeave(t *testing.T) {
	t.Run("server resets", func(t *testing.T) {
		port := listen(t, "", "127.0.0.1:0", func(c *net.TCPConn) {
			io.ReadFull(c, make([]byte, 1))
			c.SetLinger(0)
		})
		r, w := io.Pipe()
		done := forward(t, port, stream(r))
		io.WriteString(w, "x")
		go io.WriteString(w, strings.Repeat("y", 1<<20))
		if err := ends(t, done); err != nil {
			t.Errorf("a reset is an error: %v", err)
		}
		w.Close()
	})
	t.Run("client breaks while reading", func(t *testing.T) {
		port := listen(t, "", "127.0.0.1:0", func(c *net.TCPConn) { io.Copy(io.Discard, c) })
		r, w := io.Pipe()
		done := forward(t, port, stream(r))
		w.CloseWithError(errors.New("connection lost"))
		if err := ends(t, done); err != nil {
			t.Error(err)
		}
	})
	t.Run("client breaks while writing", func(t *testing.T) {
		port := listen(t, "", "127.0.0.1:0", func(c *net.TCPConn) {
			for {
				if _, err := c.Write([]byte("tick")); err != nil {
					return
				}
			}
		})
		r, w := io.Pipe()
		defer w.Close()
		s := stream(r)
		s.broken = true
		if err := ends(t, forward(t, port, s)); err != nil {
			t.Error(err)
		}
	})
	t.Run("context", func(t *testing.T) {
		port := listen(t, "", "127.0.0.1:0", echo)
		c, err := Dial(context.Background(), "", port)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		r, w := net.Pipe()
		defer w.Close()
		done := make(chan error, 1)
		go func() { done <- Forward(ctx, c, r) }()
		cancel()
		if err := ends(t, done); !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	})
}

func TestForwardMuchData(t *testing.T) {
	port := listen(t, "", "127.0.0.1:0", func(c *net.TCPConn) { echo(c); c.CloseWrite() })
	want := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	s := stream(bytes.NewReader(want))
	if err := ends(t, forward(t, port, s)); err != nil {
		t.Error(err)
	}
	if s.got() != string(want) {
		t.Errorf("%d bytes, want %d", s.out.Len(), len(want))
	}
}
