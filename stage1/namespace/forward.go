package namespace

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Dial connects to a TCP port on the loopback of a network namespace: 127.0.0.1,
// then ::1. Literal addresses, one after the other: name resolution and happy
// eyeballs use other threads, which are in another namespace. An empty path is
// the caller's own namespace, for a pod on the node's network. The connection is the caller's to close.
func Dial(ctx context.Context, netns string, port uint16) (net.Conn, error) {
	var conn net.Conn
	err := Do(netns, func() error {
		var errs []error
		for _, host := range []string{"127.0.0.1", "::1"} {
			c, err := new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
			if err == nil {
				conn = c
				return nil
			}
			errs = append(errs, err)
			if ctx.Err() != nil {
				break
			}
		}
		return joinLine(errs)
	})
	if err != nil {
		return nil, fmt.Errorf("connect to port %d of the pod: %w", port, err)
	}
	return conn, nil
}

// joinLine is errors.Join on one line: the text ends up in an error stream or a terminal.
func joinLine(errs []error) error {
	if len(errs) < 2 {
		return errors.Join(errs...)
	}
	return fmt.Errorf("%w; %w", errs[0], errs[1])
}

// drain is how long the client's direction may be silent once the server has
// ended its own: older clients wait for us to end before they do.
const drain = 2 * time.Second

// Forward copies between a connection and a client's stream until both
// directions have ended, and closes both. The end of one direction is passed on as a
// half-close and the other goes on: a slow answer is not cut. On a stream without
// CloseWrite, Close is taken to end our direction only (as on a SPDY stream).
// A peer that went away is no error, since whoever dialled has nobody left to tell; ctx ends both.
func Forward(ctx context.Context, conn net.Conn, stream io.ReadWriteCloser) error {
	defer stream.Close()                                                    //nolint:errcheck // the copy's error is what counts
	defer conn.Close()                                                      //nolint:errcheck // the same
	stop := context.AfterFunc(ctx, func() { conn.Close(); stream.Close() }) //nolint:errcheck // to end the copies
	defer stop()

	var moved atomic.Int64 // bytes from the client, to tell silence from work
	toServer := make(chan error, 1)
	go func() {
		readErr, writeErr := pump(conn, stream, &moved)
		if readErr == nil && writeErr == nil {
			closeWrite(conn)
		} else if readErr != nil {
			conn.Close() //nolint:errcheck // the client is gone: end the other direction
		}
		toServer <- writeErr
	}()

	readErr, writeErr := pump(stream, conn, new(atomic.Int64))
	if writeErr != nil {
		// The client is gone: nothing that the server says matters any more.
		return ctx.Err()
	}
	closeWrite(stream)
	werr := awaitQuiet(toServer, &moved)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return errors.Join(unlessGone(readErr), unlessGone(werr))
}

// awaitQuiet waits for the client's direction while bytes still move on it.
func awaitQuiet(done <-chan error, moved *atomic.Int64) error {
	for seen := moved.Load(); ; {
		select {
		case err := <-done:
			return err
		case <-time.After(drain):
		}
		now := moved.Load()
		if now == seen {
			return nil
		}
		seen = now
	}
}

// pump copies until src ends and says which side failed; an end of file is no failure.
func pump(dst io.Writer, src io.Reader, moved *atomic.Int64) (readErr, writeErr error) {
	buf := make([]byte, 32<<10)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			moved.Add(int64(n))
			if _, werr := dst.Write(buf[:n]); werr != nil {
				return nil, werr
			}
		}
		if errors.Is(err, io.EOF) {
			return nil, nil
		}
		if err != nil {
			return err, nil
		}
	}
}

func closeWrite(c io.Closer) {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		half.CloseWrite() //nolint:errcheck // a peer that is gone needs no end
		return
	}
	c.Close() //nolint:errcheck // the same
}

func unlessGone(err error) error {
	for _, gone := range []error{io.EOF, io.ErrClosedPipe, net.ErrClosed, unix.ECONNRESET, unix.EPIPE, unix.ETIMEDOUT} {
		if errors.Is(err, gone) {
			return nil
		}
	}
	return err
}
