package main

import (
	"fmt"

	"github.com/gantry-cri/gantry/test/bench/result"
)

// goal is one line of what was promised: a measured value of gantry's that must not be
// more than most.
type goal struct {
	name, text string
	most       float64
	unit       string // "×", "ms" or "MB"
	measure    func(f *result.File) (value float64, ok bool)
}

// goals are those of issue 7. All times are with sync where something is written.
var goals = []goal{
	{"pull-gzip-containerd", "cold pull, gzip, beside containerd", 0.5, "×", ratio("pull-gzip", "containerd")},
	{"pull-zstd-containerd", "cold pull, zstd, beside containerd", 0.5, "×", ratio("pull-zstd", "containerd")},
	{"pull-gzip-podman", "cold pull, gzip, beside podman", 0.5, "×", ratio("pull-gzip", "podman")},
	{"pull-zstd-podman", "cold pull, zstd, beside podman", 0.5, "×", ratio("pull-zstd", "podman")},
	{"pull-gzip-limit", "cold pull, gzip, beside the limit", 1.3, "×", ratioToLimit("pull-gzip")},
	{"pull-zstd-limit", "cold pull, zstd, beside the limit", 1.3, "×", ratioToLimit("pull-zstd")},
	{"aci", "ACI, beside `tar -x`", 1.3, "×", ratio("aci", "tar")},
	{"aci-gzip", "ACI compressed by gzip, beside `tar -x`", 1.3, "×", ratio("aci-gzip", "tar")},
	{"copy", "copy fallback, beside `cp -a`", 0.6, "×", ratio("copy", "cp")},
	{"prepare-warm", "warm `gantry prepare`, a whole process", 15, "ms", milliseconds("prepare-warm")},
	{"memory", "peak memory above idle", 64, "MB", peakAboveIdle},
}

// ratio is gantry's median to that of another, each with sync.
func ratio(name, other string) func(*result.File) (float64, bool) {
	return func(f *result.File) (float64, bool) {
		ours, theirs := spreadOf(f.Of(name, "gantry"), synced), spreadOf(f.Of(name, other), synced)
		return ours.median / theirs.median, ours.n > 0 && theirs.n > 0
	}
}

// ratioToLimit is gantry's median with sync to that of the limit.
func ratioToLimit(name string) func(*result.File) (float64, bool) {
	return func(f *result.File) (float64, bool) {
		ours, limit := spreadOf(f.Of(name, "gantry"), synced), spreadOf(f.Of(name, "limit"), limitSynced(f.Machine.Cores))
		return ours.median / limit.median, ours.n > 0 && limit.n > 0
	}
}

func milliseconds(name string) func(*result.File) (float64, bool) {
	return func(f *result.File) (float64, bool) {
		s := spreadOf(f.Of(name, "gantry"), seconds)
		return s.median * 1000, s.n > 0
	}
}

// peakAboveIdle is the most that a daemon of gantry's took for any pull, or any
// command of gantry's as a whole.
func peakAboveIdle(f *result.File) (float64, bool) {
	most := int64(0)
	for _, s := range f.Samples {
		if s.Who == "gantry" {
			most = max(most, s.Peak-s.Idle)
		}
	}
	return float64(most) / 1e6, most > 0
}

// show is a value with its unit.
func (g goal) show(value float64) string {
	switch g.unit {
	case "×":
		return fmt.Sprintf("%.2f ×", value)
	case "ms":
		return fmt.Sprintf("%.1f ms", value)
	}
	return fmt.Sprintf("%.0f %s", value, g.unit)
}
