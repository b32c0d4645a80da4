package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	cerrdefs "github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/pelletier/go-toml/v2"
	"github.com/sirupsen/logrus"

	"github.com/gantry-cri/gantry/stage0/credential"
	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/imageref"
)

// Endpoint is a place that is asked for an image, and why. Endpoints are asked in
// their order, each for what the one before it did not have or could not give.
type Endpoint struct {
	// URL is the root of the API: "https://registry-1.docker.io/v2".
	URL string `json:"url"`
	// Rule says which file and which part of it named the endpoint.
	Rule string `json:"rule"`
	// Capabilities are "pull", for what has a digest, and "resolve", for tags.
	Capabilities []string `json:"capabilities"`
	// SkipVerify tells that anybody may pose as it; OwnCA that certificates beside
	// the system's count; ClientCertificates how many there are to show;
	// PlainFallback that it is asked without encryption if it does not know TLS.
	SkipVerify         bool `json:"skipVerify,omitempty"`
	PlainFallback      bool `json:"plainFallback,omitempty"`
	OwnCA              bool `json:"ownCA,omitempty"`
	ClientCertificates int  `json:"clientCertificates,omitempty"`
	// Headers are the names of those that the file adds.
	Headers []string `json:"headers,omitempty"`
	// Proxy is between us and it, by the environment; without its password.
	Proxy string `json:"proxy,omitempty"`
	// Credential says where the credential comes from that it would get.
	Credential string `json:"credential"`
	// Probe is how it answered; nil when it was not asked.
	Probe *Probe `json:"probe,omitempty"`

	host docker.RegistryHost
	auth *authorizer
}

// hosts are containerd's, for its resolver.
func hosts(es []*Endpoint) []docker.RegistryHost {
	var hs []docker.RegistryHost
	for _, e := range es {
		hs = append(hs, e.host)
	}
	return hs
}

// endpoints finds who serves a reference. The files are containerd's to read, but
// for what it would pass over in silence: a file that it cannot read, a key that
// it does not know, and an endpoint that may not be pulled from.
func (m *remote) endpoints(ref imageref.Ref, creds credential.Source) ([]*Endpoint, error) {
	registry, _, _ := strings.Cut(ref.Repository(), "/")
	dir, err := hostsDir(m.cfg.HostsDir, registry)
	if err != nil {
		return nil, err
	}
	found, err := m.configured(registry)
	if err != nil {
		return nil, fmt.Errorf("hosts of registry %s in %s: %w: %w", registry, m.cfg.HostsDir, err, errdefs.ErrInvalid)
	}
	rules, err := rulesOf(dir, registry, len(found))
	if err != nil {
		return nil, err
	}
	var es []*Endpoint
	for i, h := range found {
		// containerd's fetcher asks those too that may not be asked.
		if !h.Capabilities.Has(docker.HostCapabilityPull) {
			continue
		}
		if h.Scheme != "http" && h.Scheme != "https" || h.Host == "" {
			return nil, fmt.Errorf("%s is no URL of http or https: %w", rules[i], errdefs.ErrInvalid)
		}
		es = append(es, m.endpoint(h, rules[i], creds))
	}
	if !mayServe(es, ref) {
		return nil, fmt.Errorf("%s leaves no endpoint that may be asked for %s: %w", filepath.Join(dir, hostsFile), ref, errdefs.ErrInvalid)
	}
	return es, nil
}

func mayServe(es []*Endpoint, ref imageref.Ref) bool {
	for _, e := range es {
		if ref.Digest() != "" || e.host.Capabilities.Has(docker.HostCapabilityResolve) {
			return true
		}
	}
	return false
}

func (m *remote) endpoint(h docker.RegistryHost, rule string, creds credential.Source) *Endpoint {
	a := newAuthorizer(h, creds, &m.secrets)
	h.Authorizer = a
	e := &Endpoint{URL: h.Scheme + "://" + h.Host + h.Path, Rule: rule, Capabilities: []string{"pull"}, host: h, auth: a}
	if h.Capabilities.Has(docker.HostCapabilityResolve) {
		e.Capabilities = append(e.Capabilities, "resolve")
	}
	for name, values := range h.Header {
		e.Headers = append(e.Headers, name)
		m.secrets.add(values...)
	}
	if base := m.bases[h.Client]; base != nil {
		if t := base.TLSClientConfig; t != nil && h.Scheme == "https" {
			e.SkipVerify, e.OwnCA, e.ClientCertificates = t.InsecureSkipVerify, t.RootCAs != nil, len(t.Certificates)
		}
		e.Proxy = proxyOf(base, e.URL)
		_, ours := h.Client.Transport.(*transport)
		e.PlainFallback = !ours
	}
	return e
}

