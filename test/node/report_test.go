//go:build node

package node

import (
	"bytes"
	"encoding/json"
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

// result is what became of one test at the top of a suite.
type result struct {
	action  string
	elapsed float64
	output  strings.Builder
}

var suiteText = regexp.MustCompile(`(?s)=== suite (\S+)\n(.*?)(?:\n=== end of suite \S+: (\d+)\n|$)`)

// report shows the suites that a payload ran as tests of this process.
func report(t *testing.T, out []byte) {
	t.Helper()
	for _, m := range suiteText.FindAllSubmatch(out, -1) {
		t.Run(string(m[1]), func(t *testing.T) {
			ok := reportSuite(t, m[2])
			if status := string(m[3]); ok && status != "0" {
				t.Errorf("the suite ended with status %q:\n%s", status, tail(m[2]))
			}
		})
	}
}

// reportSuite shows the tests of one suite and reports whether none failed.
func reportSuite(t *testing.T, text []byte) bool {
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
		name, below, _ := strings.Cut(e.Test, "/")
		r := results[name]
		if r == nil {
			r = &result{action: "fail"} // until it ends otherwise
			results[name], order = r, append(order, name)
		}
		r.output.WriteString(e.Output)
		if below == "" && (e.Action == "pass" || e.Action == "fail" || e.Action == "skip") {
			r.action, r.elapsed = e.Action, e.Elapsed
		}
	}
	ok := true
	for _, name := range order {
		r := results[name]
		ok = t.Run(name, func(t *testing.T) {
			switch r.action {
			case "skip":
				t.Skip(r.output.String())
			case "fail":
				t.Errorf("in the node, after %.1f s:\n%s", r.elapsed, r.output.String())
			default:
				t.Logf("%.1f s in the node", r.elapsed)
			}
		}) && ok
	}
	return ok
}
