package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/imageref"
)

const (
	defaultResolveTimeout = 30 * time.Second
	defaultIdleTimeout    = 60 * time.Second
	userAgent             = "gantry"
)

// Config says how registries are reached. The zero value is right for a node
// without a mirror.
type Config struct {
	// HostsDir is a directory in the manner of certs.d: DIR/<registry>/hosts.toml
	// names mirrors, certificates and headers, DIR/_default/ those of all other
	// registries. It is read at each Resolve. Without an entry a registry is asked
	// by https, one on a loopback address by https without a check of its
	// certificate and then by http, as docker does.
	HostsDir string
	// ResolveTimeout bounds Resolve as a whole, and each connection's handshake
	// and answer after that. Zero means 30 seconds, or IdleTimeout if that is shorter.
	ResolveTimeout time.Duration
	// IdleTimeout bounds how long a download may get no byte, connecting and
	// repeating included. Zero means 60 seconds.
	IdleTimeout time.Duration
}

// Registry opens images in registries. It keeps nothing between two calls, so
// what one caller's credentials allowed is never lent to another.
type Registry struct {
	cfg Config
}

// NewRegistry returns a source of images in registries.
func NewRegistry(cfg Config) *Registry {
	if cfg.IdleTimeout <= 0 {
		cfg.IdleTimeout = defaultIdleTimeout
	}
	if cfg.ResolveTimeout <= 0 {
		cfg.ResolveTimeout = min(defaultResolveTimeout, cfg.IdleTimeout)
	}
	return &Registry{cfg: cfg}
}

// Resolve asks the registry what ref stands for now. With a digest in ref the
// registry is asked whether it has it for these credentials. A nil creds is
// anonymous.
func (r *Registry) Resolve(ctx context.Context, ref imageref.Ref, creds Credentials) (Remote, error) {
	if ref.IsZero() {
		return nil, fmt.Errorf("resolve an empty reference: %w", errdefs.ErrInvalid)
	}
	m := &remote{cfg: r.cfg}
	hosts := lazyHosts(func(host string) ([]docker.RegistryHost, error) { return m.hosts(host, creds) })
	resolver := docker.NewResolver(docker.ResolverOptions{Hosts: hosts, Headers: http.Header{"User-Agent": {userAgent}}})
	ctx, tr := withTrace(discardLogs(ctx))
	ctx, cancel := context.WithTimeoutCause(ctx, r.cfg.ResolveTimeout, fmt.Errorf("no answer within %s: %w", r.cfg.ResolveTimeout, errdefs.ErrUnavailable))
	defer cancel()
	_, desc, err := resolver.Resolve(ctx, ref.Name())
	if err == nil {
		m.desc = desc
		m.fetcher, err = resolver.Fetcher(ctx, ref.Name())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("resolve %s: %w", ref, tr.explain(ctx, err)), m.Close())
	}
	return m, nil
}

// lazyHosts asks find once, so that all requests of one image share connections
// and tokens.
func lazyHosts(find docker.RegistryHosts) docker.RegistryHosts {
	var once sync.Once
	var hosts []docker.RegistryHost
	var err error
	return func(host string) ([]docker.RegistryHost, error) {
		once.Do(func() { hosts, err = find(host) })
		return hosts, err
	}
}

// remote is an image in a registry.
type remote struct {
	cfg     Config
	desc    ocispec.Descriptor
	fetcher remotes.Fetcher
	pools   []*http.Transport // to be emptied by Close
}

// hosts finds the hosts that serve a registry.
func (m *remote) hosts(host string, creds Credentials) ([]docker.RegistryHost, error) {
	opts := config.HostOptions{Credentials: creds, UpdateClient: m.updateClient}
	if m.cfg.HostsDir != "" {
		opts.HostDir = config.HostDirFromRoot(m.cfg.HostsDir)
	}
	// containerd logs a hosts.toml that it cannot read and goes on with the
	// upstream registry, which may be just what the file forbids.
	var complaint logHook
	logger := logrus.New()
	logger.SetOutput(io.Discard)
	logger.SetLevel(logrus.ErrorLevel)
	logger.AddHook(&complaint)
	hosts, err := config.ConfigureHosts(log.WithLogger(context.Background(), logrus.NewEntry(logger)), opts)(host)
	if err == nil {
		err = complaint.err
	}
	if err != nil {
		return nil, fmt.Errorf("hosts of registry %s in %s: %w: %w", host, m.cfg.HostsDir, err, errdefs.ErrInvalid)
	}
	return hosts, nil
}

// logHook makes an error of the first error that is logged.
type logHook struct{ err error }

// Levels is part of logrus.Hook.
func (h *logHook) Levels() []logrus.Level { return []logrus.Level{logrus.ErrorLevel} }

// Fire is part of logrus.Hook.
func (h *logHook) Fire(e *logrus.Entry) error {
	if h.err == nil {
		h.err = errors.New(e.Message)
		if cause, ok := e.Data[logrus.ErrorKey].(error); ok {
			h.err = fmt.Errorf("%s: %w", e.Message, cause)
		}
	}
	return nil
}

// updateClient puts our transport between containerd's client and its
// connections. containerd may call it twice for one client.
func (m *remote) updateClient(c *http.Client) error {
	base, ok := c.Transport.(*http.Transport)
	if !ok {
		return nil
	}
	base.TLSHandshakeTimeout = min(base.TLSHandshakeTimeout, m.cfg.ResolveTimeout)
	base.ResponseHeaderTimeout = min(base.ResponseHeaderTimeout, m.cfg.ResolveTimeout)
	base.MaxIdleConnsPerHost = base.MaxIdleConns
	m.pools = append(m.pools, base)
	c.Transport = &transport{next: base}
	return nil
}

// Digest is part of Remote.
func (m *remote) Digest() digest.Digest { return m.desc.Digest }

// Close is part of Remote.
func (m *remote) Close() error {
	for _, p := range m.pools {
		p.CloseIdleConnections()
	}
	return nil
}

// discardLogs keeps containerd's client from writing to the process's stderr:
// what it has to say comes back as an error.
func discardLogs(ctx context.Context) context.Context {
	logger := logrus.New()
	logger.SetOutput(io.Discard)
	logger.SetLevel(logrus.PanicLevel)
	return log.WithLogger(ctx, logrus.NewEntry(logger))
}
