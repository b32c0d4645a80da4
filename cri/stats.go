package cri

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/manifest"
	"github.com/gantry-cri/gantry/stage0/pod"
	"github.com/gantry-cri/gantry/stage0/usage"
	"github.com/gantry-cri/gantry/stage1/cgroup"
	"github.com/gantry-cri/gantry/stage1/namespace"
	"github.com/gantry-cri/gantry/stage1/network"
)

const (
	// fresh is how old a sample may be to be answered with. Reading a cgroup is a
	// few small files; clients that ask twice a second apart want two values.
	fresh = 900 * time.Millisecond
	// rateSpan is the shortest time that a rate is taken over.
	rateSpan = 800 * time.Millisecond
	// podsAskedFor is how long after a question for pods' statistics they are sampled.
	podsAskedFor = 5 * time.Minute
	// walkShare is what part of the time may go into walking writable layers: 1/walkShare.
	walkShare = 10
)

// Meter measures what runs. *stage1.Runner is one.
type Meter interface {
	// Stats is what an app uses, or, for an empty app, the pod.
	Stats(u manifest.UUID, app string) (cgroup.Stats, error)
	// NetworkStats are the counters of the pod's interfaces.
	NetworkStats(u manifest.UUID) ([]namespace.InterfaceStat, error)
	// Upper is the directory of an app's writable layer.
	Upper(u manifest.UUID, app string) string
}

// sample is what one pod used at one moment. It is never changed.
type sample struct {
	cgroup.Stats
	interfaces []namespace.InterfaceStat
	// nanoCores is the rate since base; nil before there are two samples.
	nanoCores *runtimeapi.UInt64Value
	base      cgroup.Stats
}

// stats are the RPCs about what containers and sandboxes use, and the sampler
// behind them. Writable layers are walked in the background alone.
type stats struct {
	index *index
	meter Meter
	dir   string
	every time.Duration
	walk  chan struct{} // asks for a round of walks now

	mu      sync.Mutex // protects what follows
	samples map[manifest.UUID]*sample
	layers  map[manifest.UUID]*runtimeapi.FilesystemUsage
	pods    time.Time // when statistics of pods were last asked for
}

func newStats(x *index, cfg Config, limits Limits) *stats {
	return &stats{
		index: x, meter: cfg.Meter, dir: cfg.DataDir, every: limits.Sample,
		walk:    make(chan struct{}, 1),
		samples: map[manifest.UUID]*sample{},
		layers:  map[manifest.UUID]*runtimeapi.FilesystemUsage{},
	}
}

