package main

import (
	"bytes"
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/gantry-cri/gantry/test/bench/result"
)

var update = flag.Bool("update", false, "write what is expected")

// TestPage holds the page of made-up results to the one in testdata: one goal met, one
// missed with a note, one without, one not measured.
func TestPage(t *testing.T) {
	var got bytes.Buffer
	if err := run([]string{"testdata/results.json", "testdata/notes"}, &got); err != nil {
		t.Fatal(err)
	}
	checkFile(t, "testdata/benchmarks.md", got.Bytes())
}

// TestCommitted holds docs/benchmarks.md to its results.
func TestCommitted(t *testing.T) {
	const dir = "../../../docs/"
	if _, err := os.Stat(dir + "benchmarks/results.json"); err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if err := run([]string{dir + "benchmarks/results.json", dir + "benchmarks"}, &got); err != nil {
		t.Fatal(err)
	}
	checkFile(t, dir+"benchmarks.md", got.Bytes())
}

func checkFile(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is not what the results say (go test ./bench/report -update):\n%s", path, got)
	}
}

func TestSpread(t *testing.T) {
	of := func(values ...float64) spread {
		var samples []result.Sample
		for _, v := range values {
			samples = append(samples, result.Sample{Seconds: v})
		}
		return spreadOf(samples, seconds)
	}
	if got, want := of(3, 1, 2), (spread{3, 2, 1, 3}); got != want {
		t.Errorf("spread of three is %+v, want %+v", got, want)
	}
	if got, want := of(4, 1, 2, 3), (spread{4, 2.5, 1, 4}); got != want {
		t.Errorf("spread of four is %+v, want %+v", got, want)
	}
	if got := of(); got.n != 0 || got.String() != "-" {
		t.Errorf("spread of nothing is %+v, %q", got, got)
	}
}

// TestGoals holds each goal to what is measured just at it and just above.
func TestGoals(t *testing.T) {
	sample := func(name, who string, s float64) result.Sample {
		return result.Sample{Case: name, Who: who, Seconds: s / 2, Synced: s}
	}
	limit := result.Limit{Send: 0.1, Receive: 0.1, HashBlob: 0.2, Decompress: 0.4, HashTar: 0.2, Write: 0.6, WriteBack: 0.4, Disk: 1.5}
	f := &result.File{Machine: result.Machine{Cores: 2}, Samples: []result.Sample{
		sample("pull-gzip", "gantry", 1.95), sample("pull-gzip", "containerd", 3.9),
		{Case: "pull-gzip", Who: "limit", Limit: &limit},
		sample("prepare-warm", "gantry", 0.032),
		{Case: "callers", Who: "gantry", Peak: 90e6, Idle: 20e6}, {Case: "callers", Who: "containerd", Peak: 900e6},
	}}
	for name, want := range map[string]float64{"pull-gzip-containerd": 0.5, "pull-gzip-limit": 1.3, "prepare-warm": 16, "memory": 70} {
		if got, ok := measured(t, f, name); !ok || got < want-1e-9 || got > want+1e-9 {
			t.Errorf("%s is %v, %v; want %v", name, got, ok, want)
		}
	}
	if _, ok := measured(t, f, "copy"); ok {
		t.Error("copy was not measured")
	}
	limit.Disk = 0.1
	if got, _ := measured(t, f, "pull-gzip-limit"); got < 1.949 || got > 1.951 {
		t.Errorf("beside a limit of CPU, the ratio is %v, want 1.95", got)
	}
}

func measured(t *testing.T, f *result.File, name string) (float64, bool) {
	t.Helper()
	for _, g := range goals {
		if g.name == name {
			return g.measure(f)
		}
	}
	t.Fatalf("no goal %s", name)
	return 0, false
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{nil, {"a", "b", "c"}, {"testdata/none.json"}} {
		var out strings.Builder
		if err := run(args, &out); err == nil || out.Len() > 0 {
			t.Errorf("%q: err %v, printed %q", args, err, out.String())
		}
	}
}
