package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	cerrdefs "github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

const (
	// maxRetries is how often one endpoint is asked again for one thing; one that
	// is not the last is given up for the next one after mirrorRetries.
	maxRetries    = 4
	mirrorRetries = 1
	firstBackoff  = 200 * time.Millisecond
	// maxPause bounds a pause, whatever a registry asks for: one that wants to be
	// left alone for longer is not asked again.
	maxPause = 20 * time.Second
)

// errTooLarge says that a registry serves a manifest that is no manifest.
var errTooLarge = fmt.Errorf("manifest of more than %d bytes: %w", docker.MaxManifestSize, errdefs.ErrInvalid)

// trace follows one operation, such as a download, through all of its requests.
type trace struct {
	found   []*Endpoint
	secrets *secrets

	mu      sync.Mutex // guards what follows
	url     string     // of the last request, without its query
	at      int        // the endpoint that the last request belongs to
	retries int        // at that endpoint since the last progress
	asked   [][]attempt
}

// attempt is a request and its answer, and how often they came in a row.
type attempt struct {
	request, answer string
	times           int
}

// maxAttempts is how many attempts at an endpoint an error tells of.
const maxAttempts = 6

type traceKey struct{}

func (m *remote) withTrace(ctx context.Context) (context.Context, *trace) {
	t := &trace{found: m.found, secrets: &m.secrets, asked: make([][]attempt, len(m.found))}
	return context.WithValue(ctx, traceKey{}, t), t
}

// begin notes a request. One to the host of no endpoint is a redirect or a token
// server, and belongs to the endpoint that was asked before.
func (t *trace) begin(u *url.URL) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.url = clean(u)
	i := slices.IndexFunc(t.found, func(e *Endpoint) bool { return e.host.Host == u.Host })
	if i >= 0 && i != t.at {
		t.at, t.retries = i, 0
	}
}

// end notes the answer.
func (t *trace) end(req *http.Request, resp *http.Response, err error) {
	a := attempt{request: req.Method + " " + clean(req.URL), times: 1}
	if err != nil {
		a.answer = err.Error()
	} else {
		a.answer = resp.Status
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.at >= len(t.asked) {
		return
	}
	all := t.asked[t.at]
	if n := len(all); n > 0 && all[n-1].request == a.request && all[n-1].answer == a.answer {
		all[n-1].times++
		return
	}
	t.asked[t.at] = append(all, a)
}

// mayRetry takes one repetition from what is allowed and says after what time;
// after is what the registry asks for.
func (t *trace) mayRetry(after time.Duration) (time.Duration, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	allowed := maxRetries
	if t.at < len(t.found)-1 {
		allowed = mirrorRetries
	}
	if t.retries >= allowed || after > maxPause {
		return 0, false
	}
	t.retries++
	pause := firstBackoff << (t.retries - 1)
	// Many nodes that were refused at once shall not come back at once.
	pause += rand.N(pause / 4) //nolint:gosec // no secret
	return max(pause, after), true
}

// progress says that bytes came: later trouble is new trouble.
func (t *trace) progress() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.retries = 0
}

// String tells which endpoints were asked, by what rule, as whom, and what they
// answered.
func (t *trace) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var parts []string
	for i, e := range t.found {
		answers := "not asked"
		if all := t.asked[i]; len(all) > 0 {
			answers = describe(all)
		}
		parts = append(parts, fmt.Sprintf("%s (%s; credentials: %s): %s", e.URL, e.Rule, e.auth.origin(), answers))
	}
	return t.secrets.hide(strings.Join(parts, "; "))
}

func describe(all []attempt) string {
	var parts []string
	if left := len(all) - maxAttempts; left > 0 {
		parts = append(parts, fmt.Sprintf("%d requests, then", left))
		all = all[left:]
	}
	for _, a := range all {
		text := a.request + ": " + a.answer
		if a.times > 1 {
			text += fmt.Sprintf(", %d times", a.times)
		}
		parts = append(parts, text)
	}
	return strings.Join(parts, ", ")
}

// tracedError is an error with the way that led to it.
type tracedError struct {
	err   error
	trace string
}

// Error ends with the trace, so that it begins with what went wrong.
func (e *tracedError) Error() string { return e.err.Error() + " [asked " + e.trace + "]" }

// Unwrap returns what went wrong.
func (e *tracedError) Unwrap() error { return e.err }

func (t *trace) where() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.url == "" {
		return "registry"
	}
	return t.url
}

// clean leaves out what a URL may hide: passwords and signed queries.
func clean(u *url.URL) string {
	c := *u
	c.RawQuery, c.Fragment, c.User = "", "", nil
	return c.String()
}

