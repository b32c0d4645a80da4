package stage0

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// pass waits for a slot in the background and then stays in it until done is called.
type pass struct {
	got  chan struct{}
	done func()
}

func (p *pass) running() bool {
	synctest.Wait()
	select {
	case <-p.got:
		return true
	default:
		return false
	}
}

func begin(t *testing.T, s *slots, limit int, of *share, mediaType string) *pass {
	t.Helper()
	p := &pass{got: make(chan struct{})}
	go func() {
		release, err := s.acquire(context.Background(), limit, of, mediaType)
		if err != nil {
			t.Error(err)
		}
		p.done = release
		close(p.got)
	}()
	synctest.Wait()
	return p
}

func count(passes []*pass) (running int) {
	for _, p := range passes {
		if p.running() {
			running++
		}
	}
	return running
}

// A slot goes to the image that has the fewest, not to who has waited longest.
func TestSlotsAreFair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s slots
		large, small := &share{}, &share{}
		var passes []*pass
		for range 10 {
			passes = append(passes, begin(t, &s, 4, large, ocispec.MediaTypeImageLayerGzip))
		}
		if n := count(passes); n != 4 {
			t.Fatalf("%d of 4 slots are taken", n)
		}
		one, two := begin(t, &s, 4, small, ocispec.MediaTypeImageLayerGzip), begin(t, &s, 4, small, ocispec.MediaTypeImageLayerGzip)
		passes[0].done()
		if !one.running() || two.running() || count(passes) != 4 {
			t.Errorf("the small image runs %v and %v, the large one %d", one.running(), two.running(), count(passes))
		}
		// Two against one: the next is the small one's again.
		passes[1].done()
		if !two.running() {
			t.Fatal("the small image has one slot of four")
		}
		one.done()
		two.done()
		for _, p := range passes[2:] {
			if !p.running() {
				t.Fatal("a layer has not got a slot in the end")
			}
			p.done()
		}
		if s.used != 0 || large.slots != 0 || large.memory != 0 || small.slots != 0 {
			t.Errorf("left %d, %+v, %+v", s.used, large, small)
		}
	})
}

// The memory is bounded by image: of layers that need much, fewer are fetched at once,
// and those of another image are not held up.
func TestSlotsBoundMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s slots
		a, b := &share{}, &share{}
		var of []*pass
		for range 4 {
			of = append(of, begin(t, &s, 10, a, ocispec.MediaTypeImageLayerZstd))
		}
		if n := count(of); n != 2 {
			t.Errorf("%d zstd layers at once, %d bytes", n, a.memory)
		}
		gzip := begin(t, &s, 10, b, ocispec.MediaTypeImageLayerGzip)
		if !gzip.running() {
			t.Error("another image waits")
		}
		of[0].done()
		if !of[2].running() || of[3].running() {
			t.Error("memory that was given back was not given to the next")
		}
		for _, p := range of[1:] {
			if !p.running() {
				t.Fatal("a layer has not got a slot in the end")
			}
			p.done()
		}
		gzip.done()
	})
}

// Who stops waiting has no slot, and keeps none from others.
func TestSlotsCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s slots
		of := &share{}
		first := begin(t, &s, 1, of, ocispec.MediaTypeImageLayer)
		gone := errors.New("gone")
		ctx, cancel := context.WithCancelCause(t.Context())
		ended := make(chan error)
		go func() {
			_, err := s.acquire(ctx, 1, of, ocispec.MediaTypeImageLayer)
			ended <- err
		}()
		synctest.Wait()
		next := begin(t, &s, 1, of, ocispec.MediaTypeImageLayer)
		cancel(gone)
		if err := <-ended; !errors.Is(err, gone) {
			t.Errorf("acquire = %v", err)
		}
		first.done()
		if !next.running() {
			t.Fatal("the slot went to who had gone")
		}
		next.done()
		if s.used != 0 || len(s.waiting) != 0 {
			t.Errorf("left %d, %d", s.used, len(s.waiting))
		}
	})
}
