// Command testreport reads what go test -json prints and tells what a person
// wants to know: a line a package, the output of what failed, and every test that
// skipped with its reason. It fails when a test failed, and, where CI is set, when
// a test skipped that the file of its argument does not name.
//
//	go test -json ./... | go run ./hack/testreport .ci/may-skip
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
)

// event is a line of go test -json (go doc test2json).
type event struct {
	Action, Package, Test, Output string
	Elapsed                       float64
}

type report struct {
	output                  map[string][]string // by package and test
	failed, skipped, passed []string
}

func main() {
	allowed, err := allowedSkips(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "testreport:", err)
		os.Exit(2)
	}
	r := report{output: map[string][]string{}}
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 16<<20)
	for in.Scan() {
		var e event
		if json.Unmarshal(in.Bytes(), &e) != nil {
			fmt.Println(in.Text()) // a build error
			continue
		}
		r.take(e)
	}
	fmt.Printf("%d passed, %d failed, %d skipped\n", len(r.passed), len(r.failed), len(r.skipped))
	if in.Err() != nil || len(r.failed) > 0 || !r.skipsAllowed(allowed) {
		os.Exit(1)
	}
}

// allowedSkips reads the names of tests that may skip, a line each, with # comments.
func allowedSkips(args []string) ([]string, error) {
	if len(args) != 1 {
		return nil, fmt.Errorf("want the file that names the tests that may skip, got %d arguments", len(args))
	}
	raw, err := os.ReadFile(args[0])
	if err != nil {
		return nil, err
	}
	var names []string
	for line := range strings.Lines(string(raw)) {
		name, _, _ := strings.Cut(line, "#")
		names = append(names, strings.TrimSpace(name))
	}
	return names, nil
}

func (r *report) take(e event) {
	key := e.Package + " " + e.Test
	switch e.Action {
	case "output", "build-output":
		r.output[key] = append(r.output[key], e.Output)
	case "build-fail", "fail":
		fmt.Printf("FAIL %s (%.1fs)\n%s", key, e.Elapsed, strings.Join(r.output[key], ""))
		r.failed = append(r.failed, key)
	case "skip":
		if e.Test != "" {
			fmt.Printf("SKIP %s\n%s", key, strings.Join(r.output[key], ""))
			r.skipped = append(r.skipped, key)
		}
	case "pass":
		if e.Test == "" {
			fmt.Printf("ok %s (%.1fs)\n", e.Package, e.Elapsed)
			return
		}
		r.passed = append(r.passed, key)
		delete(r.output, key)
	}
}

// skipsAllowed lets everything skip on a developer's machine.
func (r *report) skipsAllowed(allowed []string) bool {
	if os.Getenv("CI") == "" {
		return true
	}
	fine := true
	for _, s := range r.skipped {
		_, test, _ := strings.Cut(s, " ")
		if !slices.Contains(allowed, test) {
			fmt.Printf("FAIL %s skipped, and .ci/may-skip does not name it\n", s)
			fine = false
		}
	}
	return fine
}