// transport repeats requests that a registry had no time for, and those that
// found no connection, with growing pauses: containerd's client repeats some of
// them too, but at once. It also keeps manifests to their size, and asks for bytes as
// they are stored, whatever containerd's client asks for.
type transport struct {
	next http.RoundTripper
	base *http.Transport // at the end of next
}

// RoundTrip is part of http.RoundTripper.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	tr, ok := req.Context().Value(traceKey{}).(*trace)
	if !ok {
		tr = &trace{secrets: &secrets{}}
	}
	req = withoutCoding(req)
	for {
		tr.begin(req.URL)
		resp, err := t.next.RoundTrip(req)
		tr.end(req, resp, err)
		pause, retry := shouldRetry(req, resp, err, tr)
		if !retry {
			return answer(req, resp, err)
		}
		if resp != nil {
			_ = resp.Body.Close() // its answer is thrown away
		}
		if err := sleep(req.Context(), pause); err != nil {
			return nil, err
		}
		if req, err = again(req); err != nil {
			return nil, err
		}
	}
}

// answer makes of an answer what containerd's client can be trusted with.
func answer(req *http.Request, resp *http.Response, err error) (*http.Response, error) {
	if err == nil && isOverloaded(resp.StatusCode) {
		// containerd would ask again, at once.
		return nil, errors.Join(remoteerrors.NewUnexpectedStatusErr(resp), resp.Body.Close())
	}
	if err == nil {
		if err = checkCoding(resp); err == nil {
			err = checkRange(req, resp)
		}
		if err != nil {
			return nil, errors.Join(err, resp.Body.Close())
		}
		resp.Body = &brokenBody{resp.Body}
	}
	return limitManifest(req, resp, err)
}

// withoutCoding asks for the bytes themselves. containerd's client offers to take
// them compressed on the way, and decodes what comes with decoders of its own: a
// window of half a gibibyte, and any number of bytes on the wire for the few that the
// descriptor states.
func withoutCoding(req *http.Request) *http.Request {
	req = req.Clone(req.Context())
	req.Header.Set("Accept-Encoding", "identity")
	return req
}

// checkCoding refuses bytes that were compressed on the way although nobody asked
// for it. What a failure says about itself is never decoded, and may be anything.
func checkCoding(resp *http.Response) error {
	if resp.StatusCode < http.StatusOK || resp.StatusCode >= http.StatusMultipleChoices {
		return nil
	}
	// All lines, and each with all its parts: what counts is what any reader could see.
	for part := range strings.SplitSeq(strings.Join(resp.Header.Values("Content-Encoding"), ","), ",") {
		if part = strings.TrimSpace(part); part != "" && !strings.EqualFold(part, "identity") {
			return fmt.Errorf("it sent Content-Encoding %q, though it was asked for the bytes as they are (Accept-Encoding: identity): %w", part, errdefs.ErrUnverified)
		}
	}
	return nil
}

// checkRange holds a part to what was asked for.
func checkRange(req *http.Request, resp *http.Response) error {
	want, found := strings.CutPrefix(req.Header.Get("Range"), "bytes=")
	if !found || resp.StatusCode != http.StatusPartialContent {
		return nil
	}
	if got := resp.Header.Get("Content-Range"); !strings.HasPrefix(got, "bytes "+want) {
		return fmt.Errorf("asked for bytes %s, got range %q: %w", want, got, errdefs.ErrUnverified)
	}
	return nil
}

// brokenBody gives a broken transfer an error of our own: what containerd does
// about it has no pause and no word of why it did not help.
type brokenBody struct{ io.ReadCloser }

// Read is part of io.Reader.
func (b *brokenBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = errBroken
	}
	return n, err
}

var errBroken = errors.New("the connection ended in the middle of the transfer")

// shouldRetry takes from the operation's repetitions only when another attempt
// makes sense.
func shouldRetry(req *http.Request, resp *http.Response, err error, tr *trace) (time.Duration, bool) {
	if req.Context().Err() != nil || (req.Body != nil && req.Body != http.NoBody && req.GetBody == nil) {
		return 0, false
	}
	if err != nil {
		if !isConnectionError(err) {
			return 0, false
		}
		return tr.mayRetry(0)
	}
	if !isOverloaded(resp.StatusCode) {
		return 0, false
	}
	return tr.mayRetry(retryAfter(resp, time.Now()))
}

