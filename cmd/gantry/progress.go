package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0"
)

// progress tells on stderr where an image comes from, and on a terminal how far
// its download got. It is an observer of the pipeline.
type progress struct {
	w        io.Writer
	terminal bool

	mu      sync.Mutex // guards what follows
	image   string
	began   time.Time
	printed time.Time
	bytes   int64
}

// newProgress returns a progress that writes to w.
func newProgress(w io.Writer) *progress {
	p := &progress{w: w}
	if f, ok := w.(*os.File); ok {
		_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
		p.terminal = err == nil
	}
	return p
}

func (p *progress) begin(image string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.image, p.began, p.printed, p.bytes = image, time.Now(), time.Now(), 0
}

// end says where the image came from; an error is the caller's to print.
func (p *progress) end(pulled stage0.Pulled, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.terminal {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
	switch {
	case err != nil:
	case pulled.Fetched:
		fmt.Fprintf(p.w, "image: fetched %s: %s in %s\n", p.image, size(p.bytes), time.Since(p.began).Round(time.Millisecond))
	case pulled.Unavailable != nil:
		fmt.Fprintf(p.w, "image: using image from local store for %s: %v\n", p.image, pulled.Unavailable)
	default:
		fmt.Fprintf(p.w, "image: using image from local store for %s\n", p.image)
	}
}

// StageDone is part of stage0.Observer; the stages are the daemon's to measure.
func (p *progress) StageDone(stage0.Stage, time.Duration, error) {}

// BytesFetched is part of stage0.Observer.
func (p *progress) BytesFetched(n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.bytes += n
	if p.terminal && time.Since(p.printed) > 200*time.Millisecond {
		p.printed = time.Now()
		fmt.Fprintf(p.w, "\r\x1b[Kimage: fetching %s: %s", p.image, size(p.bytes))
	}
}
