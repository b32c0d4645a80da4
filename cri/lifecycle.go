package cri

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/appc/spec/schema"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/stage0"
	"github.com/gantry-cri/gantry/stage0/manifest"
	"github.com/gantry-cri/gantry/stage0/pod"
)

// cleanUpTimeout bounds the undoing of a run or a create that failed.
const cleanUpTimeout = 2 * time.Minute

// Preparer commits pods to disk. *stage0.Pipeline is one.
type Preparer interface {
	Prepare(ctx context.Context, spec stage0.PodSpec) (manifest.UUID, error)
}

// Runner runs prepared pods. *stage1.Runner is one.
type Runner interface {
	// Run runs a prepared pod: for a sandbox it returns when it is ready, for a
	// container when its process runs.
	Run(ctx context.Context, u manifest.UUID) error
	// Stop returns once the pod is dead and its exit recorded. A context that ends
	// while it waits for the grace period ends it, with nothing held any longer.
	Stop(ctx context.Context, u manifest.UUID, grace time.Duration) error
	// Remove stops the pod and deletes it. Stop and Remove of what is gone succeed.
	Remove(ctx context.Context, u manifest.UUID) error
	// CheckApp says why this node cannot confine an app as its manifest asks.
	CheckApp(pm *schema.PodManifest, app string) error
	// UpdateResources changes the limits of a running app; what is zero stays.
	UpdateResources(ctx context.Context, u manifest.UUID, app string, r *runtimeapi.LinuxContainerResources) error
}

// lifecycle starts, stops and removes pods on behalf of both kinds. Each is a job:
// asking twice is asking once.
type lifecycle struct {
	index  *index
	jobs   *jobs
	runner Runner
	locker Locker
	limits Limits

	stopping sync.Map // manifest.UUID → *stopping: the stops in flight
}

// stopping is a stop whose grace period can be shortened.
type stopping struct {
	mu       sync.Mutex // protects what follows
	deadline time.Time
	again    bool               // the deadline was moved while a round ran
	cancel   context.CancelFunc // ends the round that runs
}

// shorten moves the deadline forward; it never moves it back.
func (s *stopping) shorten(deadline time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !deadline.Before(s.deadline) {
		return
	}
	s.deadline = deadline
	if s.cancel != nil {
		s.again = true
		s.cancel()
	}
}

// round returns the context and the grace period of the next round of stopping.
func (s *stopping) round(ctx context.Context) (context.Context, time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.again = false
	ctx, s.cancel = context.WithCancel(ctx)
	return ctx, max(0, time.Until(s.deadline))
}

// over says whether the round that ended was the last.
func (s *stopping) over() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cancel()
	s.cancel = nil
	return !s.again
}

// halt returns once a pod is dead. It joins a stop in flight; a shorter grace
// period takes effect at once, a longer one has none.
func (l *lifecycle) halt(ctx context.Context, u manifest.UUID, grace time.Duration) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	deadline := time.Now().Add(grace)
	mine := &stopping{deadline: deadline}
	other, _ := l.stopping.LoadOrStore(u, mine)
	s := other.(*stopping) //nolint:forcetypeassert // nothing else is stored
	s.shorten(deadline)
	_, err := l.jobs.do(ctx, work{
		key:     "stop/" + string(u),
		timeout: grace + l.limits.Stop,
		run: func(ctx context.Context) (string, error) {
			l.stopping.Store(u, s) // an earlier stop may have taken it away meanwhile
			defer l.stopping.CompareAndDelete(u, s)
			defer l.index.refresh(u)
			for {
				round, left := s.round(ctx)
				err := l.runner.Stop(round, u, left)
				if s.over() || ctx.Err() != nil {
					return "", err
				}
			}
		},
	})
	return err
}

// remove deletes a pod, stopping it first without grace.
func (l *lifecycle) remove(ctx context.Context, u manifest.UUID) error {
	_, err := l.jobs.do(ctx, work{
		key:     "remove/" + string(u),
		timeout: l.limits.Remove,
		run: func(ctx context.Context) (string, error) {
			defer l.index.refresh(u)
			return "", l.removeStopped(ctx, u)
		},
	})
	return err
}

// removeStopped deletes a pod after the stop of it that is in flight, if there is one:
// both want its lock, and may have to wait for plugins while they hold it.
func (l *lifecycle) removeStopped(ctx context.Context, u manifest.UUID) error {
	if _, inFlight := l.stopping.Load(u); inFlight {
		if err := l.halt(ctx, u, 0); err != nil {
			return err
		}
	}
	return l.runner.Remove(ctx, u)
}

// undo removes what a call made that nobody will hear of, on time of its own.
func (l *lifecycle) undo(ctx context.Context, u manifest.UUID) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpTimeout)
	defer cancel()
	defer l.index.refresh(u)
	if err := l.removeStopped(ctx, u); err != nil {
		klog.FromContext(ctx).Error(err, "Undoing failed, the pod stays listed", "pod", u)
		return fmt.Errorf("undo: %w", err)
	}
	return nil
}

// undoID is undo for a job's result.
func (l *lifecycle) undoID(ctx context.Context, id string) error {
	u, err := manifest.ID(id).UUID()
	if err != nil {
		return err
	}
	return l.undo(ctx, u)
}

// start runs a prepared container. Once accepted, a start that fails ends the
// container with an exit record: what the kubelet sees as created it creates
// again without a pause.
func (l *lifecycle) start(ctx context.Context, u manifest.UUID, app string) error {
	defer l.index.refresh(u)
	err := l.runner.Run(ctx, u)
	if err == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpTimeout)
	defer cancel()
	return errors.Join(err, l.failStart(ctx, u, app, err))
}

// failStart writes the exit record of a failed start, where stage1 has not.
func (l *lifecycle) failStart(ctx context.Context, u manifest.UUID, app string, cause error) (err error) {
	l.index.refresh(u)
	if e := l.index.get(u); e == nil || e.exit != nil {
		return nil
	} else if isRunning(e) {
		return l.halt(ctx, u, 0)
	}
	d, err := l.locker.Lock(ctx, u)
	if err != nil {
		return fmt.Errorf("record failed start: %w", err)
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	exit := pod.Exit{Code: 128, Reason: "StartError", Message: cause.Error(), EndedAt: time.Now()}
	if err := d.WriteExit(app, exit); err != nil {
		return fmt.Errorf("record failed start: %w", err)
	}
	if d.Place() == pod.InPrepared {
		return d.MoveTo(pod.InRun)
	}
	return nil
}