func isConnectionError(err error) bool {
	var dns *net.DNSError
	if errors.As(err, &dns) {
		return dns.IsTemporary
	}
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

func isOverloaded(code int) bool {
	switch code {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// retryAfter returns how long the registry wants to be left alone (RFC 9110,
// 10.2.3), zero when it does not say.
func retryAfter(resp *http.Response, now time.Time) time.Duration {
	said := resp.Header.Get("Retry-After")
	if s, err := strconv.ParseInt(said, 10, 32); err == nil {
		return max(0, time.Duration(s)*time.Second)
	}
	if at, err := http.ParseTime(said); err == nil {
		return max(0, at.Sub(now))
	}
	return 0
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// again returns the request with a fresh body.
func again(req *http.Request) (*http.Request, error) {
	req = req.Clone(req.Context())
	if req.GetBody == nil {
		return req, nil
	}
	body, err := req.GetBody()
	req.Body = body
	return req, err
}

// limitManifest refuses documents that are too large before anyone reads them:
// containerd's resolver would count, and hash, a body without end.
func limitManifest(req *http.Request, resp *http.Response, err error) (*http.Response, error) {
	if err != nil || !strings.Contains(req.URL.Path, "/manifests/") {
		return resp, err
	}
	if resp.ContentLength > docker.MaxManifestSize {
		return nil, errors.Join(errTooLarge, resp.Body.Close())
	}
	resp.Body = &limitedBody{ReadCloser: resp.Body, left: docker.MaxManifestSize, err: errTooLarge}
	return resp, nil
}

type limitedBody struct {
	io.ReadCloser
	left int64
	err  error // when there is more
}

// Read is part of io.Reader.
func (b *limitedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return n, b.err
	}
	return n, err
}

// explain gives an error of containerd's client its class and says where it
// happened, without the queries of signed URLs. A context that ended is the
// reason of whatever followed. The trace is added.
func (t *trace) explain(ctx context.Context, err error) error {
	return &tracedError{t.classify(ctx, err), t.String()}
}

func (t *trace) classify(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", t.where(), context.Cause(ctx))
	}
	var status remoteerrors.ErrUnexpectedStatus
	if errors.As(err, &status) {
		return t.explainStatus(status, err)
	}
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	if errors.Is(err, io.EOF) {
		// A connection that was closed before its answer; nobody above may take
		// it for the end of the bytes.
		err = io.ErrUnexpectedEOF
	}
	switch {
	case cerrdefs.IsNotFound(err):
		err = errdefs.ErrNotFound // what the client adds is the reference, again
	case cerrdefs.IsNotImplemented(err):
		err = errSchema1
	}
	class := classOf(err)
	if class == nil {
		return fmt.Errorf("%s: %w", t.where(), err)
	}
	return fmt.Errorf("%s: %w: %w", t.where(), err, class)
}

// ours are the classes that code of this package gives; they are kept.
var ours = []error{errdefs.ErrInvalid, errdefs.ErrUnverified, errdefs.ErrUnsupported, errdefs.ErrDenied, errdefs.ErrNotFound, errdefs.ErrUnavailable}

// classOf returns the class of an error that is not an HTTP status, nil if it
// has one already.
func classOf(err error) error {
	for _, c := range ours {
		if errors.Is(err, c) {
			return nil
		}
	}
	switch {
	case errors.Is(err, docker.ErrInvalidAuthorization):
		return errdefs.ErrDenied
	case cerrdefs.IsFailedPrecondition(err): // more bytes than the descriptor says
		return errdefs.ErrUnverified
	case errors.Is(err, digest.ErrDigestInvalidFormat), errors.Is(err, digest.ErrDigestInvalidLength), errors.Is(err, digest.ErrDigestUnsupported):
		return errdefs.ErrUnverified
	}
	return errdefs.ErrUnavailable
}

func (t *trace) explainStatus(status remoteerrors.ErrUnexpectedStatus, err error) error {
	where := "registry"
	if u, err := url.Parse(status.RequestURL); err == nil {
		where = clean(u)
	}
	text := status.Status
	var said docker.Errors
	if errors.As(err, &said) {
		text += ": " + said.Error()
	}
	return fmt.Errorf("%s: %s: %w", where, t.secrets.hide(strings.TrimSpace(text)), statusClass(status.StatusCode))
}

func statusClass(code int) error {
	switch {
	case code == http.StatusUnauthorized, code == http.StatusForbidden:
		return errdefs.ErrDenied
	case code == http.StatusNotFound, code == http.StatusGone:
		return errdefs.ErrNotFound
	case code == http.StatusTooManyRequests, code == http.StatusRequestTimeout, code >= http.StatusInternalServerError:
		return errdefs.ErrUnavailable
	}
	return errdefs.ErrInvalid
}
