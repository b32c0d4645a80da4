package monitor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// The first byte of a packet says which stream the rest belongs to (conmon's ctr_stdio.h).
const (
	pipeStdout = 2
	pipeStderr = 3
)

const (
	// maxPacket is more than conmon sends at once, maxStdin less than it reads.
	maxPacket = 32 << 10
	maxStdin  = 8 << 10
	// maxQueue is how many bytes a client may be behind; then it has stallLimit to
	// take at least one packet. conmon writes to clients and waits for them, so the
	// container would stand still with a client that does not read.
	maxQueue   = 4 << 20
	stallLimit = 500 * time.Millisecond
)

// AttachIO is one client of a container's streams. A nil stream is one that the
// client did not ask for; Stdin in particular must be nil then, not merely empty.
type AttachIO struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Resize has the terminal's sizes; it is read until it is closed or Attach returns.
	Resize <-chan specs.Box
	// Control is the control FIFO, for Resize; empty where there is no terminal.
	Control string
	// StdinOnce says that the end of Stdin is the end of the container's input, as
	// it was said to Start.
	StdinOnce bool
}

// errStalled says that a client was let go because it did not read.
var errStalled = errors.New("the client does not read: detached")

// Attach connects the client with the container's streams and returns nil when
// the container has ended. It returns earlier with the context's error, or with
// the client's when that can no longer be written to. A client that leaves or
// does not read never stops the container. A read of Stdin that is under way at
// the end is left to its owner, who closes it.
func Attach(ctx context.Context, socket string, client AttachIO) error {
	conn, err := dial(socket)
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	end := func() { _ = conn.Close() }
	if client.Stdin == nil && client.StdinOnce {
		// conmon takes any client that leaves for the one that held the input. A mere
		// watcher's connection is therefore kept, and read, until the container ends.
		end = func() { go discard(conn) }
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go client.resize(ctx)
	if client.Stdin != nil {
		go client.send(conn)
	}
	q := newQueue(client)
	received := make(chan error, 1)
	go func() { received <- q.receive(conn) }()
	select {
	case err = <-received: // the container's end, or the client does not read
		if err == nil {
			err = q.flush(ctx)
		}
		end()
	case err = <-q.failed:
		q.stop()
		_ = conn.SetReadDeadline(time.Unix(1, 0))
		<-received //nolint:errcheck // ends by the deadline just set
		end()
	case <-ctx.Done():
		q.stop()
		_ = conn.SetReadDeadline(time.Unix(1, 0))
		<-received //nolint:errcheck // ends by the deadline just set
		err = ctx.Err()
		end()
	}
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	return nil
}

// dial connects to conmon's socket. A path that does not fit into a socket's
// address is reached through a descriptor of its directory.
func dial(socket string) (*net.UnixConn, error) {
	name := socket
	if len(socket) >= sunPath {
		dir, err := os.OpenFile(filepath.Dir(socket), unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return nil, err
		}
		defer dir.Close() //nolint:errcheck // nothing was written
		name = filepath.Join("/proc/self/fd", strconv.Itoa(int(dir.Fd())), filepath.Base(socket))
	}
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: name, Net: "unixpacket"})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
		return nil, fmt.Errorf("%s: the monitor is gone: %w", socket, errdefs.ErrState)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", socket, err)
	}
	return conn, nil
}

// discard reads what nobody wants until the container ends.
func discard(conn *net.UnixConn) {
	defer conn.Close() //nolint:errcheck // nothing to be said to anybody
	_ = conn.SetReadDeadline(time.Time{})
	buf := make([]byte, maxPacket)
	for {
		if _, err := conn.Read(buf); err != nil {
			return
		}
	}
}

// send copies the client's input. Its end is passed on only with StdinOnce: to
// conmon it would mean that the client has left.
func (c AttachIO) send(conn *net.UnixConn) {
	buf := make([]byte, maxStdin)
	for {
		n, err := c.Stdin.Read(buf)
		if n > 0 {
			if _, werr := conn.Write(buf[:n]); werr != nil {
				return
			}
		}
		if err != nil {
			if c.StdinOnce {
				_ = conn.CloseWrite()
			}
			return
		}
	}
}

