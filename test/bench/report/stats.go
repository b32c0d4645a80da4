package main

import (
	"fmt"
	"slices"

	"github.com/gantry-cri/gantry/test/bench/result"
)

// spread is what is told of several measurements of one thing.
type spread struct {
	n                int
	median, min, max float64
}

// spreadOf looks at one quantity of the samples. The median of an even number is the
// mean of the two in the middle.
func spreadOf(samples []result.Sample, quantity func(result.Sample) float64) spread {
	if len(samples) == 0 {
		return spread{}
	}
	values := make([]float64, len(samples))
	for i, s := range samples {
		values[i] = quantity(s)
	}
	slices.Sort(values)
	n := len(values)
	return spread{n, (values[(n-1)/2] + values[n/2]) / 2, values[0], values[n-1]}
}

// String gives seconds, or milliseconds where that reads better.
func (s spread) String() string {
	if s.max == 0 {
		return "-"
	}
	if s.max < 0.25 {
		return fmt.Sprintf("%.1f ms (%.1f-%.1f)", s.median*1000, s.min*1000, s.max*1000)
	}
	return fmt.Sprintf("%.2f s (%.2f-%.2f)", s.median, s.min, s.max)
}

func seconds(s result.Sample) float64 { return s.Seconds }
func synced(s result.Sample) float64  { return s.Synced }
func cpu(s result.Sample) float64     { return s.CPU }

func limitCached(cores int) func(result.Sample) float64 {
	return func(s result.Sample) float64 {
		cached, _ := s.Limit.Seconds(cores)
		return cached
	}
}

func limitSynced(cores int) func(result.Sample) float64 {
	return func(s result.Sample) float64 {
		_, synced := s.Limit.Seconds(cores)
		return synced
	}
}

// mostOf is the most of a number of bytes in MB, "-" where it was not measured.
func mostOf(samples []result.Sample, quantity func(result.Sample) int64) string {
	s := spreadOf(samples, func(s result.Sample) float64 { return float64(quantity(s)) })
	if s.max == 0 {
		return "-"
	}
	return fmt.Sprintf("%.0f", s.max/1e6)
}

// bytesOf is the median in place of the most.
func bytesOf(samples []result.Sample, quantity func(result.Sample) int64) string {
	s := spreadOf(samples, func(s result.Sample) float64 { return float64(quantity(s)) })
	if s.max == 0 {
		return "-"
	}
	return fmt.Sprintf("%.0f", s.median/1e6)
}
