package main

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/gantry-cri/gantry/test/bench/result"
)

// section is one case on the page.
type section struct{ name, title, text string }

// sections are the cases in the page's order.
var sections = []section{
	{"pull-gzip", "Cold pull, gzip", "500 MB in 20,000 files and 6 layers, over CRI; podman by its command. `containerd` decompresses by itself, `containerd-igzip` by the `igzip` that it finds in PATH."},
	{"pull-zstd", "Cold pull, zstd", "The same files, compressed as by `zstd -3`."},
	{"callers", "20 callers pulling one image", "The gzip image; until the last caller has its answer."},
	{"prepare-cold", "Cold prepare, a whole process", "`gantry prepare` of the gzip image into an empty store; `podman create`."},
	{"prepare-warm", "Warm prepare, a whole process", "`gantry prepare`, `ctr containers create`, `podman create` of an image that is there."},
	{"aci", "ACI of 494 MB", "18,000 files, not compressed: `gantry prepare` of the file beside `tar -x`, which checks nothing."},
	{"aci-gzip", "The same ACI, gzip -6", ""},
	{"prepare-warm-aci", "Warm prepare of that ACI", "By its file's path."},
	{"copy", "Copy fallback", "`gantry prepare --no-overlay` of that ACI beside `cp -a` of its tree, on one file system."},
	{"verify", "Proving an image on disk", "`gantry image verify` of the gzip image."},
	{"pod-start", "Pod start", "Sandbox with CNI bridge, create, start, over CRI; containerd with runc (it refuses Debian's crun), Gantry with the runtime that it chooses by itself."},
	{"pod-stop", "Pod stop", "Stop and remove of it."},
}

// write makes the page.
func write(w *bytes.Buffer, f *result.File, note func(string) (string, error)) error {
	fmt.Fprintf(w, "# Benchmarks\n\n<!-- Made by test/bench/report from benchmarks/results.json: make bench. -->\n\n")
	fmt.Fprintf(w, "Commit %s, %s, on %d cores (%s) with %.0f GB, Linux %s, loop devices with direct I/O on %s.\n\n",
		f.Commit, f.Date, f.Machine.Cores, f.Machine.CPU, float64(f.Machine.Memory)/1e9, f.Machine.Kernel, f.Machine.Filesystem)
	w.WriteString("Medians, with minimum and maximum in brackets. Each round of each program is on a fresh ext4 of its own, the\n" +
		"programs take turns, and what is read lies in the page cache. *Synced* has `sync -f` of that file system inside\n" +
		"the time; goals and ratios are of it, where something is written. Gantry syncs by itself before it says that an\n" +
		"image is there; the others do not. Peaks are of resident memory, the most of all rounds; *above idle* is what a\n" +
		"daemon had more than before, and all of a command. Images come from one local docker-registry, whose CPU is not\n" +
		"a program's.\n\n")
	if n := rounds(f); n < enough {
		fmt.Fprintf(w, "**Preliminary: a case was measured in %d rounds, and %d are wanted.**\n\n", n, enough)
	}
	if err := writeGoals(w, f, note); err != nil {
		return err
	}
	for _, s := range sections {
		writeSection(w, f, s)
	}
	writeLimit(w, f)
	w.WriteString("\n## Versions\n\n")
	for _, name := range slices.Sorted(maps.Keys(f.Versions)) {
		fmt.Fprintf(w, "- %s: %s\n", name, f.Versions[name])
	}
	return nil
}

// enough is how many rounds of a case are to be told of.
const enough = 5

// rounds is how often the program that ran least in any case was measured.
func rounds(f *result.File) int {
	counts := map[[2]string]int{}
	for _, s := range f.Samples {
		counts[[2]string{s.Case, s.Who}]++
	}
	least := len(f.Samples)
	for _, n := range counts {
		least = min(least, n)
	}
	return least
}

func writeGoals(w *bytes.Buffer, f *result.File, note func(string) (string, error)) error {
	w.WriteString("## Goals\n\n| goal | at most | measured | |\n| --- | --- | --- | --- |\n")
	var missed []goal
	for _, g := range goals {
		value, ok := g.measure(f)
		measured, verdict := g.show(value), "met"
		switch {
		case !ok:
			measured, verdict = "-", "not measured"
		case value > g.most:
			verdict = "**missed**"
			missed = append(missed, g)
		}
		fmt.Fprintf(w, "| %s | %s | %s | %s |\n", g.text, g.show(g.most), measured, verdict)
	}
	for _, g := range missed {
		text, err := note(g.name)
		if err != nil {
			return fmt.Errorf("note of %s: %w", g.name, err)
		}
		if text == "" {
			text = "Nobody has looked into it yet."
		}
		fmt.Fprintf(w, "\n### Missed: %s\n\n%s\n", g.text, text)
	}
	return nil
}