func proxyOf(base *http.Transport, at string) string {
	req, err := http.NewRequest(http.MethodGet, at, http.NoBody)
	if err != nil || base.Proxy == nil {
		return ""
	}
	u, err := base.Proxy(req)
	if err != nil || u == nil {
		return "" // what is wrong with it, the request says
	}
	return clean(u)
}

// configured asks containerd. It logs a hosts.toml that it cannot read and goes on
// with the upstream registry, which may be just what the file forbids.
func (m *remote) configured(registry string) ([]docker.RegistryHost, error) {
	opts := config.HostOptions{UpdateClient: m.updateClient}
	if m.cfg.HostsDir != "" {
		opts.HostDir = config.HostDirFromRoot(m.cfg.HostsDir)
	}
	var complaint logHook
	logger := logrus.New()
	logger.SetOutput(io.Discard)
	logger.SetLevel(logrus.ErrorLevel)
	logger.AddHook(&complaint)
	hosts, err := config.ConfigureHosts(log.WithLogger(context.Background(), logrus.NewEntry(logger)), opts)(registry)
	if err == nil {
		err = complaint.err
	}
	return hosts, err
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

const hostsFile = "hosts.toml"

func hostsDir(root, registry string) (string, error) {
	if root == "" {
		return "", nil
	}
	dir, err := config.HostDirFromRoot(root)(registry)
	if err != nil && !cerrdefs.IsNotFound(err) {
		return "", fmt.Errorf("hosts of registry %s in %s: %w: %w", registry, root, err, errdefs.ErrInvalid)
	}
	return dir, nil
}

// hostTable is what containerd knows of a table of hosts.toml.
type hostTable struct {
	Capabilities any `toml:"capabilities"`
	CA           any `toml:"ca"`
	Client       any `toml:"client"`
	SkipVerify   any `toml:"skip_verify"`
	Header       any `toml:"header"`
	OverridePath any `toml:"override_path"`
	DialTimeout  any `toml:"dial_timeout"`
}

// rulesOf says of each endpoint why it is one. The last of n is the one that the
// file's server names, or else the registry itself.
func rulesOf(dir, registry string, n int) ([]string, error) {
	rules := make([]string, n)
	if n == 0 {
		return rules, nil
	}
	if dir == "" {
		rules[n-1] = "the reference names it; no hosts.toml does"
		return rules, nil
	}
	file := filepath.Join(dir, hostsFile)
	raw, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		rules[n-1] = "the reference names it; certificates of " + dir
		return rules, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalid)
	}
	var parsed struct {
		hostTable
		Server string               `toml:"server"`
		Host   map[string]hostTable `toml:"host"`
	}
	if err := toml.NewDecoder(strings.NewReader(string(raw))).DisallowUnknownFields().Decode(&parsed); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", file, tomlError(err), errdefs.ErrInvalid)
	}
	for i := range n - 1 {
		rules[i] = fmt.Sprintf("%s: host %d", file, i+1)
	}
	rules[n-1] = file + ": server"
	if parsed.Server == "" {
		rules[n-1] = fmt.Sprintf("%s names no server, so %s itself is the last", file, registry)
	}
	return rules, nil
}

// tomlError says where in a file something is wrong, without its lines: a header
// may hold a password.
func tomlError(err error) error {
	var strict *toml.StrictMissingError
	if errors.As(err, &strict) && len(strict.Errors) > 0 {
		row, _ := strict.Errors[0].Position()
		return fmt.Errorf("line %d: unknown key %q", row, strings.Join(strict.Errors[0].Key(), "."))
	}
	var decode *toml.DecodeError
	if errors.As(err, &decode) {
		row, _ := decode.Position()
		return fmt.Errorf("line %d: %s", row, decode.Error())
	}
	return err
}
