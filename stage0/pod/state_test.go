package pod

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestTableIsDocumented keeps docs/pod-lifecycle.md and the code equal, and has each row name
// a test that there is.
func TestTableIsDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../docs/pod-lifecycle.md")
	if err != nil {
		t.Fatal(err)
	}
	_, after, ok := strings.Cut(string(doc), "| --- | --- | --- | --- | --- | --- | --- | --- |\n")
	if !ok {
		t.Fatal("docs/pod-lifecycle.md has no table of eight columns")
	}
	tests, err := os.ReadFile("../../test/contract/rows_test.go")
	if err != nil {
		t.Fatal(err)
	}
	table, _, _ := strings.Cut(after, "\n\n")
	rows := strings.Split(table, "\n")
	if len(rows) != len(Table) {
		t.Fatalf("docs/pod-lifecycle.md has %d rows, the code %d", len(rows), len(Table))
	}
	for i, r := range Table {
		test, ok := strings.CutPrefix(rows[i], documented(r)+" ")
		if !ok {
			t.Errorf("row %d of docs/pod-lifecycle.md is\n%s want\n%s", i+1, rows[i], documented(r))
			continue
		}
		if name := strings.TrimSuffix(test, " |"); !strings.Contains(string(tests), fmt.Sprintf("{%q, row", name)) {
			t.Errorf("row %d of docs/pod-lifecycle.md names the test %q, which is none of TestRows", i+1, name)
		}
	}
}

// TestTransitionsAreDocumented does the same with the table of transitions.
func TestTransitionsAreDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../docs/pod-lifecycle.md")
	if err != nil {
		t.Fatal(err)
	}
	_, after, ok := strings.Cut(string(doc), "| from | to | of | when | test |\n| --- | --- | --- | --- | --- |\n")
	if !ok {
		t.Fatal("docs/pod-lifecycle.md has no table of transitions")
	}
	table, _, _ := strings.Cut(after, "\n\n")
	rows := strings.Split(table, "\n")
	if len(rows) != len(Transitions) {
		t.Fatalf("docs/pod-lifecycle.md has %d transitions, the code %d", len(rows), len(Transitions))
	}
	for i, tr := range Transitions {
		of := "-"
		if tr.Sandbox {
			of = "sandbox"
		}
		want := fmt.Sprintf("| %s | %s | %s |", end(tr.From, tr.FromPhase), end(tr.To, tr.ToPhase), of)
		rest, ok := strings.CutPrefix(rows[i], want+" ")
		if !ok {
			t.Errorf("transition %d of docs/pod-lifecycle.md is\n%s want\n%s", i+1, rows[i], want)
			continue
		}
		if _, test, _ := strings.Cut(strings.TrimSuffix(rest, " |"), " | "); !isContractTest(t, test) {
			t.Errorf("transition %d of docs/pod-lifecycle.md names the test %q, which test/contract has not", i+1, test)
		}
	}
}

// end is how a table spells one end of a transition.
func end(place Place, phase Phase) string {
	switch {
	case place == Nowhere:
		return "-"
	case phase != "":
		return string(place) + ", " + string(phase)
	}
	return string(place)
}

// isContractTest says whether test/contract has a test, and in its file a table whose
// row has the subtest's name.
func isContractTest(t *testing.T, name string) bool {
	t.Helper()
	files, err := filepath.Glob("../../test/contract/*_test.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("test/contract has %v, %v", files, err)
	}
	test, sub, hasSub := strings.Cut(name, "/")
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(raw), "\nfunc "+test+"(t *testing.T)") {
			return !hasSub || strings.Contains(string(raw), fmt.Sprintf("{%q, ", sub))
		}
	}
	return false
}

// TestTransitionsReachTheTable holds that transitions lead to every state of the table, in the
// order in which they stand, and away from it.
func TestTransitionsReachTheTable(t *testing.T) {
	reached := map[string]bool{}
	for _, tr := range Transitions {
		from, to := end(tr.From, tr.FromPhase), end(tr.To, tr.ToPhase)
		if tr.From != Nowhere && !reached[from] {
			t.Errorf("%s leads to %s, and nothing before it to %s", from, to, from)
		}
		reached[to] = true
	}
	for _, r := range Table {
		phase := Phase("")
		if r.Place == InRun {
			phase = r.Phase
		}
		if !reached[end(r.Place, phase)] {
			t.Errorf("no transition leads to %+v", r)
		}
		if !slices.ContainsFunc(Transitions[:], func(tr Transition) bool { return tr.From == r.Place && tr.FromPhase == phase }) {
			t.Errorf("no transition leads away from %+v", r)
		}
	}
}

func documented(r Row) string {
	place, of := string(r.Place), "app"
	if r.Place == Nowhere {
		place = "-"
	}
	if r.Sandbox {
		of = "sandbox"
	}
	answers := map[Answer]string{Dash: "-", Yes: "yes", No: "no"}
	lives := map[Life]string{Either: "-", Alive: "alive", Gone: "gone"}
	return fmt.Sprintf("| %s | %s | %s | %s | %s | %s | %s |",
		place, of, answers[r.Recorded], answers[r.Started], lives[r.Init], lives[r.Monitor], r.Phase)
}

// TestTableIsComplete looks every combination of facts up: a gap would make a pod
// vanish from the lists, and the kubelet would start it again.
func TestTableIsComplete(t *testing.T) {
	for _, place := range append([]Place{Nowhere}, Places[:]...) {
		for _, sandbox := range []bool{false, true} {
			for _, f := range combinations(place, sandbox) {
				fits := 0
				for _, r := range Table {
					if r.fits(f) {
						fits++
					}
				}
				if fits != 1 {
					t.Errorf("%d rows fit %+v, want 1", fits, f)
				}
			}
		}
	}
}

func combinations(place Place, sandbox bool) []Row {
	var all []Row
	for _, recorded := range []Answer{Yes, No} {
		for _, started := range []Answer{Yes, No} {
			for _, init := range []Life{Alive, Gone} {
				for _, monitor := range []Life{Alive, Gone} {
					all = append(all, Row{place, sandbox, recorded, started, init, monitor, Unlisted})
				}
			}
		}
	}
	return all
}
