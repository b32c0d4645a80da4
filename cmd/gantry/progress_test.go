package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"

	"github.com/gantry-cri/gantry/stage0"
)

// fetchTwo plays a fetch of two layers and a failed one.
func fetchTwo(p *progress) {
	p.begin("a.test/b:1")
	p.BytesFetched(100)
	one := stage0.LayerProgress{Image: "a.test/b:1", Layer: "sha256:1111111111111111", State: stage0.LayerFetching, Size: 3000}
	two := stage0.LayerProgress{Image: "a.test/b:1", Layer: "sha256:2222222222222222", State: stage0.LayerWaiting, Size: 500}
	p.LayerProgress(one)
	p.LayerProgress(two)
	for range 3 {
		p.BytesFetched(1000)
		one.Done += 1000
		p.LayerProgress(one)
	}
	one.State, two.State = stage0.LayerDone, stage0.LayerPresent
	p.LayerProgress(one)
	p.LayerProgress(two)
	p.note("prepare: a note")
	p.end(stage0.Pulled{Fetched: true}, nil)
	p.begin("a.test/c:1")
	p.end(stage0.Pulled{}, errors.New("no"))
}

func TestProgressPlain(t *testing.T) {
	var out bytes.Buffer
	p := newProgress(&out, progressAuto)
	fetchTwo(p)
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 2 || lines[0] != "prepare: a note" || !strings.HasPrefix(lines[1], "image: fetched a.test/b:1: 3.1 kB in ") {
		t.Errorf("it says %q", lines)
	}
	out.Reset()
	p.begin("a.test/b:1")
	p.printed = time.Now().Add(-plainPeriod)
	p.LayerProgress(stage0.LayerProgress{Layer: "sha256:1", State: stage0.LayerFetching, Done: 1000, Size: 3000})
	p.LayerProgress(stage0.LayerProgress{Layer: "sha256:2", State: stage0.LayerPresent, Size: 500})
	if got, want := out.String(), "image: fetching a.test/b:1: 0 of 1 layers, 1.0 kB of 3.0 kB\n"; got != want {
		t.Errorf("after a while it says %q, want %q", got, want)
	}
}

func TestProgressJSON(t *testing.T) {
	var out bytes.Buffer
	fetchTwo(newProgress(&out, progressJSON))
	var states []string
	for d := json.NewDecoder(&out); ; {
		var line struct {
			Image, Layer, State, Note, Because string
			Done, Size, Bytes                  int64
			Time                               time.Time
		}
		if err := d.Decode(&line); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if line.Time.IsZero() || (line.State == "fetched" && line.Bytes != 3100) || (line.State == "done" && line.Done != 3000) {
			t.Errorf("a line has %+v", line)
		}
		states = append(states, line.State+line.Note+line.Because)
	}
	if got, want := strings.Join(states, " "), "fetching waiting done present prepare: a note fetched failedno"; got != want {
		t.Errorf("it says %s, want %s", got, want)
	}
}

func TestProgressNone(t *testing.T) {
	var out bytes.Buffer
	if fetchTwo(newProgress(&out, progressNone)); out.Len() != 0 {
		t.Errorf("it says %q", out.String())
	}
}

// On a terminal there is a bar for a layer in flight, and none after it.
func TestProgressBars(t *testing.T) {
	master, terminal, err := pty.Open()
	if err != nil {
		t.Skipf("no pseudo-terminal: %v", err)
	}
	defer master.Close()
	if err := pty.Setsize(terminal, &pty.Winsize{Rows: 24, Cols: 100}); err != nil {
		t.Fatal(err)
	}
	said := make(chan string, 1)
	go func() {
		var all strings.Builder
		for r := bufio.NewReader(master); ; {
			line, err := r.ReadString('\n')
			all.WriteString(line)
			if err != nil || strings.Contains(line, "image: fetched") {
				said <- all.String()
				return
			}
		}
	}()
	p := newProgress(terminal, progressAuto)
	p.begin("a.test/b:1")
	l := stage0.LayerProgress{Layer: "sha256:1111111111111111", State: stage0.LayerFetching, Size: 3000}
	p.LayerProgress(l)
	for l.Done = 0; l.Done < 3000; l.Done += 500 {
		p.LayerProgress(l)
		<-time.After(100 * time.Millisecond)
	}
	l.State = stage0.LayerDone
	p.LayerProgress(l)
	p.end(stage0.Pulled{Fetched: true}, nil)
	if err := terminal.Close(); err != nil {
		t.Error(err)
	}
	got := <-said
	if !strings.Contains(got, "layer 111111111111") || !strings.Contains(got, "of 3.0 KB") {
		t.Errorf("no bar in %q", got)
	}
	if last := got[strings.LastIndex(got[:strings.LastIndex(got, "image: fetched")], "\n")+1:]; strings.Contains(last, "layer") {
		t.Errorf("a bar is left in %q", last)
	}
}
