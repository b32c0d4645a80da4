package harness

import (
	"os"
	"strconv"
	"strings"
	"testing"
)

// Unbroken fails the test unless a container's log counts from 1 without a gap.
func Unbroken(tb testing.TB, log string) {
	tb.Helper()
	raw, err := os.ReadFile(log)
	if err != nil {
		tb.Fatal(err)
	}
	want := 1
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		if len(f) != 4 || f[3] != strconv.Itoa(want) {
			tb.Fatalf("line %d of %s is %q", want, log, line)
		}
		want++
	}
	if want < 10 {
		tb.Errorf("%s has %d lines", log, want-1)
	}
}
