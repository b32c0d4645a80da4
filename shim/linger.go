package shim

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// lingerTime is how long a client may take to close its end once we have closed ours.
const lingerTime = 30 * time.Second

// lingering is a listener for the streams of exec, attach and port-forward, whose ends
// come from us: with the exit of the command. A TCP connection that is closed while
// there is something to read, or to which something comes later, is reset, and what the
// client has not been sent by then is lost; a client pings, and the kubelet, which
// copies between us and its client, gives up both ways at the first error of either.
// So closing ends only our output, and the client closes the connection.
type lingering struct{ net.Listener }

// Accept is part of net.Listener.
func (l lingering) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if tcp, ok := c.(*net.TCPConn); ok {
		c = &lingeringConn{Conn: tcp, tcp: tcp}
	}
	return c, err
}

type lingeringConn struct {
	net.Conn // without ReadFrom and WriteTo, which would pass by Read
	tcp      *net.TCPConn
	reading  sync.Mutex // held while somebody reads
	closed   atomic.Bool
}

// Read is part of net.Conn.
func (c *lingeringConn) Read(b []byte) (int, error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	if c.closed.Load() {
		return 0, net.ErrClosed
	}
	n, err := c.Conn.Read(b)
	if err != nil && c.closed.Load() {
		err = net.ErrClosed // not the deadline by which Close ended the read
	}
	return n, err
}

// Close is part of net.Conn. It returns at once.
func (c *lingeringConn) Close() error {
	if c.closed.Swap(true) {
		return net.ErrClosed
	}
	if c.tcp.CloseWrite() != nil || c.SetReadDeadline(time.Unix(1, 0)) != nil { // the client has gone
		return c.Conn.Close()
	}
	go c.linger()
	return nil
}

// linger reads, for nobody, until the client closes.
func (c *lingeringConn) linger() {
	c.reading.Lock()   // whoever read has seen the end, and whoever comes sees it
	c.reading.Unlock() //nolint:staticcheck // nothing is done meanwhile
	if c.SetReadDeadline(time.Now().Add(lingerTime)) == nil {
		_, _ = io.Copy(io.Discard, c.tcp)
	}
	_ = c.Conn.Close() // nobody waits for an answer
}
