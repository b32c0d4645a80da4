package cri

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// bench is a kind of work whose runs and undos are counted.
type bench struct {
	js            *jobs
	runs, undos   atomic.Int32
	fail, undoing error
	takes         time.Duration
	claimed       string // what found answers
	blocked       error  // or what it fails with
}

func newBench(ctx context.Context) *bench {
	return &bench{js: newJobs(ctx, 2*time.Minute), takes: 10 * time.Second}
}

func (b *bench) work(want string) work {
	return work{
		key: "k", want: want, timeout: time.Minute,
		found: func() (string, error) { return b.claimed, b.blocked },
		run: func(ctx context.Context) (string, error) {
			b.runs.Add(1)
			select {
			case <-time.After(b.takes):
				return "made " + want, b.fail
			case <-ctx.Done():
				return "", ctx.Err()
			}
		},
		undo: func(context.Context, string) error {
			b.undos.Add(1)
			time.Sleep(time.Second) // an undo takes time, in the bubble's clock
			return b.undoing
		},
	}
}

func (b *bench) check(t *testing.T, runs, undos int32) {
	t.Helper()
	if b.runs.Load() != runs || b.undos.Load() != undos {
		t.Errorf("%d runs and %d undos, want %d and %d", b.runs.Load(), b.undos.Load(), runs, undos)
	}
}

type outcome struct {
	result string
	err    error
}

func (b *bench) call(ctx context.Context, w work) <-chan outcome {
	c := make(chan outcome, 1)
	go func() {
		result, err := b.js.do(ctx, w)
		c <- outcome{result, err}
	}()
	return c
}

func TestEqualRequestsJoin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t.Context())
		first := b.call(t.Context(), b.work("a"))
		time.Sleep(time.Second)
		second := b.call(t.Context(), b.work("a"))
		for _, c := range []<-chan outcome{first, second} {
			if o := <-c; o.err != nil || o.result != "made a" {
				t.Errorf("got %q, %v", o.result, o.err)
			}
		}
		time.Sleep(time.Hour) // a claimed result is never undone
		b.check(t, 1, 0)
	})
}

func TestAnotherRequestUnderAKeyIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t.Context())
		first := b.call(t.Context(), b.work("a"))
		time.Sleep(time.Second)
		if o := <-b.call(t.Context(), b.work("b")); !errors.Is(o.err, errdefs.ErrExists) {
			t.Errorf("while it runs: %v, want ErrExists", o.err)
		}
		<-first
		b.blocked = errdefs.ErrExists
		if o := <-b.call(t.Context(), b.work("b")); !errors.Is(o.err, errdefs.ErrExists) {
			t.Errorf("once it is claimed: %v, want ErrExists", o.err)
		}
		b.check(t, 1, 0)
	})
}

func TestClaimedObjectIsAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t.Context())
		b.claimed = "there already"
		if o := <-b.call(t.Context(), b.work("a")); o.result != "there already" {
			t.Errorf("got %q, %v", o.result, o.err)
		}
		b.check(t, 0, 0)
	})
}

// leave makes a call whose caller has gone after a second.
func (b *bench) leave(t *testing.T, w work) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if o := <-b.call(ctx, w); !errors.Is(o.err, context.DeadlineExceeded) {
		t.Errorf("abandoned call: %v, want DeadlineExceeded", o.err)
	}
}

func TestResultWaitsForAClaim(t *testing.T) {
	tests := []struct {
		name        string
		after       time.Duration // the second call's, counted from the first one's end
		want        string
		result      string
		runs, undos int32
	}{
		{"same request while it runs", 2 * time.Second, "a", "made a", 1, 0},
		{"same request in time", time.Minute, "a", "made a", 1, 0},
		{"same request too late", 5 * time.Minute, "a", "made a", 2, 1},
		{"same request while it is undone", 9*time.Second + 2*time.Minute + 500*time.Millisecond, "a", "made a", 2, 1},
		{"another request takes its place", time.Minute, "b", "made b", 2, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t.Context())
				b.leave(t, b.work("a"))
				time.Sleep(tt.after)
				if o := <-b.call(t.Context(), b.work(tt.want)); o.err != nil || o.result != tt.result {
					t.Errorf("got %q, %v, want %q", o.result, o.err, tt.result)
				}
				b.check(t, tt.runs, tt.undos)
				if len(b.js.pending()) != 0 {
					t.Errorf("still pending: %v", b.js.pending())
				}
			})
		})
	}
}

func TestFailureIsToldAndForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t.Context())
		b.fail = errdefs.ErrNoSpace
		if o := <-b.call(t.Context(), b.work("a")); !errors.Is(o.err, errdefs.ErrNoSpace) {
			t.Errorf("got %v", o.err)
		}
		b.fail = nil
		if o := <-b.call(t.Context(), b.work("a")); o.err != nil {
			t.Errorf("the second time: %v", o.err)
		}
		b.check(t, 2, 0)
	})
}

func TestFailedUndoFreesTheKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t.Context())
		b.undoing = errors.New("busy")
		b.leave(t, b.work("a"))
		time.Sleep(time.Minute)
		if !b.js.pending()["k"] {
			t.Error("an unclaimed result is not pending")
		}
		time.Sleep(time.Hour)
		if b.js.pending()["k"] {
			t.Error("what could not be undone is hidden for ever")
		}
	})
}

func TestJobHasItsOwnDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t.Context())
		b.takes = time.Hour
		start := time.Now()
		if o := <-b.call(t.Context(), b.work("a")); !errors.Is(o.err, context.DeadlineExceeded) || time.Since(start) != time.Minute {
			t.Errorf("got %v after %v", o.err, time.Since(start))
		}
	})
}

func TestPullEndsWithItsLastCaller(t *testing.T) {
	pull := func(b *bench) work {
		w := b.work("")
		w.undo, w.found, w.grace, w.timeout = nil, nil, 5*time.Second, 0
		return w
	}
	t.Run("cancelled after the grace", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t.Context())
			b.takes = time.Hour
			b.leave(t, pull(b))
			time.Sleep(4 * time.Second)
			if len(b.js.pending()) != 1 {
				t.Error("cancelled before the grace was over")
			}
			time.Sleep(2 * time.Second)
			if len(b.js.pending()) != 0 {
				t.Error("not cancelled")
			}
		})
	})
	t.Run("a new caller keeps it", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t.Context())
			b.takes = time.Minute
			b.leave(t, pull(b))
			time.Sleep(2 * time.Second)
			if o := <-b.call(t.Context(), pull(b)); o.err != nil {
				t.Error(o.err)
			}
			b.check(t, 1, 0)
		})
	})
	t.Run("sent away at once", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t.Context())
			b.takes = time.Hour
			b.leave(t, pull(b))
			start := time.Now()
			if err := b.js.send(t.Context(), "k"); err != nil || time.Since(start) != 0 || len(b.js.pending()) != 0 {
				t.Errorf("%v after %v, pending %v", err, time.Since(start), b.js.pending())
			}
		})
	})
}

func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t.Context())
		b.leave(t, b.work("a"))
		if err := b.js.drain(t.Context(), "k"); err != nil {
			t.Fatal(err)
		}
		b.check(t, 1, 1)
		if len(b.js.pending()) != 0 {
			t.Errorf("still pending: %v", b.js.pending())
		}
	})
}

func TestPanicCostsTheJobAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t.Context())
		w := b.work("a")
		w.run = func(context.Context) (string, error) { panic("boom") }
		if o := <-b.call(t.Context(), w); o.err == nil {
			t.Error("no error")
		}
	})
}
