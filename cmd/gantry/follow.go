package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/gantry-cri/gantry/stage0/pod"
)

// output is where the apps' output goes.
type output struct{ stdout, stderr io.Writer }

// follower prints the text of a log in the CRI format, "TIME STREAM TAG TEXT" a
// line, as it grows.
type follower struct {
	path string
	out  output

	file *os.File
	in   *bufio.Reader
	rest []byte // the beginning of a line whose end is not written yet
}

// until prints until the app has ended and its log is read to the end, and
// returns its exit code.
func (f *follower) until(exits <-chan pod.Exit) (code int32, err error) {
	defer func() { err = errors.Join(err, f.close()) }()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case exit, ok := <-exits:
			if !ok {
				return 0, fmt.Errorf("the exit code of %s was lost", f.path)
			}
			return exit.Code, f.copy()
		case <-tick.C:
			if err := f.copy(); err != nil {
				return 0, err
			}
		}
	}
}

func (f *follower) close() error {
	if f.file == nil {
		return nil
	}
	return f.file.Close()
}

// copy prints what was written since the last time.
func (f *follower) copy() error {
	if f.file == nil {
		file, err := os.Open(f.path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // nothing was said yet
		}
		if err != nil {
			return fmt.Errorf("read log: %w", err)
		}
		f.file, f.in = file, bufio.NewReader(file)
	}
	for {
		part, err := f.in.ReadBytes('\n')
		f.rest = append(f.rest, part...)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read log: %w", err)
		}
		if err := f.print(f.rest); err != nil {
			return err
		}
		f.rest = f.rest[:0]
	}
}

// print writes the text of a line to its stream. A tag of P says that the line
// of the app goes on in the next one.
func (f *follower) print(line []byte) error {
	fields := bytes.SplitN(line, []byte(" "), 4)
	if len(fields) != 4 {
		return fmt.Errorf("%s is not a log in the CRI format: %.80q", f.path, line)
	}
	w, text := f.out.stdout, fields[3]
	if string(fields[1]) == "stderr" {
		w = f.out.stderr
	}
	if string(fields[2]) == "P" {
		text = bytes.TrimSuffix(text, []byte("\n"))
	}
	_, err := w.Write(text)
	return err
}
