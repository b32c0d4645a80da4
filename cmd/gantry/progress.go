package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0"
)

// progressMode is the --progress flag: how stderr tells of fetches.
type progressMode string

const (
	progressAuto  progressMode = "auto"  // bars on a terminal, else plain
	progressPlain progressMode = "plain" // a line for each image, and one every few seconds before it
	progressJSON  progressMode = "json"  // a line of JSON for each piece of news
	progressNone  progressMode = "none"
)

func (m *progressMode) register(flags *pflag.FlagSet) {
	*m = progressAuto
	flags.Func("progress", "how stderr tells of fetches: `MODE` is auto, plain, json or none (default auto)", func(s string) error {
		switch *m = progressMode(s); *m {
		case progressAuto, progressPlain, progressJSON, progressNone:
			return nil
		}
		return fmt.Errorf("want auto, plain, json or none")
	})
}

const (
	// plainPeriod is the pause between two lines about one image.
	plainPeriod = 5 * time.Second
	// newsPeriod is the least pause between two lines of JSON about one layer.
	newsPeriod = 200 * time.Millisecond
)

// progress tells on stderr where an image comes from and how far its download
// got. It is an observer of the pipeline.
type progress struct {
	w    io.Writer
	mode progressMode
	show bool // bars

	mu      sync.Mutex // guards what follows
	image   string
	began   time.Time
	printed time.Time
	bytes   int64
	layers  map[digest.Digest]*layerNews
	bars    *bars
}

// layerNews is the last that was heard of a layer.
type layerNews struct {
	stage0.LayerProgress
	printed time.Time
}

// newProgress returns a progress that writes to w.
func newProgress(w io.Writer, mode progressMode) *progress {
	p := &progress{w: w, mode: mode}
	if f, ok := w.(*os.File); ok && mode == progressAuto {
		_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
		p.show = err == nil
	}
	return p
}

func (p *progress) begin(image string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.image, p.began, p.printed, p.bytes = image, time.Now(), time.Now(), 0
	p.layers = map[digest.Digest]*layerNews{}
	if p.show {
		p.bars = newBars(p.w)
	}
}

// imageNews is the line of JSON about an image as a whole. Programs outside read
// it, and stage0.LayerProgress: fields may be added, never renamed.
type imageNews struct {
	Time    time.Time `json:"time"`
	Image   string    `json:"image"`
	State   string    `json:"state"` // fetched, stored or failed
	ID      string    `json:"id,omitempty"`
	Bytes   int64     `json:"bytes"`
	Took    float64   `json:"seconds"`
	Because string    `json:"because,omitempty"` // the store's is used, or it failed
}

// end says where the image came from; an error is the caller's to print.
func (p *progress) end(pulled stage0.Pulled, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bars != nil {
		p.bars.close()
		p.bars = nil
	}
	if p.mode == progressJSON {
		p.json(p.newsOf(pulled, err))
		return
	}
	if p.mode == progressNone {
		return
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

func (p *progress) newsOf(pulled stage0.Pulled, err error) imageNews {
	n := imageNews{Time: time.Now(), Image: p.image, State: "stored", ID: string(pulled.Image.ID), Bytes: p.bytes, Took: time.Since(p.began).Seconds()}
	switch {
	case err != nil:
		n.State, n.Because = "failed", err.Error()
	case pulled.Fetched:
		n.State = "fetched"
	case pulled.Unavailable != nil:
		n.Because = pulled.Unavailable.Error()
	}
	return n
}

// note tells of something that is not an error.
func (p *progress) note(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch p.mode {
	case progressNone:
	case progressJSON:
		p.json(struct {
			Time time.Time `json:"time"`
			Note string    `json:"note"`
		}{time.Now(), text})
	default:
		fmt.Fprintln(p.w, text)
	}
}

func (p *progress) json(v any) {
	_ = json.NewEncoder(p.w).Encode(v) // a stderr that nobody reads is no reason to stop
}

// StageDone is part of stage0.Observer; the stages are the daemon's to measure.
func (p *progress) StageDone(stage0.Stage, time.Duration, error) {}

// SpoolLost is part of stage0.Observer.
func (p *progress) SpoolLost(layer digest.Digest, reason error) {
	p.note(fmt.Sprintf("image: what was kept of layer %s is dropped: %v", layer, reason))
}

// OverlayDisabled is part of stage0.Observer. The words are those of rkt prepare.
func (p *progress) OverlayDisabled(reason string) {
	p.note(fmt.Sprintf("prepare: disabling overlay support: %q", reason))
}

// BytesFetched is part of stage0.Observer.
func (p *progress) BytesFetched(n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.bytes += n
}

// LayerProgress is part of stage0.Observer.
func (p *progress) LayerProgress(l stage0.LayerProgress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	known := p.layers[l.Layer]
	if known == nil {
		known = &layerNews{}
		p.layers[l.Layer] = known
	}
	changed := known.State != l.State
	known.LayerProgress = l
	now := time.Now()
	switch {
	case p.bars != nil:
		p.bars.show(l)
	case p.mode == progressJSON:
		if changed || now.Sub(known.printed) >= newsPeriod {
			known.printed = now
			p.json(struct {
				Time time.Time `json:"time"`
				stage0.LayerProgress
			}{now, l})
		}
	case p.mode != progressNone && now.Sub(p.printed) >= plainPeriod:
		p.printed = now
		fmt.Fprintln(p.w, p.plain())
	}
}

// plain says how far the image is.
func (p *progress) plain() string {
	var done, all int64
	ready := 0
	for _, l := range p.layers {
		all += l.Size
		switch l.State {
		case stage0.LayerPresent, stage0.LayerDone:
			done += l.Size
			ready++
		default:
			done += l.Done
		}
	}
	return fmt.Sprintf("image: fetching %s: %d of %d layers, %s of %s", p.image, ready, len(p.layers), size(done), size(all))
}