// programs are those of a case but the limit, in the order in which they ran.
func programs(f *result.File, name string) []string {
	var who []string
	for _, s := range f.Samples {
		if s.Case == name && s.Limit == nil && !slices.Contains(who, s.Who) {
			who = append(who, s.Who)
		}
	}
	return who
}

func writeSection(w *bytes.Buffer, f *result.File, s section) {
	who := programs(f, s.name)
	if len(who) == 0 {
		return
	}
	fmt.Fprintf(w, "\n## %s\n\n", s.title)
	if s.text != "" {
		fmt.Fprintf(w, "%s\n\n", s.text)
	}
	quantity := seconds
	if spreadOf(f.Of(s.name, who[0]), synced).max > 0 {
		quantity = synced
		w.WriteString("| program | n | time | synced | gantry / it | CPU, s | peak, MB | above idle | written, MB | on disk | received |\n")
		w.WriteString("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n")
	} else {
		w.WriteString("| program | n | time | gantry / it |\n| --- | --- | --- | --- |\n")
	}
	ours := spreadOf(f.Of(s.name, "gantry"), quantity)
	for _, name := range who {
		writeProgram(w, f, s.name, name, ours)
	}
	if limits := f.Of(s.name, "limit"); len(limits) > 0 {
		cached, synced := spreadOf(limits, limitCached(f.Machine.Cores)), spreadOf(limits, limitSynced(f.Machine.Cores))
		fmt.Fprintf(w, "| *the limit* | %d | %s | %s | %.2f | | | | | | |\n", synced.n, cached, synced, ours.median/synced.median)
	}
}

// writeProgram writes the row of one program; ours are the times of gantry's.
func writeProgram(w *bytes.Buffer, f *result.File, name, who string, ours spread) {
	samples := f.Of(name, who)
	time, theirs := spreadOf(samples, seconds), spreadOf(samples, synced)
	isSynced := theirs.max > 0
	if !isSynced {
		theirs = time
	}
	relation := "1"
	if who != "gantry" {
		relation = fmt.Sprintf("%.2f", ours.median/theirs.median)
	}
	if !isSynced {
		fmt.Fprintf(w, "| %s | %d | %s | %s |\n", who, time.n, time, relation)
		return
	}
	cells := []string{
		who, fmt.Sprint(time.n), time.String(), theirs.String(), relation, fmt.Sprintf("%.2f", spreadOf(samples, cpu).median),
		mostOf(samples, func(s result.Sample) int64 { return s.Peak }), mostOf(samples, func(s result.Sample) int64 { return s.Peak - s.Idle }),
		bytesOf(samples, func(s result.Sample) int64 { return s.Written }), bytesOf(samples, func(s result.Sample) int64 { return s.Used }),
		bytesOf(samples, func(s result.Sample) int64 { return s.Received }),
	}
	fmt.Fprintf(w, "| %s |\n", strings.Join(cells, " | "))
}

// writeLimit tells what the limits are made of.
func writeLimit(w *bytes.Buffer, f *result.File) {
	columns := []struct {
		title string
		of    func(result.Limit) float64
	}{
		{"registry sends", func(l result.Limit) float64 { return l.Send }},
		{"receive", func(l result.Limit) float64 { return l.Receive }},
		{"hash the blobs", func(l result.Limit) float64 { return l.HashBlob }},
		{"decompress", func(l result.Limit) float64 { return l.Decompress }},
		{"hash the archives", func(l result.Limit) float64 { return l.HashTar }},
		{"write the files", func(l result.Limit) float64 { return l.Write }},
		{"bring them to disk", func(l result.Limit) float64 { return l.WriteBack }},
		{"sum", result.Limit.CPU},
		{"disk", func(l result.Limit) float64 { return l.Disk }},
	}
	first := true
	for _, s := range sections {
		limits := f.Of(s.name, "limit")
		if len(limits) == 0 {
			continue
		}
		if first {
			w.WriteString("\n## The limit\n\nEach step alone, by `hack/limit`, in seconds of CPU, medians; to bring the files to disk is the kernel's work, measured by all that\n" +
				"the machine does meanwhile. The limit is the sum over all cores or, synced, the seconds that the disk takes for as many bytes in\n" +
				"one file, whichever is longer; not synced, it is without what brings the files to disk.\n\n| case | bytes, blobs / archives")
			for _, c := range columns {
				fmt.Fprintf(w, " | %s", c.title)
			}
			fmt.Fprintf(w, " |\n| --- | ---%s |\n", strings.Repeat(" | ---", len(columns)))
			first = false
		}
		fmt.Fprintf(w, "| %s | %.0f / %.0f MB", s.title, float64(limits[0].Limit.Blob)/1e6, float64(limits[0].Limit.Tar)/1e6)
		for _, c := range columns {
			fmt.Fprintf(w, " | %.2f", spreadOf(limits, func(s result.Sample) float64 { return c.of(*s.Limit) }).median)
		}
		w.WriteString(" |\n")
	}
}
