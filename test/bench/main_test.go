package bench

import (
	"flag"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/gantry-cri/gantry/test/bench/result"
)

var (
	rounds = flag.Int("rounds", 5, "how often each program runs in each case")
	out    = flag.String("out", "", "`FILE` for the results; none unless set")
)

// recorded is what was measured so far.
var recorded result.File

func TestMain(m *testing.M) {
	flag.Parse()
	code := m.Run()
	if *out != "" && len(recorded.Samples) > 0 {
		if err := keep(); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// keep writes what was measured to the file that -out names.
func keep() error {
	var err error
	recorded.Date = time.Now().UTC().Format(time.RFC3339)
	if recorded.Machine, err = machine(); err != nil {
		return err
	}
	if recorded.Commit, err = commit(); err != nil {
		return err
	}
	return recorded.Write(*out)
}

// record keeps a sample and tells of it.
func record(s result.Sample) {
	recorded.Samples = append(recorded.Samples, s)
	if l := s.Limit; l != nil {
		fmt.Printf("%s #%d limit: %+v\n", s.Case, s.Round, *l)
		return
	}
	fmt.Printf("%s #%d %s: %.3f s", s.Case, s.Round, s.Who, s.Seconds)
	if s.Synced > 0 {
		fmt.Printf(", synced %.3f s, CPU %.2f s, peak %d MB (before %d)", s.Synced, s.CPU, s.Peak/1e6, s.Idle/1e6)
	}
	fmt.Println()
}
