package fetch

import (
	"context"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"

	"github.com/gantry-cri/gantry/stage0/credential"
	"github.com/gantry-cri/gantry/stage0/imageref"
)

// Probe is how an endpoint answered when it was asked for an image alone.
type Probe struct {
	// Digest is what the endpoint has under the name; empty after an error.
	Digest string `json:"digest,omitempty"`
	// Skipped says why it was not asked.
	Skipped string `json:"skipped,omitempty"`
	// Error is what went wrong, with every request and its answer.
	Error string `json:"error,omitempty"`
	// Took is how long it took, nanoseconds.
	Took time.Duration `json:"tookNanoseconds,omitempty"`
}

// Explain returns the endpoints that a pull of ref would ask, in their order, and
// why; and, if probe is set, how each of them answers now. creds is as for
// Resolve. Endpoints that do not answer are no error.
func (r *Registry) Explain(ctx context.Context, ref imageref.Ref, creds credential.Source, probe bool) ([]*Endpoint, error) { //nolint:revive // probe is the user's flag
	m, err := r.open(ref, creds)
	if err != nil {
		return nil, err
	}
	for _, e := range m.found {
		e.Credential = e.wouldGet(ctx)
	}
	if probe {
		m.probe(ctx, ref)
	}
	return m.found, m.Close()
}

// wouldGet says what the endpoint is told if it wants to be.
func (e *Endpoint) wouldGet(ctx context.Context) string {
	if e.auth.creds == nil {
		return credential.Credential{}.String()
	}
	c, err := e.auth.creds(ctx, e.host.Host)
	if err != nil {
		return "error: " + err.Error()
	}
	return c.String()
}

// probe asks each endpoint alone. One that may not resolve tags is asked for the
// digest that the first of the others has.
func (m *remote) probe(ctx context.Context, ref imageref.Ref) {
	var later []*Endpoint
	for _, e := range m.found {
		if ref.Digest() == "" && !e.host.Capabilities.Has(docker.HostCapabilityResolve) {
			later = append(later, e)
			continue
		}
		e.Probe = m.probeOne(ctx, ref, e)
	}
	for _, e := range later {
		e.Probe = &Probe{Skipped: "it may not resolve tags, and no other endpoint says for which digest to ask"}
		if d := m.desc.Digest; d != "" {
			if byDigest, err := imageref.Parse(ref.Repository() + "@" + d.String()); err == nil {
				e.Probe = m.probeOne(ctx, byDigest, e)
			}
		}
	}
}

func (m *remote) probeOne(ctx context.Context, ref imageref.Ref, e *Endpoint) *Probe {
	alone := &remote{cfg: m.cfg, found: []*Endpoint{e}}
	start := time.Now()
	err := alone.resolve(ctx, ref, alone.found)
	p := &Probe{Took: time.Since(start)}
	if err != nil {
		p.Error = m.secrets.hide(err.Error())
		return p
	}
	p.Digest = alone.desc.Digest.String()
	if m.desc.Digest == "" {
		m.desc = alone.desc
	}
	return p
}
