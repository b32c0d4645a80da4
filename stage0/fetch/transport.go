package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
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
	maxRetries    = 3
	firstBackoff  = 200 * time.Millisecond
	maxRetryAfter = 10 * time.Second
)

// errTooLarge says that a registry serves a manifest that is no manifest.
var errTooLarge = fmt.Errorf("manifest of more than %d bytes: %w", docker.MaxManifestSize, errdefs.ErrInvalid)

// trace follows one operation, such as a download, through all of its requests.
type trace struct {
	mu      sync.Mutex
	url     string // of the last request, without its query
	retries int    // since the last progress
}

type traceKey struct{}

func withTrace(ctx context.Context) (context.Context, *trace) {
	t := &trace{}
	return context.WithValue(ctx, traceKey{}, t), t
}

// begin notes a request.
func (t *trace) begin(u *url.URL) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.url = clean(u)
}

// mayRetry takes one repetition from what is allowed and says after what time.
func (t *trace) mayRetry() (time.Duration, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.retries >= maxRetries {
		return 0, false
	}
	t.retries++
	return firstBackoff << (t.retries - 1), true
}

// progress says that bytes came: later trouble is new trouble.
func (t *trace) progress() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.retries = 0
}

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
// them too, but at once. It also keeps manifests to their size.
type transport struct {
	next http.RoundTripper
}

// RoundTrip is part of http.RoundTripper.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	tr, ok := req.Context().Value(traceKey{}).(*trace)
	if !ok {
		tr = &trace{}
	}
	for {
		tr.begin(req.URL)
		resp, err := t.next.RoundTrip(req)
		pause, retry := shouldRetry(req, resp, err, tr)
		if !retry {
			return limitManifest(req, resp, err)
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

// shouldRetry takes from the operation's repetitions only when another attempt
// makes sense.
func shouldRetry(req *http.Request, resp *http.Response, err error, tr *trace) (time.Duration, bool) {
	if req.Context().Err() != nil || (req.Body != nil && req.GetBody == nil) {
		return 0, false
	}
	if err != nil && !isConnectionError(err) {
		return 0, false
	}
	if err == nil && !isOverloaded(resp.StatusCode) {
		return 0, false
	}
	pause, ok := tr.mayRetry()
	if ok && err == nil {
		pause = max(pause, retryAfter(resp))
	}
	return pause, ok
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
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// retryAfter returns what the registry asks for, within reason. The form with a
// date is not in use among registries.
func retryAfter(resp *http.Response) time.Duration {
	s, err := strconv.Atoi(resp.Header.Get("Retry-After"))
	if err != nil || s < 0 {
		return 0
	}
	return min(time.Duration(s)*time.Second, maxRetryAfter)
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
	resp.Body = &limitedBody{ReadCloser: resp.Body, left: docker.MaxManifestSize}
	return resp, nil
}

type limitedBody struct {
	io.ReadCloser
	left int64
}

// Read is part of io.Reader.
func (b *limitedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return n, errTooLarge
	}
	return n, err
}

// explain gives an error of containerd's client its class and says where it
// happened, without the queries of signed URLs. A context that ended is the
// reason of whatever followed.
func (t *trace) explain(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", t.where(), context.Cause(ctx))
	}
	var status remoteerrors.ErrUnexpectedStatus
	if errors.As(err, &status) {
		return explainStatus(status, err)
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

func explainStatus(status remoteerrors.ErrUnexpectedStatus, err error) error {
	where := "registry"
	if u, err := url.Parse(status.RequestURL); err == nil {
		where = clean(u)
	}
	text := status.Status
	var said docker.Errors
	if errors.As(err, &said) {
		text += ": " + said.Error()
	}
	return fmt.Errorf("%s: %s: %w", where, strings.TrimSpace(text), statusClass(status.StatusCode))
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
