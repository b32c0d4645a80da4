package cri

import (
	"context"
	"fmt"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// undoTimeout bounds the undoing of a result that nobody claimed.
const undoTimeout = 2 * time.Minute

// work is one piece of work that a call asks for.
type work struct {
	// key names what is worked on. One job runs under a key at a time.
	key string
	// want tells requests under one key apart: only equal ones join.
	want string
	// timeout is the job's own deadline, whatever its callers' are; zero is none.
	timeout time.Duration
	// found returns the result of the same request that was claimed before, ""
	// if nothing holds the key, or an error if something else does. It is asked
	// with the jobs locked and must answer from memory. nil: nothing ever does.
	found func() (string, error)
	// run does the work and cleans up after itself when it fails.
	run func(context.Context) (string, error)
	// undo takes a result back that nobody claimed; nil: results need no claim.
	undo func(ctx context.Context, result string) error
	// grace, if not zero, is how long after its last caller has gone the job is
	// cancelled. Zero: it runs on.
	grace time.Duration
}

// jobs makes asking twice asking once: work belongs to the server, and calls
// join it, leave it and claim its result.
type jobs struct {
	base     context.Context //nolint:containedctx // the daemon's life, which jobs end with
	claimFor time.Duration   // how long a result waits for a claim
	tasks    sync.WaitGroup  // runs and undos in flight

	mu sync.Mutex // protects all, and every job in it
	// all are the jobs that run, whose result is not claimed, or that are being undone.
	all map[string]*job
}

func newJobs(base context.Context, claimFor time.Duration) *jobs {
	return &jobs{base: base, claimFor: claimFor, all: map[string]*job{}}
}

// phase is how far a job got.
type phase int

const (
	running phase = iota // no result yet; equal requests join
	waiting              // a result that nobody has claimed yet
	leaving              // cancelled or being undone; everybody waits until it is gone
)

type job struct {
	work
	phase   phase
	callers int
	cancel  context.CancelFunc
	timer   *time.Timer   // runs while there are no callers: cancels, or undoes
	done    chan struct{} // closed once result and err are set
	gone    chan struct{} // closed once the key is free
	result  string
	err     error
}

// admission is what became of a request: it was answered (no job), it takes part
// in a job, or it has to wait until a job that is leaving is gone.
type admission struct {
	job     *job
	leaving bool
	result  string
}

// do starts the work or joins the job that does it already, and waits for its
// result. A caller whose context ends leaves with the context's error; the job
// goes on. ErrExists says that the key is held by another request.
func (js *jobs) do(ctx context.Context, w work) (string, error) {
	for {
		a, err := js.admit(ctx, w)
		if err != nil || a.job == nil {
			return a.result, err
		}
		if !a.leaving {
			return js.await(ctx, a.job)
		}
		select {
		case <-a.job.gone:
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}

func (js *jobs) admit(ctx context.Context, w work) (admission, error) {
	if err := ctx.Err(); err != nil {
		return admission{}, err
	}
	js.mu.Lock()
	defer js.mu.Unlock()
	j := js.all[w.key]
	switch {
	case j == nil:
		if w.found != nil {
			if result, err := w.found(); err != nil || result != "" {
				return admission{result: result}, err
			}
		}
		return admission{job: js.start(ctx, w)}, nil
	case j.phase == leaving:
		return admission{job: j, leaving: true}, nil
	case j.want == w.want:
		j.callers++
		j.stopTimer()
		return admission{job: j}, nil
	case j.phase == waiting && j.callers == 0:
		js.leave(ctx, j)
		return admission{job: j, leaving: true}, nil
	}
	return admission{}, fmt.Errorf("%s: another request with another configuration is being worked on: %w", w.key, errdefs.ErrExists)
}

// start begins a job with one caller. The jobs are locked.
func (js *jobs) start(ctx context.Context, w work) *job {
	ctx = context.WithoutCancel(ctx)
	var cancel context.CancelFunc
	if w.timeout > 0 {
		ctx, cancel = context.WithTimeout(ctx, w.timeout)
	} else {
		ctx, cancel = context.WithCancel(ctx)
	}
	j := &job{work: w, callers: 1, cancel: cancel, done: make(chan struct{}), gone: make(chan struct{})}
	js.all[w.key] = j
	js.tasks.Go(func() {
		stop := context.AfterFunc(js.base, cancel)
		defer stop()
		defer cancel()
		result, err := call(ctx, w.run)
		js.finish(ctx, j, result, err)
	})
	return j
}

// call runs f; a panic in it costs the job, not the daemon.
func call(ctx context.Context, f func(context.Context) (string, error)) (result string, err error) {
	defer func() {
		if p := recover(); p != nil {
			klog.FromContext(ctx).Error(nil, "Job panicked", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return f(ctx)
}

func (js *jobs) finish(ctx context.Context, j *job, result string, err error) {
	js.mu.Lock()
	defer js.mu.Unlock()
	j.stopTimer()
	j.result, j.err = result, err
	close(j.done)
	if err != nil && j.callers == 0 {
		klog.FromContext(ctx).V(2).Info("Job failed after its callers had gone", "job", j.key, "err", err)
	}
	if err != nil || j.undo == nil {
		js.free(j)
		return
	}
	j.phase = waiting
	if j.callers == 0 {
		js.abandoned(ctx, j)
	}
}

// await waits for a job that this call is a caller of, and claims its result.
func (js *jobs) await(ctx context.Context, j *job) (string, error) {
	select {
	case <-j.done:
	case <-ctx.Done():
	}
	js.mu.Lock()
	defer js.mu.Unlock()
	j.callers--
	if err := ctx.Err(); err != nil {
		if j.callers == 0 {
			js.abandoned(ctx, j)
		}
		return "", err
	}
	if j.err != nil {
		return "", j.err
	}
	if j.phase == waiting {
		js.free(j) // the claim
	}
	return j.result, nil
}

// abandoned starts the clock of a job that has no callers. The jobs are locked.
func (js *jobs) abandoned(ctx context.Context, j *job) {
	ctx = context.WithoutCancel(ctx)
	switch {
	case j.phase == waiting:
		j.timer = time.AfterFunc(js.claimFor, func() { js.expire(ctx, j) })
	case j.phase == running && j.grace > 0 && !j.finished():
		j.timer = time.AfterFunc(j.grace, func() { js.expire(ctx, j) })
	}
}

// expire ends what nobody came back to: a job is cancelled, a result undone.
func (js *jobs) expire(ctx context.Context, j *job) {
	js.mu.Lock()
	defer js.mu.Unlock()
	if j.callers == 0 && js.all[j.key] == j {
		js.leave(ctx, j)
	}
}

// leave sends a job without callers away, once. The jobs are locked.
func (js *jobs) leave(ctx context.Context, j *job) {
	was := j.phase
	j.stopTimer()
	switch was {
	case running:
		j.phase = leaving
		j.cancel()
	case waiting:
		j.phase = leaving
		ctx = context.WithoutCancel(ctx)
		js.tasks.Go(func() { js.takeBack(ctx, j) })
	case leaving:
	}
}

func (js *jobs) takeBack(ctx context.Context, j *job) {
	ctx, cancel := context.WithTimeout(ctx, undoTimeout)
	defer cancel()
	log := klog.FromContext(ctx)
	_, err := call(ctx, func(ctx context.Context) (string, error) { return "", j.undo(ctx, j.result) })
	if err != nil {
		// The object stays and is listed from now on, so that it can be removed.
		log.Error(err, "Undoing an unclaimed result failed", "job", j.key, "result", j.result)
	} else {
		log.V(2).Info("Undid an unclaimed result", "job", j.key, "result", j.result)
	}
	js.mu.Lock()
	defer js.mu.Unlock()
	js.free(j)
}

// free gives the key back. The jobs are locked.
func (js *jobs) free(j *job) {
	if js.all[j.key] == j {
		delete(js.all, j.key)
		close(j.gone)
	}
	j.stopTimer()
}

// pending are the keys whose objects are in the making or not claimed yet: their
// objects are in no list. Take it after reading what is to be listed: an object
// is made after its key is taken.
func (js *jobs) pending() map[string]bool {
	js.mu.Lock()
	defer js.mu.Unlock()
	keys := make(map[string]bool, len(js.all))
	for k := range js.all {
		keys[k] = true
	}
	return keys
}

// drain waits until no job is left whose key begins with prefix. Results that
// nobody claimed and jobs that may be cancelled go at once, if they have no callers.
func (js *jobs) drain(ctx context.Context, prefix string) error {
	for {
		j := js.first(ctx, prefix)
		if j == nil {
			return nil
		}
		// A job that runs ends (done) before its result can be sent away (gone).
		done := j.done
		if closed(done) {
			done = nil
		}
		select {
		case <-done:
		case <-j.gone:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// send sends away the jobs whose key begins with prefix and that have no callers,
// and waits until they are gone. Jobs with callers run on.
func (js *jobs) send(ctx context.Context, prefix string) error {
	js.mu.Lock()
	var sent []*job
	for k, j := range js.all {
		if strings.HasPrefix(k, prefix) && j.callers == 0 {
			js.leave(ctx, j)
			sent = append(sent, j)
		}
	}
	js.mu.Unlock()
	for _, j := range sent {
		select {
		case <-j.gone:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// first finds a job below prefix and sends it away if that is possible.
func (js *jobs) first(ctx context.Context, prefix string) *job {
	js.mu.Lock()
	defer js.mu.Unlock()
	for k, j := range js.all {
		if !strings.HasPrefix(k, prefix) {
			continue
		}
		if j.callers == 0 && (j.phase == waiting || j.grace > 0) {
			js.leave(ctx, j)
		}
		return j
	}
	return nil
}

// wait returns once no job runs, or with the context's error.
func (js *jobs) wait(ctx context.Context) error {
	idle := make(chan struct{})
	go func() {
		js.tasks.Wait()
		close(idle)
	}()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (j *job) stopTimer() {
	if j.timer != nil {
		j.timer.Stop()
		j.timer = nil
	}
}

func (j *job) finished() bool { return closed(j.done) }

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
