// Package shim is the node daemon around CRI: it reads the configuration, takes
// the data directory for itself, brings to an end what the last daemon left,
// opens the sockets and serves until it is told to stop.
//
//	lock ▶ open ▶ sweep ▶ index ▶ listen ▶ ready … stop ▶ drain ▶ close
//
// The CRI socket opens only when the first answer is the whole truth: a kubelet
// that sees an empty list starts every pod a second time. The daemon owns nothing:
// when it stops, or is killed, the containers run on.
package shim

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/cri"
	"github.com/gantry-cri/gantry/stage0"
	"github.com/gantry-cri/gantry/stage0/manifest"
	"github.com/gantry-cri/gantry/stage1/network"
)

const (
	maxMessage    = 16 << 20 // what the kubelet takes, each way
	drainTimeout  = 10 * time.Second
	sweepPause    = time.Minute
	headerTimeout = 10 * time.Second
)

// Run serves until ctx ends or the process gets SIGTERM or SIGINT. It returns nil
// after an orderly stop. ErrBusy says that another daemon has the data directory
// or the socket. manifest.RegisterIsolators must have been called.
func Run(ctx context.Context, cfg Config) (err error) {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	setVerbosity(cfg.Verbosity)
	log := klog.FromContext(ctx)
	for _, dir := range []string{cfg.Dir, cfg.RunDir} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return fmt.Errorf("make directories: %w", err)
		}
	}
	lock, err := lockDir(ctx, cfg.Dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	d, err := open(ctx, cfg)
	if err != nil {
		return err
	}
	d.sweep(ctx)
	if err := d.runner.LoadAppArmor(ctx); err != nil {
		log.Error(err, "Containers with the default AppArmor profile cannot be started")
	}
	if err := d.serve(ctx); err != nil {
		return err
	}
	log.Info("Stopped")
	return nil
}

// setVerbosity changes how much klog tells, from now on.
func setVerbosity(v int) {
	var level klog.Level
	_ = level.Set(strconv.Itoa(v)) // fails for what is no number alone
}

// house is what works on the data directory.
type house struct {
	cfg      Config
	pipeline *stage0.Pipeline
	runner   runner
	metrics  *metrics
}

func open(ctx context.Context, cfg Config) (*house, error) {
	log := klog.FromContext(ctx)
	p, r, err := Open(cfg, func(u manifest.UUID, what string, err error) {
		log.Error(err, "Something went wrong and was put off", "pod", u, "what", what)
	})
	if err != nil {
		return nil, err
	}
	m := newMetrics(cfg.Version)
	p.Observer = &observer{metrics: m, log: log}
	return &house{cfg: cfg, pipeline: p, runner: runner{r, network.New(cfg.Network()), p.Overlay}, metrics: m}, nil
}

// sweep brings to an end what killed processes and ended boots left. What cannot
// be done now is said, and tried again later.
func (h *house) sweep(ctx context.Context) {
	log := klog.FromContext(ctx)
	swept, err := h.pipeline.Sweep(ctx)
	err = errors.Join(err, h.pipeline.Images.Sweep(ctx), h.runner.Sweep(ctx))
	if err != nil && ctx.Err() == nil {
		log.Error(err, "Sweeping left something")
	}
	if len(swept.Pods) > 0 {
		log.V(2).Info("Swept aborted prepares", "pods", swept.Pods)
	}
}

// serve answers until ctx ends. The order of its first steps is the promise of
// the package's comment.
func (h *house) serve(ctx context.Context) error {
	log := klog.FromContext(ctx)
	streams, err := listenTCP(ctx, h.cfg.StreamAddress)
	if err != nil {
		return err
	}
	defer func() { _ = streams.Close() }() // the HTTP server has closed it before, if it ran
	metrics, err := h.listenMetrics(ctx)
	if err != nil {
		return err
	}
	// Jobs and watches outlive the signal: they are drained first.
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	server, err := cri.New(base, h.criConfig(streams.Addr()))
	if err != nil {
		return err
	}
	interceptors := cri.NewInterceptors(log, h.metrics)
	g := grpc.NewServer(
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage),
		grpc.UnaryInterceptor(interceptors.Unary), grpc.StreamInterceptor(interceptors.Stream),
	)
	server.Register(g)
	h.metrics.registry.MustRegister(newPodCollector(server))
	socket, err := listen(ctx, h.cfg.socket())
	if err != nil {
		return errors.Join(err, server.Close(base))
	}
	parts, ctx := errgroup.WithContext(ctx)
	parts.Go(func() error { return answer(ctx, g, socket, server) })
	parts.Go(func() error { return serveHTTP(ctx, lingering{streams}, server.StreamHandler()) })
	parts.Go(func() error { return h.serveMetrics(ctx, metrics) })
	parts.Go(func() error { return h.tend(ctx) })
	parts.Go(func() error {
		return watch(ctx, func() error {
			_, err := server.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
			return err
		})
	})
	log.Info("Ready", "version", h.cfg.Version, "socket", h.cfg.socket(), "dir", h.cfg.Dir)
	notify(log, daemon.SdNotifyReady)
	return parts.Wait()
}

