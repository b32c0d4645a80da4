package exec

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/creack/pty"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// sizeTime is how long a client with a terminal may take to tell its size before
// the command begins without.
const sizeTime = 100 * time.Millisecond

// firstSize gives the process the size that a client sends at once: the runtime
// looks at its own terminal only after the command has begun.
func (s *Spec) firstSize(ctx context.Context, sizes <-chan specs.Box) {
	if s.Process == nil || !s.Process.Terminal || sizes == nil || s.Process.ConsoleSize != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, sizeTime)
	defer cancel()
	select {
	case size, ok := <-sizes:
		if ok {
			process := *s.Process
			process.ConsoleSize = &size
			s.Process = &process
		}
	case <-ctx.Done():
	}
}

// resizeCommand sets the size of the terminal inside the container. runc follows
// ours, crun 1.8.1 only when it starts. What the command has made of its standard
// input since is looked at before it is opened.
func (e *session) resizeCommand(size specs.Box) {
	p, ok := e.command()
	if !ok || e.Runtime.Name == "runc" {
		return
	}
	at, err := os.OpenFile(fmt.Sprintf("/proc/%d/fd/0", p.PID), unix.O_PATH, 0)
	if err != nil {
		return
	}
	defer at.Close() //nolint:errcheck // nothing was written
	var st unix.Stat_t
	if unix.Fstat(int(at.Fd()), &st) != nil || !isPTY(st) {
		return
	}
	tty, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", at.Fd()), unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return
	}
	defer tty.Close() //nolint:errcheck // nothing was written
	_ = setSize(tty, size)
}

// isPTY says whether a file is the inner side of a pseudo-terminal (devices.txt: 136 to 143).
func isPTY(st unix.Stat_t) bool {
	major := unix.Major(st.Rdev)
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && major >= 136 && major <= 143
}

// openPTY makes a terminal whose inner side is raw from the start, so that what
// the client sends before the runtime is up reaches the container's terminal as it
// was sent. Our side goes through the poller, so that closing it ends a read;
// creack/pty leaves it blocking.
func openPTY() (master, tty *os.File, err error) {
	blocking, tty, err := pty.Open()
	if err != nil {
		return nil, nil, err
	}
	defer blocking.Close() //nolint:errcheck // a copy goes on
	fd, err := unix.FcntlInt(blocking.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, nil, errors.Join(err, tty.Close())
	}
	if err = unix.SetNonblock(fd, true); err == nil {
		err = makeRaw(tty)
	}
	master = os.NewFile(uintptr(fd), blocking.Name())
	if err != nil {
		return nil, nil, errors.Join(err, master.Close(), tty.Close())
	}
	return master, tty, nil
}

// makeRaw is cfmakeraw of termios(3).
func makeRaw(tty *os.File) error {
	fd := int(tty.Fd())
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return err
	}
	t.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	t.Oflag &^= unix.OPOST
	t.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	t.Cflag = t.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	return unix.IoctlSetTermios(fd, unix.TCSETS, t)
}

// setSize sets a terminal's size without making the file blocking, as Fd would.
func setSize(f *os.File, size specs.Box) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = conn.Control(func(fd uintptr) {
		inner = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: uint16(size.Height), Col: uint16(size.Width)})
	})
	return errors.Join(err, inner)
}
