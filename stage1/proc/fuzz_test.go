package proc

import (
	"fmt"
	"strings"
	"testing"
)

// FuzzStat holds that no command's name, which a container chooses, shifts the
// fields behind it, and that no text makes the parser panic.
func FuzzStat(f *testing.F) {
	for _, s := range []string{"cat", "a) R 1 (b", ")", "(", "\n", " ", "1 (x) S 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 5", "1 (x)"} {
		f.Add(s, 7, uint64(9))
	}
	f.Fuzz(func(t *testing.T, command string, parent int, start uint64) {
		if st, err := parseStat(command); err == nil && st.state == 0 {
			t.Errorf("no state in %q", command)
		}
		text := fmt.Sprintf("1 (%s) S %d %s %d 0 0\n", command, parent, strings.TrimSpace(strings.Repeat("1 ", 17)), start)
		if st, err := parseStat(text); err != nil || st != (stat{state: 'S', parent: parent, start: start}) {
			t.Errorf("%q is read as %+v, %v", text, st, err)
		}
	})
}
