package stage1

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/moby/sys/signal"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/failpoint"
	"github.com/gantry-cri/gantry/stage0/manifest"
	"github.com/gantry-cri/gantry/stage0/pod"
	"github.com/gantry-cri/gantry/stage1/proc"
	"github.com/gantry-cri/gantry/translate"
)

// Stop ends a pod: its apps get their stop signal, SIGKILL when the grace is over,
// and cgroup.kill when even that does not help; then what the pod held is undone.
// nil means that no process of the pod runs and its exit records are on disk. It
// is idempotent, and success for pods that never ran. Whatever needs somebody
// else's co-operation, such as CNI DEL, is put off to a sweep when it does not come.
//
// When ctx ends during the grace Stop returns its error and holds nothing, so a
// second Stop with a shorter grace takes effect.
func (r *Runner) Stop(ctx context.Context, u manifest.UUID, grace time.Duration) error {
	return again(func() error { return r.stop(ctx, u, grace) })
}

// errStarted says that what was to be ended was started by another process between our
// look at it and the lock.
var errStarted = fmt.Errorf("it was started meanwhile: %w", errdefs.ErrBusy)

// again ends a pod, and once more if it was started meanwhile: no pod starts twice.
func again(end func() error) error {
	err := end()
	if errors.Is(err, errStarted) {
		err = end()
	}
	return err
}

func (r *Runner) stop(ctx context.Context, u manifest.UUID, grace time.Duration) error {
	if inRun, err := r.end(ctx, u, grace); !inRun || err != nil {
		return err
	}
	return r.finish(ctx, u)
}

// end ends a start of ours and returns when no process of the pod's apps runs. inRun says
// that the pod is in run, where it has something to be undone.
func (r *Runner) end(ctx context.Context, u manifest.UUID, grace time.Duration) (inRun bool, err error) {
	p, err := r.pods.Load(u)
	if errors.Is(err, errdefs.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("stop pod %s: %w", u, err)
	}
	if p.Place != pod.InRun {
		return false, nil
	}
	failpoint.Hit(failpoint.StopBegun)
	if cut, ok := r.starts.Load(u); ok {
		cut.(context.CancelCauseFunc)(errStopped) //nolint:forcetypeassert // nothing else is stored
	}
	if err := r.pods.ClearReady(u); err != nil {
		return true, fmt.Errorf("stop pod %s: %w", u, err)
	}
	failpoint.Hit(failpoint.ReadyCleared)
	var g errgroup.Group
	for _, a := range p.Record.Apps {
		g.Go(func() error { return r.stopApp(ctx, p, a.Name, grace) })
	}
	if err := g.Wait(); err != nil {
		return true, fmt.Errorf("stop pod %s: %w", u, err)
	}
	return true, nil
}