// resize passes sizes on, and empties the channel where there is no terminal.
func (c AttachIO) resize(ctx context.Context) {
	for {
		select {
		case size, ok := <-c.Resize:
			if !ok {
				return
			}
			if c.Control != "" {
				_ = Resize(ctx, c.Control, size) // a wrong size is no reason to detach
			}
		case <-ctx.Done():
			return
		}
	}
}

// queue holds what the container wrote and the client has not taken yet.
type queue struct {
	client AttachIO
	// failed gets the error of the client's writer.
	failed chan error

	mu      sync.Mutex // guards what follows
	changed chan struct{}
	packets [][]byte
	size    int
	taken   int // packets that the client has taken, to see that it moves
	closed  bool
}

func newQueue(client AttachIO) *queue {
	q := &queue{client: client, failed: make(chan error, 1), changed: make(chan struct{})}
	go q.deliver()
	return q
}

// update changes the queue under its lock and wakes whoever waits for a change.
func (q *queue) update(change func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	change()
	close(q.changed)
	q.changed = make(chan struct{})
}

func (q *queue) stop() { q.update(func() { q.closed = true }) }

// receive reads packets until the container ends (nil) or the client stalls.
func (q *queue) receive(conn *net.UnixConn) error {
	buf := make([]byte, maxPacket)
	for {
		n, err := conn.Read(buf)
		if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) {
			return nil
		}
		if err != nil {
			return err
		}
		if n < 2 || !q.wanted(buf[0]) {
			continue
		}
		packet := append([]byte(nil), buf[:n]...)
		q.update(func() { q.packets, q.size = append(q.packets, packet), q.size+len(packet) })
		if err := q.room(); err != nil {
			return err
		}
	}
}

func (q *queue) wanted(stream byte) bool { return q.writer(stream) != nil }

func (q *queue) writer(stream byte) io.Writer {
	switch stream {
	case pipeStdout:
		return q.client.Stdout
	case pipeStderr:
		return q.client.Stderr
	default:
		return nil
	}
}

// room waits until the queue is no longer full, as long as the client moves.
func (q *queue) room() error {
	var since time.Time
	last := -1
	for {
		q.mu.Lock()
		full, taken, closed, changed := q.size > maxQueue, q.taken, q.closed, q.changed
		q.mu.Unlock()
		if !full || closed {
			return nil
		}
		if taken != last {
			last, since = taken, time.Now()
		}
		select {
		case <-changed:
		case <-time.After(time.Until(since.Add(stallLimit))):
			if q.moved(last) {
				continue
			}
			q.stop()
			return errStalled
		}
	}
}

func (q *queue) moved(last int) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.taken != last
}

// deliver writes to the client, in order, until the queue is stopped.
func (q *queue) deliver() {
	for {
		q.mu.Lock()
		changed, closed := q.changed, q.closed
		var packet []byte
		if len(q.packets) > 0 {
			packet = q.packets[0]
		}
		q.mu.Unlock()
		if closed {
			return
		}
		if packet == nil {
			<-changed
			continue
		}
		if _, err := q.writer(packet[0]).Write(packet[1:]); err != nil {
			q.stop()
			q.failed <- fmt.Errorf("write to the client: %w", err)
			return
		}
		q.update(func() { q.packets, q.size, q.taken = q.packets[1:], q.size-len(packet), q.taken+1 })
	}
}

// flush waits, after the container's end, until the client has taken everything;
// one that takes nothing for ten stall limits is given up.
func (q *queue) flush(ctx context.Context) error {
	defer q.stop()
	for {
		q.mu.Lock()
		empty, changed := len(q.packets) == 0, q.changed
		q.mu.Unlock()
		if empty {
			return nil
		}
		select {
		case <-changed:
		case err := <-q.failed:
			return err
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * stallLimit):
			return errStalled
		}
	}
}
