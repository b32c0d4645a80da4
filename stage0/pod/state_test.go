package pod

import (
	"fmt"
	"os"
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
