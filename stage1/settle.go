package stage1

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/failpoint"
	"github.com/gantry-cri/gantry/stage0/manifest"
	"github.com/gantry-cri/gantry/stage0/pod"
	"github.com/gantry-cri/gantry/stage1/cgroup"
	"github.com/gantry-cri/gantry/stage1/monitor"
	"github.com/gantry-cri/gantry/stage1/proc"
)

// Watch tells when an app ends. The channel yields once, when the exit record is
// on disk and the output is drained; at once if that is so already. It is closed
// without a value when ctx ends first or the pod is gone.
func (r *Runner) Watch(ctx context.Context, u manifest.UUID, app string) (<-chan pod.Exit, error) {
	p, err := r.pods.Load(u)
	if err != nil {
		return nil, fmt.Errorf("watch pod %s: %w", u, err)
	}
	out := make(chan pod.Exit, 1)
	go func() {
		defer close(out)
		if exit, err := r.await(ctx, p, app); err == nil {
			out <- exit
		}
	}()
	return out, nil
}

func (r *Runner) await(ctx context.Context, p *pod.Pod, app string) (pod.Exit, error) {
	if s, ok := p.Started[app]; ok {
		if err := proc.Wait(ctx, s.Init); err != nil {
			return pod.Exit{}, err
		}
		r.drain(ctx, s.Monitor)
	}
	if err := r.Settle(ctx, p.Record.UUID); err != nil {
		return pod.Exit{}, err
	}
	if err := p.Refresh(); err != nil {
		return pod.Exit{}, err
	}
	exit, ok := p.Exits[app]
	if !ok {
		return pod.Exit{}, fmt.Errorf("app %s of pod %s: %w", app, p.Record.UUID, errdefs.ErrState)
	}
	return exit, nil
}

// drain waits until the monitor has written what is left of the output, and kills
// it when it does not come to an end.
func (r *Runner) drain(ctx context.Context, m pod.Process) {
	ctx, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	if proc.Wait(ctx, m) != nil {
		_ = proc.Signal(m, unix.SIGKILL) // gone meanwhile, or Settle finds it alive and says so
	}
	failpoint.Hit(failpoint.MonitorDrained)
}

