package shim

import (
	"maps"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/gantry-cri/gantry/cri"
	"github.com/gantry-cri/gantry/stage0"
	"github.com/gantry-cri/gantry/stage0/pod"
)

// stageBuckets go from a stat of a tree that is there to a pull over a slow line.
var stageBuckets = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600}

// callBuckets go from a list out of memory to the deadline of RunPodSandbox.
var callBuckets = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 240}

// metrics observe the pipeline and the calls. They are a cri.CallObserver, and most
// of a stage0.Observer.
type metrics struct {
	registry *prometheus.Registry
	stages   *prometheus.HistogramVec
	bytes    prometheus.Counter
	layers   *prometheus.CounterVec
	inFlight prometheus.Gauge
	missing  prometheus.Gauge
	copied   prometheus.Counter
	calls    *prometheus.CounterVec
	took     *prometheus.HistogramVec
	unknown  *prometheus.CounterVec

	mu     sync.Mutex // guards flying
	flying map[flight]stage0.LayerProgress
}

// flight is a layer that is being fetched, and for what.
type flight struct {
	image string
	layer digest.Digest
}

func newMetrics(version string) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		stages: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "gantry_prepare_stage_duration_seconds",
			Help: "How long each stage of fetching an image and preparing a pod took, failed ones included.", Buckets: stageBuckets,
		}, []string{"stage", "result"}),
		bytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "gantry_fetch_bytes_total", Help: "Bytes that came from registries.",
		}),
		layers: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gantry_fetch_layers_total", Help: "Layers that images needed: present already, waited for while somebody else fetched them, fetched (done), failed.",
		}, []string{"state"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "gantry_fetch_layers_in_flight", Help: "Layers that are being downloaded and extracted.",
		}),
		missing: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "gantry_fetch_missing_bytes", Help: "Bytes that the layers in flight have still to get.",
		}),
		copied: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "gantry_prepare_overlay_disabled_total", Help: "Pods whose root filesystems were copied because overlay does not work on the data directory.",
		}),
		flying: map[flight]stage0.LayerProgress{},
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gantry_cri_calls_total", Help: "CRI calls that were answered, by method and gRPC code.",
		}, []string{"method", "code"}),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "gantry_cri_call_duration_seconds", Help: "How long CRI calls took to answer.", Buckets: callBuckets,
		}, []string{"method"}),
		unknown: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gantry_cri_unknown_fields_total", Help: "Fields of a newer CRI that requests carried and that were ignored.",
		}, []string{"message"}),
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "gantry_build_info", Help: "Always 1; the labels say what was built.",
		ConstLabels: prometheus.Labels{"version": version, "goversion": runtime.Version()},
	})
	build.Set(1)
	m.registry.MustRegister(m.stages, m.bytes, m.layers, m.inFlight, m.missing, m.copied, m.calls, m.took, m.unknown, build,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	// Series that are there from the start have a rate from the first event on.
	for _, s := range stage0.Stages {
		m.stages.WithLabelValues(string(s), "success")
		m.stages.WithLabelValues(string(s), "failure")
	}
	for _, s := range stage0.LayerStates {
		if s != stage0.LayerFetching {
			m.layers.WithLabelValues(string(s))
		}
	}
	return m
}

// StageDone is part of stage0.Observer.
func (m *metrics) StageDone(s stage0.Stage, took time.Duration, err error) {
	result := "success"
	if err != nil {
		result = "failure"
	}
	m.stages.WithLabelValues(string(s), result).Observe(took.Seconds())
}

// BytesFetched is part of stage0.Observer.
func (m *metrics) BytesFetched(n int64) { m.bytes.Add(float64(n)) }

// LayerProgress counts a layer, and says whether nothing was in flight before.
func (m *metrics) LayerProgress(l stage0.LayerProgress) (first bool) {
	if l.State != stage0.LayerFetching {
		m.layers.WithLabelValues(string(l.State)).Inc()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	f := flight{l.Image, l.Layer}
	before, others := m.flying[f], len(m.flying)
	left := int64(0)
	if l.State == stage0.LayerFetching {
		left = missing(l)
		m.flying[f] = l
	} else {
		delete(m.flying, f)
	}
	m.missing.Add(float64(left - missing(before)))
	m.inFlight.Set(float64(len(m.flying)))
	return others == 0
}

// missing is how many bytes of a layer have still to come.
func missing(l stage0.LayerProgress) int64 { return max(0, l.Size-l.Done) }

// inAir is what is in flight now.
func (m *metrics) inAir() []stage0.LayerProgress {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Values(m.flying))
}

// CallDone is part of cri.CallObserver.
func (m *metrics) CallDone(method, code string, took time.Duration) {
	m.calls.WithLabelValues(method, code).Inc()
	m.took.WithLabelValues(method).Observe(took.Seconds())
}

// UnknownField is part of cri.CallObserver.
func (m *metrics) UnknownField(message string) { m.unknown.WithLabelValues(message).Inc() }

// counter tells how many pods there are. *cri.Server is one.
type counter interface {
	Counts() map[cri.Count]int
}

// podCollector counts the pods when it is asked.
type podCollector struct {
	pods counter
	desc *prometheus.Desc
}

func newPodCollector(pods counter) *podCollector {
	return &podCollector{pods, prometheus.NewDesc("gantry_pods", "Pods by state (rkt's words), kind and owner.", []string{"state", "kind", "owner"}, nil)}
}

// Describe is part of prometheus.Collector.
func (c *podCollector) Describe(out chan<- *prometheus.Desc) { out <- c.desc }

// Collect is part of prometheus.Collector. States that pods of a kind commonly
// have are there with 0, so that a graph does not end where the last pod does.
func (c *podCollector) Collect(out chan<- prometheus.Metric) {
	counts := c.pods.Counts()
	for _, k := range []cri.Count{{Kind: pod.KindSandbox, Owner: pod.OwnerCRI}, {Kind: pod.KindContainer, Owner: pod.OwnerCRI}, {Kind: pod.KindPod, Owner: pod.OwnerCLI}} {
		for _, s := range []pod.State{pod.Prepared, pod.Running, pod.Exited} {
			k.State = s
			counts[k] += 0
		}
	}
	for k, n := range counts {
		out <- prometheus.MustNewConstMetric(c.desc, prometheus.GaugeValue, float64(n), string(k.State), string(k.Kind), string(k.Owner))
	}
}
