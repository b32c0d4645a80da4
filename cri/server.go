// Package cri is the door that the kubelet uses: the RuntimeService and the
// ImageService of CRI v1 (k8s.io/cri-api 0.37).
//
//	kubelet ──▶ interceptors ──▶ handler: translate ▶ call ▶ answer ──▶ stage0, stage1
//	                                 │
//	                  jobs (asking twice is asking once) · index (lists from memory)
//
// Every CRI object is a prepared pod: a sandbox is one without an app, a container
// one with one app that names its sandbox. The server owns none of them. Disk is
// the truth, memory is an index; kill the daemon and nothing is lost.
//
// gRPC codes are in errors.go alone. docs/cri.md has a row for every RPC.
package cri

import (
	"context"
	"errors"
	"net/url"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/stage0/manifest"
	"github.com/gantry-cri/gantry/stage0/pod"
)

// Config is what a server is made of. Everything without "optional" must be set.
type Config struct {
	Pods      Pods
	Preparer  Preparer
	Runner    Runner
	Inspector Inspector
	Executor  Executor
	Meter     Meter
	Images    Images
	Puller    Puller
	Disk      Disk
	Node      Node
	// StreamURL is where StreamHandler is served: Exec, Attach and PortForward
	// answer with URLs below it. Its port must be the real one.
	StreamURL *url.URL
	// DataDir is the directory whose file system holds images and writable layers.
	DataDir string
	// Version is this build's version, such as "0.1.0".
	Version string
	// Info is shown by Status when it is verbose: the configuration, as JSON can say it.
	Info any
	// Limits are optional.
	Limits Limits
}

// Limits are the server's own deadlines and pauses; those that are zero have the
// values of DefaultLimits.
type Limits struct {
	// RunSandbox, Create, Start, Stop (beyond the grace period) and Remove bound a
	// job of that kind, whether its callers still wait or not.
	RunSandbox, Create, Start, Stop, Remove time.Duration
	// Claim is how long a result waits for a call that takes it.
	Claim time.Duration
	// PullGrace is how long a pull goes on after its last caller has gone.
	PullGrace time.Duration
	// Sample is the pause between two samples of the statistics.
	Sample time.Duration
	// Collect is the pause after which trees are collected that a pull held.
	Collect time.Duration
}

// DefaultLimits are a little longer than what a kubelet waits, so that a repeated
// call finds the first one's job.
var DefaultLimits = Limits{
	RunSandbox: 5 * time.Minute,
	Create:     3 * time.Minute,
	Start:      3 * time.Minute,
	Stop:       2 * time.Minute,
	Remove:     3 * time.Minute,
	Claim:      2 * time.Minute,
	PullGrace:  5 * time.Second,
	Sample:     10 * time.Second,
	Collect:    time.Minute,
}

func (l Limits) withDefaults() Limits {
	for _, f := range []struct{ is, or *time.Duration }{
		{&l.RunSandbox, &DefaultLimits.RunSandbox},
		{&l.Create, &DefaultLimits.Create},
		{&l.Start, &DefaultLimits.Start},
		{&l.Stop, &DefaultLimits.Stop},
		{&l.Remove, &DefaultLimits.Remove},
		{&l.Claim, &DefaultLimits.Claim},
		{&l.PullGrace, &DefaultLimits.PullGrace},
		{&l.Sample, &DefaultLimits.Sample},
		{&l.Collect, &DefaultLimits.Collect},
	} {
		if *f.is == 0 {
			*f.is = *f.or
		}
	}
	return l
}

// Pods is the pods on disk. *pod.Pods is one.
type Pods interface {
	PodReader
	Locker
}

// Locker locks a pod that is to be changed. *pod.Pods is one.
type Locker interface {
	Lock(ctx context.Context, u manifest.UUID) (*pod.Dir, error)
}

// unimplemented answers what no group does. It lies one level deeper than the
// groups, so that whatever a group does is the group's.
type unimplemented struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer
}

// Server implements RuntimeServiceServer and ImageServiceServer. Each group of
// RPCs is a part of it with what it needs and no more.
type Server struct {
	unimplemented
	*sandboxes
	*containers
	*images
	*streams
	*stats
	*node

	index *index
	jobs  []*jobs
	stop  context.CancelFunc
}

// New reads all pods and returns a server that can answer. ctx carries the logger
// and bounds the server's life: jobs and watches end with it. Close must be called.
func New(ctx context.Context, cfg Config) (*Server, error) {
	ctx, stop := context.WithCancel(ctx)
	limits := cfg.Limits.withDefaults()
	x, err := newIndex(ctx, cfg.Pods, cfg.Inspector)
	if err != nil {
		stop()
		return nil, err
	}
	creates, others := newJobs(ctx, limits.Claim), newJobs(ctx, limits.Claim)
	life := &lifecycle{index: x, jobs: others, runner: cfg.Runner, locker: cfg.Pods, limits: limits}
	s := &Server{
		index: x, jobs: []*jobs{creates, others}, stop: stop,
		images: newImages(cfg, x, others, limits),
		node:   &node{facts: cfg.Node, version: cfg.Version, info: cfg.Info},
		stats:  newStats(x, cfg, limits),
	}
	s.containers = &containers{lifecycle: life, creates: creates, preparer: cfg.Preparer, images: cfg.Images, stats: s.stats, inspector: cfg.Inspector}
	s.sandboxes = &sandboxes{lifecycle: life, creates: creates, preparer: cfg.Preparer, containers: s.containers, inspector: cfg.Inspector}
	if s.streams, err = newStreams(x, cfg.Executor, cfg.StreamURL); err == nil {
		err = x.fill()
	}
	if err != nil {
		return nil, errors.Join(err, s.Close(context.Background()))
	}
	x.tasks.Go(func() { s.stats.run(ctx) })
	return s, nil
}

// Register adds both services to a gRPC server.
func (s *Server) Register(g *grpc.Server) {
	runtimeapi.RegisterRuntimeServiceServer(g, s)
	runtimeapi.RegisterImageServiceServer(g, s)
}

// Close waits for the jobs in flight as long as ctx allows, cancels the rest and
// ends everything else. Containers run on.
func (s *Server) Close(ctx context.Context) error {
	var late error
	for _, js := range s.jobs {
		late = errors.Join(late, js.wait(ctx))
	}
	s.stop()
	for _, js := range s.jobs {
		js.tasks.Wait()
	}
	return errors.Join(late, s.index.close())
}

// Count is how many pods of one sort there are.
type Count struct {
	State pod.State
	Kind  pod.Kind
	Owner pod.Owner
}

// Counts tells how many pods there are of each sort, those of the command line
// included.
func (s *Server) Counts() map[Count]int {
	counts := map[Count]int{}
	for _, e := range s.index.all() {
		if e.record.Owner != pod.OwnerCRI {
			// Nobody tells the index when an app of such a pod ends.
			s.index.refresh(e.uuid())
			if e = s.index.get(e.uuid()); e == nil {
				continue
			}
		}
		counts[Count{e.word, e.record.Kind, e.record.Owner}]++
	}
	return counts
}