// stopApp returns when the app's process is dead.
func (r *Runner) stopApp(ctx context.Context, p *pod.Pod, app string, grace time.Duration) error {
	s, ok := p.Started[app]
	if !ok || !s.Init.Alive() {
		return nil
	}
	sig, err := r.stopSignal(p, app)
	if err != nil {
		r.report(p.Record.UUID, "took SIGTERM for the stop signal", err)
	}
	if grace > 0 {
		if err := proc.Signal(s.Init, sig); err != nil && !errors.Is(err, errdefs.ErrNotFound) {
			r.report(p.Record.UUID, "could not send the stop signal", err)
		}
		failpoint.Hit(failpoint.StopSignalled)
		if dead, err := waitFor(ctx, s.Init, grace); dead || err != nil {
			return err
		}
	}
	if err := proc.Signal(s.Init, unix.SIGKILL); err != nil && !errors.Is(err, errdefs.ErrNotFound) {
		r.report(p.Record.UUID, "could not kill the process", err)
	}
	failpoint.Hit(failpoint.StopKilled)
	// From here on the caller's patience does not matter any more.
	ctx = context.WithoutCancel(ctx)
	if dead, _ := waitFor(ctx, s.Init, 2*time.Second); dead {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	if err := r.cgroups.Kill(ctx, s.Cgroup); err != nil {
		return fmt.Errorf("app %s: %w", app, err)
	}
	return nil
}

// stopSignal is the signal that asks an app to end; SIGTERM where what was asked
// for is no signal of this kernel.
func (r *Runner) stopSignal(p *pod.Pod, app string) (unix.Signal, error) {
	pm, err := p.Manifest()
	if err != nil {
		return unix.SIGTERM, err
	}
	sig, err := signal.ParseSignal(translate.StopSignal(pm, app))
	if err != nil {
		return unix.SIGTERM, fmt.Errorf("stop signal: %w", err)
	}
	return sig, nil
}

// waitFor waits at most that long for a process to end. The error is the caller's
// context's, when that ended first.
func waitFor(ctx context.Context, p pod.Process, most time.Duration) (dead bool, err error) {
	wctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	if proc.Wait(wctx, p) == nil {
		return true, nil
	}
	return false, ctx.Err()
}

// finish writes the exit records of a pod whose processes are dead and undoes
// what it held. A start that still holds the lock is waited for: Stop has ended ours,
// and the steps of another process's have deadlines.
func (r *Runner) finish(ctx context.Context, u manifest.UUID) (err error) {
	ctx = context.WithoutCancel(ctx)
	lctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	d, err := r.pods.Lock(lctx, u)
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("stop pod %s: %w", u, err)
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	return r.finishLocked(ctx, d)
}

func (r *Runner) finishLocked(ctx context.Context, d *pod.Dir) error {
	if inRun, err := r.recordEnds(ctx, d); !inRun || err != nil {
		return err
	}
	r.report(d.UUID(), leftToSweep, r.giveBack(ctx, d))
	return nil
}

// leftToSweep is what is reported when something cannot be undone yet.
const leftToSweep = "left something to a later sweep"

// recordEnds writes the exit records of a pod in run whose processes are dead. inRun says
// that it is still there.
func (r *Runner) recordEnds(ctx context.Context, d *pod.Dir) (inRun bool, err error) {
	if d.Place() != pod.InRun {
		return false, nil
	}
	if err := r.settle(ctx, d); err != nil {
		return true, err
	}
	p, err := r.pods.Load(d.UUID())
	if err != nil {
		return true, fmt.Errorf("stop pod %s: %w", d.UUID(), err)
	}
	if p.Place != pod.InRun {
		return false, nil // a start that was cut short went back to prepared
	}
	for _, a := range p.Record.Apps {
		if ph := p.AppPhase(a.Name); ph != pod.Ended {
			return true, fmt.Errorf("stop pod %s: app %s is %s: %w", d.UUID(), a.Name, ph, errStarted)
		}
	}
	return true, nil
}

// giveBack undoes what an ended pod held.
func (r *Runner) giveBack(ctx context.Context, d *pod.Dir) error {
	return errors.Join(r.pods.ClearReady(d.UUID()), r.undo(ctx, d, nil))
}

// Remove stops a pod at once and deletes it. It is idempotent. When nil is
// returned the pod is in no list any more; what could not be undone yet keeps its
// directory in garbage, where every sweep looks.
func (r *Runner) Remove(ctx context.Context, u manifest.UUID) error {
	return again(func() error { return r.remove(ctx, u) })
}

func (r *Runner) remove(ctx context.Context, u manifest.UUID) (err error) {
	inRun, err := r.end(ctx, u, 0)
	if err != nil {
		return err
	}
	if inRun {
		ctx = context.WithoutCancel(ctx) // it is dead: what it held goes
	}
	lctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	d, err := r.pods.Lock(lctx, u)
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove pod %s: %w", u, err)
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	var left error // tried once: a plugin that hangs takes its time every time
	switch d.Place() {
	case pod.Nowhere:
		return nil // the beginning of a prepare that was cut short: it has no record, and stage0 sweeps it
	case pod.InRun:
		if inRun, err = r.recordEnds(ctx, d); err != nil {
			return err
		}
		if inRun {
			left = r.giveBack(ctx, d)
		}
		err = d.MoveTo(pod.InExitedGarbage)
	case pod.InPrepare, pod.InPrepared:
		err = d.MoveTo(pod.InGarbage)
	}
	if err != nil {
		return err
	}
	if left == nil {
		left = r.delete(ctx, d)
	}
	r.report(u, leftToSweep, left)
	return nil
}

// delete removes the files of a pod in garbage, once nothing of it is left outside.
func (r *Runner) delete(ctx context.Context, d *pod.Dir) error {
	if err := r.undo(ctx, d, nil); err != nil {
		return err
	}
	return d.Delete()
}

// Sweep finds what killed processes and ended boots left in run and in garbage,
// and brings it to its end. It waits for nobody: a pod that somebody holds is
// left for the next time. What CNI plugins keep for pods that are gone is given back.
func (r *Runner) Sweep(ctx context.Context) error {
	uuids, err := r.pods.List()
	if err != nil {
		return fmt.Errorf("sweep: %w", err)
	}
	var errs []error
	for _, u := range uuids {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := r.sweepPod(ctx, u); err != nil {
			errs = append(errs, fmt.Errorf("sweep pod %s: %w", u, err))
		}
	}
	if err := r.releaseOrphans(ctx); err != nil {
		errs = append(errs, fmt.Errorf("sweep: %w", err))
	}
	return errors.Join(errs...)
}

func (r *Runner) sweepPod(ctx context.Context, u manifest.UUID) error {
	p, err := r.pods.Load(u)
	if err != nil {
		return r.sweepUnreadable(ctx, u, err)
	}
	if !r.wantsSweep(p) {
		return nil
	}
	return r.sweepFree(ctx, u, func(d *pod.Dir) error {
		// Looked at again under the lock: a start may have ended meanwhile.
		if p, err = r.pods.Load(u); err != nil || !r.wantsSweep(p) {
			return err
		}
		switch {
		case d.Place() == pod.InPrepared:
			return r.forgetStart(ctx, d)
		case len(p.Record.Apps) > 0:
			return r.settle(ctx, d)
		}
		return r.undo(ctx, d, nil)
	})
}

// forgetStart takes from a prepared pod what a start left that was cut short before
// the move to run or after the way back.
func (r *Runner) forgetStart(ctx context.Context, d *pod.Dir) error {
	if err := r.undo(ctx, d, nil); err != nil {
		return err
	}
	return d.RemoveRunDir()
}

// sweepFree deletes a pod that lies in garbage, and does live with one in prepared or
// in run. One that somebody holds, or that is gone, is left alone.
func (r *Runner) sweepFree(ctx context.Context, u manifest.UUID, live func(*pod.Dir) error) (err error) {
	d, err := r.pods.TryLock(u)
	if errors.Is(err, errdefs.ErrBusy) || errors.Is(err, errdefs.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	switch d.Place() {
	case pod.InPrepared, pod.InRun:
		return live(d)
	case pod.InExitedGarbage, pod.InGarbage:
		return r.delete(ctx, d)
	}
	return nil
}

// sweepUnreadable deletes what is left of a pod without a record that can be read:
// a deletion that was cut short, or a pod of an earlier boot that a power cut tore.
// A prepare that was cut short is stage0's.
func (r *Runner) sweepUnreadable(ctx context.Context, u manifest.UUID, cause error) error {
	if errors.Is(cause, errdefs.ErrNotFound) {
		cause = nil // gone, or never committed
	}
	return r.sweepFree(ctx, u, func(d *pod.Dir) error {
		if d.Record().UUID != "" || d.Place() != pod.InRun {
			return nil // written meanwhile, or stage0's
		}
		if _, err := os.Stat(d.RunPath()); !errors.Is(err, os.ErrNotExist) {
			return cause // of this boot: it may run
		}
		if err := d.MoveTo(pod.InGarbage); err != nil {
			return err
		}
		return r.delete(ctx, d)
	})
}

// wantsSweep is decided without a lock, so that running pods are not disturbed.
func (r *Runner) wantsSweep(p *pod.Pod) bool {
	switch p.Place {
	case pod.InExitedGarbage, pod.InGarbage:
		return true
	case pod.InPrepared:
		return r.begun(p.Record.UUID)
	case pod.InRun:
	default:
		return false
	}
	if len(p.Record.Apps) == 0 {
		return p.SandboxPhase() != pod.Up
	}
	for _, a := range p.Record.Apps {
		switch p.AppPhase(a.Name) {
		case pod.Up, pod.Unmonitored:
		default:
			return true
		}
	}
	return false
}

// begun says that a prepared pod has what only a start makes.
func (r *Runner) begun(u manifest.UUID) bool {
	claims, err := r.pods.Claims(u)
	_, serr := os.Lstat(r.pods.RunPath(u))
	return claims || err != nil || serr == nil
}

func waitEnd(ctx context.Context, p pod.Process) bool { return proc.Wait(ctx, p) == nil }

func isNotFound(err error) bool { return errors.Is(err, errdefs.ErrNotFound) }