// Settle writes the exit records that are due and undoes what the ended apps held.
// Whoever finds a pod whose process has gone may call it; the record is written
// once. A start that was cut short is taken over if the process runs, else undone.
func (r *Runner) Settle(ctx context.Context, u manifest.UUID) (err error) {
	lctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	d, err := r.pods.Lock(lctx, u)
	if err != nil {
		return fmt.Errorf("settle pod %s: %w", u, err)
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	return r.settle(ctx, d)
}

func (r *Runner) settle(ctx context.Context, d *pod.Dir) error {
	if d.Place() != pod.InRun {
		return nil
	}
	p, err := r.pods.Load(d.UUID())
	if err != nil {
		return fmt.Errorf("settle pod %s: %w", d.UUID(), err)
	}
	if p.Unsaved {
		if err := d.SaveExits(); err != nil {
			r.report(d.UUID(), "still has exit records in the run directory alone", err)
		}
	}
	if err := r.settleStart(ctx, d, p); err != nil {
		return fmt.Errorf("settle pod %s: %w", d.UUID(), err)
	}
	ended := 0
	for _, a := range p.Record.Apps {
		over, err := r.settleApp(ctx, d, p, a.Name)
		if err != nil {
			return fmt.Errorf("settle app %s of pod %s: %w", a.Name, d.UUID(), err)
		}
		if over {
			ended++
		}
	}
	if ended < len(p.Record.Apps) || ended == 0 || d.Place() != pod.InRun {
		return nil
	}
	// Every app has its record: what the pod's apps shared goes too.
	if err := errors.Join(r.pods.ClearReady(d.UUID()), r.undo(ctx, d, nil)); err != nil {
		r.report(d.UUID(), "left something to a later sweep", err)
	}
	return nil
}

// settleStart deals with apps that were accepted and have neither started nor
// ended. We hold the lock, so nobody is starting them any more.
func (r *Runner) settleStart(ctx context.Context, d *pod.Dir, p *pod.Pod) error {
	cut := false
	for _, a := range p.Record.Apps {
		if p.AppPhase(a.Name) != pod.Starting {
			continue
		}
		adopted, err := r.adopt(ctx, d, a.Name)
		if err != nil {
			return err
		}
		cut = cut || !adopted
	}
	if cut {
		if err := r.fail(ctx, d, errors.New("the start was cut short")); err != nil {
			return err
		}
	}
	return p.Refresh()
}

// adopt looks whether a start that was cut short got as far as a running process,
// and writes then what the start could not write any more.
func (r *Runner) adopt(ctx context.Context, d *pod.Dir, app string) (bool, error) {
	c, ok, err := r.containerOf(d, app)
	if err != nil || !ok {
		return false, err
	}
	state, err := r.stateOf(ctx, c)
	if errors.Is(err, errdefs.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if state.Status != "running" {
		return false, nil
	}
	init, err := pod.ReadProcess(state.Pid)
	if errors.Is(err, errdefs.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	mon, err := readMonitor(r.pods.AppRunPath(d.UUID(), app, "monitor.pid"))
	if err != nil {
		return false, nil
	}
	group, err := r.groupOf(state.Pid, c.Cgroup)
	if errors.Is(err, errdefs.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, d.WriteStarted(app, pod.Started{Init: init, Monitor: mon, StartedAt: time.Now(), Cgroup: group, OOMBefore: r.oomKillsAround(c.Cgroup)})
}

// stateOf asks the runtime for a container's state. The monitor of a start that
// was cut short goes on by itself, and while the runtime still creates the
// container it cannot answer: it is asked again for a while.
func (r *Runner) stateOf(ctx context.Context, c containerIntent) (specs.State, error) {
	ctx, cancel := context.WithTimeout(ctx, createTimeout)
	defer cancel()
	for {
		state, err := c.client().State(ctx, c.ID)
		if err == nil || errors.Is(err, errdefs.ErrNotFound) {
			return state, err
		}
		select {
		case <-ctx.Done():
			return state, err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// containerOf finds the intent that made the app's container.
func (r *Runner) containerOf(d *pod.Dir, app string) (containerIntent, bool, error) {
	intents, err := d.Intents()
	if err != nil {
		return containerIntent{}, false, err
	}
	return findContainer(intents, app)
}

func findContainer(intents []pod.Intent, app string) (c containerIntent, ok bool, err error) {
	for _, in := range intents {
		if in.Kind != intentContainer || in.App != app {
			continue
		}
		err := undoWith(in, func(v containerIntent) error { c = v; return nil })
		return c, err == nil, err
	}
	return containerIntent{}, false, nil
}

// settleApp writes the exit record of one app if it is due, and says whether the
// app has ended.
func (r *Runner) settleApp(ctx context.Context, d *pod.Dir, p *pod.Pod, app string) (bool, error) {
	switch p.AppPhase(app) {
	case pod.Ended:
		return true, nil
	case pod.Lost:
	case pod.Draining:
		r.drain(ctx, p.Started[app].Monitor)
	default:
		return false, nil
	}
	exit, err := r.exitOf(d, p, app)
	if err != nil {
		return false, err
	}
	failpoint.Hit(failpoint.ExitRead)
	if err := d.WriteExit(app, exit); err != nil {
		return false, err
	}
	if err := r.undo(ctx, d, ofApp(app)); err != nil {
		r.report(d.UUID(), "left something to a later sweep", err)
	}
	return true, nil
}

// exitOf reads the monitor's mailbox. Where there is no letter the end is unknown.
func (r *Runner) exitOf(d *pod.Dir, p *pod.Pod, app string) (pod.Exit, error) {
	started := p.Started[app]
	exit := pod.Exit{Code: 255, Reason: "Unknown", Message: "the exit code was lost", StartedAt: started.StartedAt, EndedAt: time.Now()}
	c, ok, err := r.containerOf(d, app)
	if err != nil || !ok {
		return exit, err
	}
	letter, ok, err := monitor.ReadExit(r.pods.AppRunPath(d.UUID(), app, "exit"), c.ID)
	if err != nil || !ok {
		return exit, err
	}
	exit.Code, exit.EndedAt, exit.Message = letter.Code, letter.Time, ""
	if exit.EndedAt.Before(exit.StartedAt) {
		// A file's time is of the last tick of the kernel's clock, and an app that ends at
		// once does so while the runtime's start still returns.
		exit.EndedAt = exit.StartedAt
	}
	switch {
	case letter.Code == 0:
		exit.Reason = "Completed"
	case r.outOfMemory(d, app, c, started, letter.Code):
		exit.Reason = "OOMKilled"
	default:
		exit.Reason = "Error"
	}
	return exit, nil
}

// outOfMemory says whether the kernel killed a process of the app for want of
// memory. systemd removes a scope with its last process, and with it what the
// kernel counted there. Then the monitor may have seen it; it loses that race on a
// busy machine, and what the parent counted since the start tells. (Where another
// container of the pod ran out of memory meanwhile and this one was killed for
// another reason, that is wrong about the reason.)
func (r *Runner) outOfMemory(d *pod.Dir, app string, c containerIntent, started pod.Started, code int32) bool {
	if kills, err := r.cgroups.OOMKills(c.Cgroup); err == nil {
		return kills > 0
	}
	if monitor.SawOOM(r.pods.AppRunPath(d.UUID(), app, "bundle")) {
		return true
	}
	return code == 128+int32(unix.SIGKILL) && r.oomKillsAround(c.Cgroup) > started.OOMBefore
}

// oomKillsAround is what the parent of a group has counted, below it too and of
// groups that are gone; 0 on v1, which does not count so.
func (r *Runner) oomKillsAround(group string) uint64 {
	if r.cgroups.Mode() != cgroup.V2 {
		return 0
	}
	kills, err := r.cgroups.OOMKills(filepath.Dir(group))
	if err != nil {
		return 0 // a slice that systemd has not made yet, or the root
	}
	return kills
}

// readMonitor names the process that a pid file says is the monitor.
func readMonitor(path string) (pod.Process, error) {
	pid, err := proc.ReadPIDFile(path)
	if err != nil {
		return pod.Process{}, err
	}
	return pod.ReadProcess(pid)
}
