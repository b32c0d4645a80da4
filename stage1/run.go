package stage1

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/failpoint"
	"github.com/gantry-cri/gantry/stage0/manifest"
	"github.com/gantry-cri/gantry/stage0/pod"
)

// Options are what run-prepared may add to a prepared pod.
type Options struct {
	// Network is for pods of the command line; the others said it when they were prepared.
	Network NetworkMode
}

// NetworkMode says in which network a pod of the command line runs.
type NetworkMode string

// The zero value is the network that the node's CNI configuration describes.
const (
	NetworkDefault NetworkMode = ""
	NetworkHost    NetworkMode = "host"
	NetworkNone    NetworkMode = "none"
)

// Run is RunWith without options, which is right for everything that came through CRI.
func (r *Runner) Run(ctx context.Context, u manifest.UUID) error {
	return r.RunWith(ctx, u, Options{})
}

// RunWith starts a prepared pod: the namespaces and the network of a sandbox or of a
// pod of the command line, and the containers of its apps. nil means that a
// sandbox is ready, and that every app's process runs.
//
// Everything is checked before anything is made, and what will be made is written
// down before. A start that fails is undone. Through CRI it then counts: the
// container has ended, with exit code 128 and reason StartError. On the command line the
// pod goes back to prepared if no process of it ever ran. A Stop of the same runner
// ends it, as a failure, and undoes what a sandbox has by then.
//
// ErrState says that the pod is not prepared, ErrNotFound that there is none.
func (r *Runner) RunWith(ctx context.Context, u manifest.UUID, opts Options) (err error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	d, err := r.pods.Lock(ctx, u)
	if err != nil {
		return fmt.Errorf("run pod %s: %w", u, err)
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	if d.Place() != pod.InPrepared {
		return fmt.Errorf("pod %s is not prepared: %w", u, errdefs.ErrState)
	}
	ctx, cut := context.WithCancelCause(ctx)
	r.starts.Store(u, cut)
	defer r.starts.Delete(u)
	p, err := r.plan(ctx, d, opts)
	if err != nil {
		return fmt.Errorf("run pod %s: %w", u, errors.Join(err, r.refuse(d, err)))
	}
	failpoint.Hit(failpoint.RunChecked)
	if err := r.accept(d, p); err != nil {
		return fmt.Errorf("run pod %s: %w", u, errors.Join(err, r.fail(ctx, d, err)))
	}
	if err := r.start(ctx, d, p); err != nil {
		if errors.Is(context.Cause(ctx), errStopped) {
			err = fmt.Errorf("%w: %w", errStopped, err)
		}
		return fmt.Errorf("run pod %s: %w", u, errors.Join(err, r.fail(ctx, d, err)))
	}
	return nil
}

// errStopped is why a start that was in the way of a stop has failed.
var errStopped = errors.New("stopped before it had started")

// accept is the point of no return of a start: from here on it is undone by its
// intents alone.
func (r *Runner) accept(d *pod.Dir, p *plan) error {
	if err := d.Intend(p.intents...); err != nil {
		return err
	}
	if err := d.MakeRunDir(); err != nil {
		return err
	}
	failpoint.Hit(failpoint.RunDirMade)
	return d.MoveTo(pod.InRun)
}

func (r *Runner) start(ctx context.Context, d *pod.Dir, p *plan) error {
	if p.shared != nil {
		if err := r.startShared(ctx, d, p); err != nil {
			return err
		}
	}
	for i := range p.apps {
		if err := r.startApp(ctx, d, p, &p.apps[i]); err != nil {
			return fmt.Errorf("app %s: %w", p.apps[i].name, err)
		}
	}
	return nil
}

// refuse is for a start whose checks failed: nothing was made. A container of CRI
// counts as ended all the same, because the kubelet creates whatever it sees as
// created again, without back-off. Everything else stays prepared.
func (r *Runner) refuse(d *pod.Dir, cause error) error {
	if d.Record().Kind != pod.KindContainer {
		return nil
	}
	if err := errors.Join(d.MakeRunDir(), d.MoveTo(pod.InRun)); err != nil {
		return err
	}
	return r.recordFailure(d, cause, time.Now())
}

// fail undoes a start. It goes on when the caller's context has ended: that may
// be why the start failed.
func (r *Runner) fail(ctx context.Context, d *pod.Dir, cause error) error {
	now := time.Now()
	ran, err := r.everRan(d)
	if err != nil {
		return err
	}
	if d.Record().Kind == pod.KindSandbox && errors.Is(context.Cause(ctx), errStopped) {
		return nil // whoever stops it undoes it, and must not wait for a plugin that hangs here
	}
	undone := errors.Join(r.pods.ClearReady(d.UUID()), r.undo(context.WithoutCancel(ctx), d, nil))
	if d.Record().Owner == pod.OwnerCLI && !ran && undone == nil {
		if d.Place() == pod.InRun {
			undone = d.MoveTo(pod.InPrepared)
		}
		return errors.Join(undone, d.RemoveRunDir())
	}
	if d.Place() != pod.InRun {
		return undone
	}
	return errors.Join(undone, r.recordFailure(d, cause, now))
}

// everRan says whether a process of the pod ever ran.
func (r *Runner) everRan(d *pod.Dir) (bool, error) {
	p, err := r.pods.Load(d.UUID())
	if err != nil {
		return false, err
	}
	return len(p.Started) > 0 || len(p.Exits) > 0, nil
}

// recordFailure writes how a failed start ended, for each app that has no record yet.
func (r *Runner) recordFailure(d *pod.Dir, cause error, at time.Time) error {
	var errs []error
	for _, a := range d.Record().Apps {
		errs = append(errs, d.WriteExit(a.Name, pod.Exit{Code: 128, Reason: "StartError", Message: cause.Error(), EndedAt: at}))
	}
	return errors.Join(errs...)
}