// run samples until ctx ends.
func (s *stats) run(ctx context.Context) {
	var walks sync.WaitGroup
	defer walks.Wait()
	walks.Go(func() { s.walkLayers(ctx) })
	tick := time.NewTicker(s.every)
	defer tick.Stop()
	for {
		s.sampleAll(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (s *stats) sampleAll(ctx context.Context) {
	s.mu.Lock()
	pods := time.Since(s.pods) < podsAskedFor
	s.mu.Unlock()
	live := map[manifest.UUID]bool{}
	for _, e := range s.index.all() {
		if ctx.Err() != nil {
			return
		}
		if measurable(e) && (pods || e.record.Kind == pod.KindContainer) {
			live[e.uuid()] = true
			_, _ = s.sample(e, s.every/2) // one that ended meanwhile has none
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for u := range s.samples {
		if !live[u] {
			delete(s.samples, u)
		}
	}
}

func measurable(e *entry) bool {
	if e.record.Owner != pod.OwnerCRI {
		return false
	}
	if e.record.Kind == pod.KindSandbox {
		return e.phase == pod.Up
	}
	return isRunning(e)
}

// sampleNow takes the first sample of a container that has just been started, so
// that a rate is known with the second.
func (s *stats) sampleNow(u manifest.UUID) {
	if e := s.index.get(u); e != nil && measurable(e) {
		_, _ = s.sample(e, 0)
	}
	select {
	case s.walk <- struct{}{}:
	default:
	}
}

// sample returns a sample that is not older than maxAge, and takes one if need be.
func (s *stats) sample(e *entry, maxAge time.Duration) (*sample, error) {
	s.mu.Lock()
	old := s.samples[e.uuid()]
	s.mu.Unlock()
	if old != nil && time.Since(old.Timestamp) <= maxAge {
		return old, nil
	}
	app := ""
	if e.record.Kind == pod.KindContainer {
		app = e.app().Name
	}
	got, err := s.meter.Stats(e.uuid(), app)
	if err != nil {
		return nil, err
	}
	now := &sample{Stats: got, base: got}
	if old != nil {
		now.base, now.nanoCores = old.base, old.nanoCores
		if span := got.Timestamp.Sub(old.base.Timestamp); span >= rateSpan {
			now.base, now.nanoCores = got, rate(old.base.CPU.UsageNano, got.CPU.UsageNano, span)
		}
	}
	if e.record.Kind == pod.KindSandbox {
		if now.interfaces, err = s.meter.NetworkStats(e.uuid()); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	s.samples[e.uuid()] = now
	s.mu.Unlock()
	return now, nil
}

func rate(from, to uint64, span time.Duration) *runtimeapi.UInt64Value {
	if to < from {
		return nil
	}
	return &runtimeapi.UInt64Value{Value: uint64(float64(to-from) / span.Seconds())}
}

// walkLayers measures the writable layers of running containers, one after
// another, and takes no more than its share of the time for it.
func (s *stats) walkLayers(ctx context.Context) {
	for {
		start := time.Now()
		layers := map[manifest.UUID]*runtimeapi.FilesystemUsage{}
		for _, e := range s.index.all() {
			if e.record.Kind != pod.KindContainer || !measurable(e) {
				continue
			}
			taken, err := usage.Of(ctx, s.meter.Upper(e.uuid(), e.app().Name))
			if ctx.Err() != nil {
				return
			}
			if err == nil {
				layers[e.uuid()] = fsUsage(s.dir, time.Now(), taken)
			}
		}
		s.mu.Lock()
		s.layers = layers
		s.mu.Unlock()
		took := time.Since(start)
		pause := time.NewTimer(max(s.every, walkShare*took))
		asked := s.walk
		if walkShare*took > s.every {
			asked = nil // too dear to be done out of turn
		}
		select {
		case <-ctx.Done():
			pause.Stop()
			return
		case <-pause.C:
		case <-asked:
		}
		pause.Stop()
	}
}

// ContainerStats measures one container, which must run.
func (s *stats) ContainerStats(_ context.Context, r *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	e, err := s.index.find(pod.KindContainer, r.GetContainerId())
	if err != nil {
		return nil, err
	}
	if !isRunning(e) {
		return nil, fmt.Errorf("container %s is not running: %w", e.id(), errdefs.ErrState)
	}
	st, err := s.container(e)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ContainerStatsResponse{Stats: st}, nil
}

// ListContainerStats tells what the running containers use. One that cannot be
// measured is left out.
func (s *stats) ListContainerStats(ctx context.Context, r *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	all, err := s.index.list(pod.KindContainer)
	if err != nil {
		return nil, err
	}
	f := r.GetFilter()
	resp := &runtimeapi.ListContainerStatsResponse{}
	for _, e := range all {
		if isRunning(e) && e.filtered(f.GetId(), f.GetPodSandboxId(), f.GetLabelSelector()) {
			if st, err := s.container(e); err == nil {
				resp.Stats = append(resp.Stats, st)
			} else {
				leftOut(ctx, e, err)
			}
		}
	}
	return resp, nil
}

func leftOut(ctx context.Context, e *entry, err error) {
	klog.FromContext(ctx).V(2).Info("Left out of the statistics", "id", e.id(), "err", err)
}

func (s *stats) container(e *entry) (*runtimeapi.ContainerStats, error) {
	m, err := s.sample(e, fresh)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	layer := s.layers[e.uuid()]
	s.mu.Unlock()
	return &runtimeapi.ContainerStats{
		Attributes: &runtimeapi.ContainerAttributes{
			Id:          e.id(),
			Metadata:    e.container.GetMetadata(),
			Labels:      e.container.GetLabels(),
			Annotations: e.container.GetAnnotations(),
		},
		Cpu:           m.cpu(),
		Memory:        m.memory(),
		Swap:          m.swap(),
		WritableLayer: layer,
	}, nil
}

// PodSandboxStats measures one sandbox, which must be ready.
func (s *stats) PodSandboxStats(ctx context.Context, r *runtimeapi.PodSandboxStatsRequest) (*runtimeapi.PodSandboxStatsResponse, error) {
	e, err := s.index.find(pod.KindSandbox, r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	if e.phase != pod.Up {
		return nil, fmt.Errorf("sandbox %s is not ready: %w", e.id(), errdefs.ErrState)
	}
	st, err := s.sandbox(ctx, e)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PodSandboxStatsResponse{Stats: st}, nil
}

// ListPodSandboxStats tells what the ready sandboxes use. One that cannot be
// measured is left out.
func (s *stats) ListPodSandboxStats(ctx context.Context, r *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	all, err := s.index.list(pod.KindSandbox)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.pods = time.Now()
	s.mu.Unlock()
	f := r.GetFilter()
	resp := &runtimeapi.ListPodSandboxStatsResponse{}
	for _, e := range all {
		if e.phase != pod.Up || !selected(e.sandbox.GetLabels(), f.GetLabelSelector()) ||
			f.GetId() != "" && !e.isMeant(pod.KindSandbox, strings.ReplaceAll(f.GetId(), "-", "")) {
			continue
		}
		if st, err := s.sandbox(ctx, e); err == nil {
			resp.Stats = append(resp.Stats, st)
		} else {
			leftOut(ctx, e, err)
		}
	}
	return resp, nil
}

func (s *stats) sandbox(ctx context.Context, e *entry) (*runtimeapi.PodSandboxStats, error) {
	m, err := s.sample(e, fresh)
	if err != nil {
		return nil, err
	}
	linux := &runtimeapi.LinuxPodSandboxStats{
		Cpu:     m.cpu(),
		Memory:  m.memory(),
		Network: m.network(),
		Process: &runtimeapi.ProcessUsage{Timestamp: m.at(), ProcessCount: value(m.PIDs.Current)},
	}
	for _, c := range s.index.containers(e.uuid()) {
		if !isRunning(c) {
			continue
		}
		if st, err := s.container(c); err == nil {
			linux.Containers = append(linux.Containers, st)
		} else {
			leftOut(ctx, c, err)
		}
	}
	return &runtimeapi.PodSandboxStats{
		Attributes: &runtimeapi.PodSandboxAttributes{
			Id:          e.id(),
			Metadata:    e.sandbox.GetMetadata(),
			Labels:      e.sandbox.GetLabels(),
			Annotations: e.sandbox.GetAnnotations(),
		},
		Linux: linux,
	}, nil
}

func value(v uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: v} }

func (m *sample) at() int64 { return m.Timestamp.UnixNano() }

func (m *sample) cpu() *runtimeapi.CpuUsage {
	return &runtimeapi.CpuUsage{Timestamp: m.at(), UsageCoreNanoSeconds: value(m.CPU.UsageNano), UsageNanoCores: m.nanoCores}
}

func (m *sample) memory() *runtimeapi.MemoryUsage {
	u := &runtimeapi.MemoryUsage{
		Timestamp:       m.at(),
		WorkingSetBytes: value(m.Memory.WorkingSet),
		UsageBytes:      value(m.Memory.Usage),
		RssBytes:        value(m.Memory.RSS),
		PageFaults:      value(m.Memory.PageFaults),
		MajorPageFaults: value(m.Memory.MajorFaults),
	}
	if m.Memory.Limit > 0 {
		u.AvailableBytes = value(m.Memory.Available)
	}
	return u
}

func (m *sample) swap() *runtimeapi.SwapUsage {
	u := &runtimeapi.SwapUsage{Timestamp: m.at(), SwapUsageBytes: value(m.Swap.Usage)}
	if m.Swap.Limit > m.Swap.Usage {
		u.SwapAvailableBytes = value(m.Swap.Limit - m.Swap.Usage)
	}
	return u
}

func (m *sample) network() *runtimeapi.NetworkUsage {
	n := &runtimeapi.NetworkUsage{Timestamp: m.at()}
	for _, i := range m.interfaces {
		u := &runtimeapi.NetworkInterfaceUsage{
			Name:    i.Name,
			RxBytes: value(i.RxBytes), RxErrors: value(i.RxErrors),
			TxBytes: value(i.TxBytes), TxErrors: value(i.TxErrors),
		}
		if i.Name == network.Interface {
			n.DefaultInterface = u
		}
		n.Interfaces = append(n.Interfaces, u)
	}
	return n
}
