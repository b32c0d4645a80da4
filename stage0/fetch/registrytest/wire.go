package registrytest

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"testing"
)

// Wire is a proxy that counts what it sends of one blob. It can stop in the middle of
// the first answer, until the client goes away.
type Wire struct {
	*Proxy
	// Held is closed when the first answer has stopped.
	Held chan struct{}

	blob   string
	answer func(w http.ResponseWriter, q *http.Request, next http.Handler)

	mu     sync.Mutex // guards what follows
	asked  []string
	sent   []int64 // of each answer
	holdAt int64
}

// Wire starts a proxy for the blob of a digest, whose first answer stops after holdAt
// bytes; zero stops none. answer is as in Proxy, for the blob alone.
func (r *Registry) Wire(t testing.TB, blob string, holdAt int64, answer func(w http.ResponseWriter, q *http.Request, next http.Handler)) *Wire {
	t.Helper()
	x := &Wire{Held: make(chan struct{}), blob: blob, answer: answer, holdAt: holdAt}
	x.Proxy = r.Proxy(t, x.serve)
	return x
}

func (x *Wire) serve(w http.ResponseWriter, q *http.Request, next http.Handler) {
	if q.Method != http.MethodGet || !strings.HasSuffix(q.URL.Path, x.blob) {
		next.ServeHTTP(w, q)
		return
	}
	x.mu.Lock()
	n := len(x.asked)
	x.asked, x.sent = append(x.asked, q.Header.Get("Range")), append(x.sent, 0)
	x.mu.Unlock()
	w = &countedAnswer{w, q.Context(), x, n}
	if x.answer != nil {
		x.answer(w, q, next)
		return
	}
	next.ServeHTTP(w, q)
}

// Traffic is the ranges that were asked for, "" being everything, and how many bytes
// were sent for all of them.
func (x *Wire) Traffic() (asked []string, sent int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, n := range x.sent {
		sent += n
	}
	return x.asked, sent
}

type countedAnswer struct {
	http.ResponseWriter
	ctx  context.Context //nolint:containedctx // of this one request
	wire *Wire
	n    int // of the answer
}

// Write is part of io.Writer.
func (a *countedAnswer) Write(p []byte) (int, error) {
	send, stop := a.count(int64(len(p)))
	n, err := a.ResponseWriter.Write(p[:send])
	if err != nil || !stop {
		return n, err
	}
	a.ResponseWriter.(http.Flusher).Flush()
	close(a.wire.Held)
	<-a.ctx.Done()
	panic(http.ErrAbortHandler)
}

// count takes from n bytes those that may be sent before the answer stops.
func (a *countedAnswer) count(n int64) (send int64, stop bool) {
	x := a.wire
	x.mu.Lock()
	defer x.mu.Unlock()
	hold := a.n == 0 && x.holdAt > 0
	if hold {
		n = min(n, x.holdAt-x.sent[0])
	}
	x.sent[a.n] += n
	return n, hold && x.sent[0] == x.holdAt
}
