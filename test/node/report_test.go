//go:build node

package node

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// event is a line of go test -json (go doc test2json).
type event struct {
	Action, Test, Output string
	Elapsed              float64
}

// result is what became of one test or subtest of a suite.
type result struct {
	action  string
	elapsed float64
	output  strings.Builder
}

var suiteText = regexp.MustCompile(`(?s)=== suite (\S+)\n(.*?)(?:\n=== end of suite \S+: (\d+) after (\d+) s\n|$)`)

// killCount is what the contract suite says of itself.
var killCount = regexp.MustCompile(`\d+ kills.*`)

// report shows the suites that a payload ran as tests of this process.
func report(t *testing.T, out []byte) {
	t.Helper()
	for _, m := range suiteText.FindAllSubmatch(out, -1) {
		t.Run(string(m[1]), func(t *testing.T) {
			counts := reportSuite(t, m[2])
			if status := string(m[3]); counts["fail"] == 0 && status != "0" {
				t.Errorf("the suite ended with status %q:\n%s", status, tail(m[2]))
			}
			figure(t, fmt.Sprintf("%-24s %3d passed, %d failed, %d skipped, %s s in the node",
				strings.SplitN(t.Name(), "/", 3)[2], counts["pass"], counts["fail"], counts["skip"], m[4]))
		})
	}
}

// figure adds a line to the file of figures, which hack/test-node shows.
func figure(t *testing.T, line string) {
	t.Helper()
	t.Log(line)
	if *figures == "" {
		return
	}
	f, err := os.OpenFile(*figures, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	_, err = fmt.Fprintln(f, line)
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// reportSuite shows the tests and subtests of one suite and counts how they ended.
func reportSuite(t *testing.T, text []byte) map[string]int {
	t.Helper()
	cmd := exec.Command("go", "tool", "test2json", "-t") // without -t it tells no times
	cmd.Stdin = bytes.NewReader(text)
	lines, err := cmd.Output()
	if err != nil {
		t.Fatalf("test2json: %v", err)
	}
	results, order := map[string]*result{}, []string{}
	for line := range bytes.Lines(lines) {
		var e event
		if json.Unmarshal(line, &e) != nil || e.Test == "" {
			continue
		}
		r := results[e.Test]
		if r == nil {
			r = &result{action: "fail"} // until it ends otherwise
			results[e.Test], order = r, append(order, e.Test)
		}
		r.output.WriteString(e.Output)
		if e.Action == "pass" || e.Action == "fail" || e.Action == "skip" {
			r.action, r.elapsed = e.Action, e.Elapsed
		}
	}
	counts := map[string]int{}
	for _, name := range order {
		counts[results[name].action]++
		t.Run(name, func(t *testing.T) {
			reportTest(t, results[name])
			for _, kills := range killCount.FindAllString(results[name].output.String(), -1) {
				figure(t, fmt.Sprintf("%s: %s", name, kills))
			}
		})
	}
	return counts
}

func reportTest(t *testing.T, r *result) {
	t.Helper()
	switch r.action {
	case "skip":
		t.Skip(r.output.String())
	case "fail":
		t.Errorf("in the node, after %.1f s:\n%s", r.elapsed, r.output.String())
	default:
		t.Logf("%.1f s in the node\n%s", r.elapsed, r.output.String())
	}
}
