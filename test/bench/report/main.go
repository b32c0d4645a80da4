// Command report computes medians, spreads and ratios from the results that the
// benchmarks keep, holds them against the goals, and prints what docs/benchmarks.md
// has: it is made by no other hand.
//
//	report results.json [NOTES] >docs/benchmarks.md
//
// NOTES is a directory of what people found out about a goal that is missed: the file
// GOAL.md is shown with the goal of that name.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/gantry-cri/gantry/test/bench/result"
)

func main() {
	err := run(os.Args[1:], os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
		os.Exit(1)
	}
}

func run(args []string, w io.Writer) error {
	if len(args) != 1 && len(args) != 2 {
		return errors.New("want the file of results and, at most, the directory of notes")
	}
	f, err := result.Read(args[0])
	if err != nil {
		return err
	}
	note := func(string) (string, error) { return "", nil }
	if len(args) == 2 {
		note = notes(args[1])
	}
	var page bytes.Buffer
	if err := write(&page, f, note); err != nil {
		return err
	}
	_, err = w.Write(page.Bytes())
	return err
}

// notes returns what reads the note of a goal; "": there is none.
func notes(dir string) func(goal string) (string, error) {
	return func(goal string) (string, error) {
		data, err := os.ReadFile(filepath.Join(dir, goal+".md"))
		if errors.Is(err, fs.ErrNotExist) {
			return "", nil
		}
		return string(bytes.TrimSpace(data)), err
	}
}
