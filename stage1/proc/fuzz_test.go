package proc

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
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

// FuzzPIDFile holds that a pid file is one number above 0 that the kernel could have
// given, or an error of bounded length.
func FuzzPIDFile(f *testing.F) {
	for _, s := range []string{"1", "4194304\n", "0", "-1", "", " 7 ", "4294967297", "0x10", "1_0", "+5", "12 13", "9223372036854775808", strings.Repeat("0", 400) + "1", strings.Repeat("\xff", 5000)} {
		f.Add([]byte(s))
	}
	path := filepath.Join(f.TempDir(), "pid")
	f.Fuzz(func(t *testing.T, text []byte) {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		want, bad := strconv.Atoi(strings.TrimSpace(string(text)))
		pid, err := ReadPIDFile(path)
		if (err == nil) != (bad == nil && want > 0 && want <= math.MaxInt32) || err == nil && pid != want {
			t.Errorf("%q is pid %d, %v", text, pid, err)
		}
		if err != nil && len(err.Error()) > 1000 {
			t.Errorf("an error of %d bytes", len(err.Error()))
		}
	})
}
