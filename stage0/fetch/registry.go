package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"

	"github.com/gantry-cri/gantry/stage0/credential"
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
	// Credentials are those of a repository for requests that bring none; nil is
	// anonymous.
	Credentials func(repository string) credential.Source
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
// registry is asked whether it has it for these credentials. With a nil creds the
// configured ones are asked.
func (r *Registry) Resolve(ctx context.Context, ref imageref.Ref, creds credential.Source) (Remote, error) {
	if ref.IsZero() {
		return nil, fmt.Errorf("resolve an empty reference: %w", errdefs.ErrInvalid)
	}
	m, err := r.open(ref, creds)
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", ref, err)
	}
	if err := m.resolve(ctx, ref, m.found); err != nil {
		return nil, errors.Join(fmt.Errorf("resolve %s: %w", ref, err), m.Close())
	}
	return m, nil
}

// open finds the endpoints and asks none of them.
func (r *Registry) open(ref imageref.Ref, creds credential.Source) (*remote, error) {
	if creds == nil && r.cfg.Credentials != nil {
		creds = r.cfg.Credentials(ref.Repository())
	}
	m := &remote{cfg: r.cfg, bases: map[*http.Client]*http.Transport{}}
	var err error
	if m.found, err = m.endpoints(ref, creds); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// resolve asks endpoints what a reference stands for.
func (m *remote) resolve(ctx context.Context, ref imageref.Ref, at []*Endpoint) error {
	resolver := docker.NewResolver(docker.ResolverOptions{
		Hosts:   func(string) ([]docker.RegistryHost, error) { return hosts(at), nil },
		Headers: http.Header{"User-Agent": {userAgent}},
	})
	ctx, tr := m.withTrace(discardLogs(ctx))
	ctx, cancel := context.WithTimeoutCause(ctx, m.cfg.ResolveTimeout, fmt.Errorf("no answer within %s: %w", m.cfg.ResolveTimeout, errdefs.ErrUnavailable))
	defer cancel()
	_, desc, err := resolver.Resolve(ctx, ref.Name())
	if err != nil {
		return tr.explain(ctx, err)
	}
	m.desc = desc
	if m.fetcher, err = resolver.Fetcher(ctx, ref.Name()); err != nil {
		return tr.explain(ctx, err)
	}
	return nil
}

// remote is an image in a registry.
type remote struct {
	cfg     Config
	found   []*Endpoint
	secrets secrets
	desc    ocispec.Descriptor
	fetcher remotes.Fetcher
	bases   map[*http.Client]*http.Transport
	pools   []*http.Transport // to be emptied by Close
}

// updateClient puts our transport between containerd's client and its
// connections. containerd may call it twice for one client, and for a copy of a
// client that has it already.
func (m *remote) updateClient(c *http.Client) error {
	base, ok := c.Transport.(*http.Transport)
	if !ok {
		if t, ok := c.Transport.(*transport); ok {
			m.bases[c] = t.base
		}
		return nil
	}
	base.TLSHandshakeTimeout = min(base.TLSHandshakeTimeout, m.cfg.ResolveTimeout)
	base.ResponseHeaderTimeout = min(base.ResponseHeaderTimeout, m.cfg.ResolveTimeout)
	base.MaxIdleConnsPerHost = base.MaxIdleConns
	m.pools = append(m.pools, base)
	m.bases[c] = base
	c.Transport = &transport{next: base, base: base}
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
