package main

import (
	"io"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/gantry-cri/gantry/stage0"
)

// barWidth is that of a bar, in cells.
const barWidth = 40

// bars are a bar for each layer in flight, on a terminal. They go away as the
// layers end.
type bars struct {
	all   *mpb.Progress
	layer map[digest.Digest]*mpb.Bar
}

func newBars(w io.Writer) *bars {
	return &bars{all: mpb.New(mpb.WithOutput(w), mpb.WithWidth(barWidth)), layer: map[digest.Digest]*mpb.Bar{}}
}

func (b *bars) show(l stage0.LayerProgress) {
	bar := b.layer[l.Layer]
	switch l.State {
	case stage0.LayerFetching:
		if bar == nil {
			bar = b.all.AddBar(max(1, l.Size), mpb.BarRemoveOnComplete(),
				mpb.PrependDecorators(decor.Name("layer "+short(l.Layer)+" ")),
				mpb.AppendDecorators(decor.CountersKiloByte("% .1f of % .1f"), decor.AverageSpeed(decor.SizeB1000(0), " % .1f")))
			b.layer[l.Layer] = bar
		}
		bar.SetCurrent(l.Done)
	case stage0.LayerDone, stage0.LayerFailed:
		if bar != nil {
			bar.Abort(true)
		}
	case stage0.LayerPresent, stage0.LayerWaiting:
	}
}

// close takes the bars from the screen.
func (b *bars) close() {
	for _, bar := range b.layer {
		bar.Abort(true)
	}
	b.all.Wait()
}

// short is what people know a digest by.
func short(d digest.Digest) string {
	_, hex, _ := strings.Cut(string(d), ":")
	return hex[:min(len(hex), 12)]
}