func (h *house) criConfig(streams net.Addr) cri.Config {
	return cri.Config{
		Pods: h.pipeline.Pods, Preparer: h.pipeline, Runner: h.runner, Inspector: h.runner,
		Executor: h.runner, Meter: h.runner, Node: h.runner,
		Images: h.pipeline.Images, Puller: h.pipeline, Disk: h.pipeline,
		StreamURL: &url.URL{Scheme: "http", Host: streams.String()},
		DataDir:   h.cfg.Dir, Version: h.cfg.Version, Info: h.cfg, Limits: h.cfg.Limits.cri(),
	}
}

// answer serves calls until ctx ends, and then lets those in flight come to an end,
// for a while. What is left then is a command of ExecSync that takes longer: its call
// ends with the process. Cancelling the call would kill the command.
func answer(ctx context.Context, g *grpc.Server, socket net.Listener, server *cri.Server) error {
	served := make(chan error, 1)
	go func() { served <- g.Serve(socket) }()
	var err error
	select {
	case err = <-served: // by a failure
	case <-ctx.Done():
	}
	log := klog.FromContext(ctx)
	notify(log, daemon.SdNotifyStopping)
	patience, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	if err == nil {
		go g.GracefulStop()
		select {
		case err = <-served: // all calls have ended
		case <-patience.Done():
			log.Info("Calls are left unanswered; commands of ExecSync run on")
		}
	}
	return errors.Join(err, closeServer(patience, server))
}

// closeServer cancels the jobs that have not ended when ctx does, which is no error.
func closeServer(ctx context.Context, server *cri.Server) error {
	if err := server.Close(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

func listenTCP(ctx context.Context, address string) (net.Listener, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", address, err)
	}
	return l, nil
}

// serveHTTP serves until ctx ends. Streams that are open then are cut: their
// clients are the kubelet's, and a stop cannot wait for a shell.
func serveHTTP(ctx context.Context, l net.Listener, handler http.Handler) error {
	s := &http.Server{Handler: handler, ReadHeaderTimeout: headerTimeout}
	defer context.AfterFunc(ctx, func() { _ = s.Close() })()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve on %s: %w", l.Addr(), err)
	}
	return nil
}

// listenMetrics returns nil where no metrics are wanted.
func (h *house) listenMetrics(ctx context.Context) (net.Listener, error) {
	if h.cfg.MetricsAddress == "" {
		return nil, nil
	}
	return listenTCP(ctx, h.cfg.MetricsAddress)
}

func (h *house) serveMetrics(ctx context.Context, l net.Listener) error {
	if l == nil {
		return nil
	}
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(h.metrics.registry, promhttp.HandlerOpts{Registry: h.metrics.registry}))
	klog.FromContext(ctx).Info("Serving metrics", "address", l.Addr().String())
	return serveHTTP(ctx, l, mux)
}

// tend sweeps now and then and reads the configuration again at SIGHUP.
func (h *house) tend(ctx context.Context) error {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	tick := time.NewTicker(sweepPause)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			h.sweep(ctx)
		case <-hup:
			h.reload(ctx)
		}
	}
}

// reload takes over what can change while the daemon runs: the verbosity. The
// directories of registries and of CNI are read whenever they are used.
func (h *house) reload(ctx context.Context) {
	log := klog.FromContext(ctx)
	if h.cfg.reload == nil {
		return
	}
	now, err := h.cfg.reload()
	if err != nil {
		log.Error(err, "Configuration was not reloaded")
		return
	}
	setVerbosity(now.Verbosity)
	h.cfg.Verbosity = now.Verbosity
	log.Info("Reloaded the verbosity; everything else needs a restart", "verbosity", now.Verbosity)
}

func notify(log klog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Error(err, "Telling systemd failed", "state", state)
	}
}
