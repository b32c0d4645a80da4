package shim

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2/textlogger"

	"github.com/gantry-cri/gantry/stage0"
	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/manifest"
)

func TestMain(m *testing.M) {
	manifest.RegisterIsolators()
	os.Exit(m.Run())
}

// testConfig is of a daemon on directories of its own.
func testConfig(t *testing.T) Config {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("the daemon looks at cgroups and trees as root")
	}
	dir := t.TempDir()
	cfg, err := Load(write(t, map[string]string{"config.yaml": ""}), func(c *Config) {
		c.Dir, c.RunDir, c.Version = filepath.Join(dir, "data"), filepath.Join(dir, "run"), "1.2.3"
		c.CNIConfDir, c.MetricsAddress = filepath.Join(dir, "cni"), freeAddress(t)
	})
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// TestTend has something for each of two sweeps, and waits for neither.
func TestTend(t *testing.T) {
	h, err := open(t.Context(), testConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	// Whoever asks for a signal first starts a goroutine that never ends, which must not
	// lie in the bubble.
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		ended := make(chan error, 1)
		go func() { ended <- h.tend(ctx) }()
		for n := range 2 {
			aborted := h.pipeline.Pods.Path("00000000-0000-4000-8000-000000000001")
			if err := os.Mkdir(aborted, 0o750); err != nil {
				t.Fatal(err)
			}
			time.Sleep(sweepPause - time.Second)
			synctest.Wait()
			if _, err := os.Stat(aborted); err != nil {
				t.Errorf("sweep %d came early: %v", n, err)
			}
			time.Sleep(time.Second)
			synctest.Wait()
			if _, err := os.Stat(aborted); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("sweep %d left a prepare that was cut short: %v", n, err)
			}
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func TestRun(t *testing.T) {
	cfg := testConfig(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, cfg) }()
	conn, err := grpc.NewClient("unix://"+cfg.socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := runtimeapi.NewRuntimeServiceClient(conn)
	call, done := context.WithTimeout(ctx, 20*time.Second)
	defer done()
	v, err := client.Version(call, &runtimeapi.VersionRequest{}, grpc.WaitForReady(true))
	if err != nil || v.RuntimeVersion != "1.2.3" {
		t.Fatalf("version %v, %v", v, err)
	}
	st, err := client.Status(call, &runtimeapi.StatusRequest{Verbose: true})
	if err != nil || len(st.Status.Conditions) != 2 || st.Status.Conditions[1].Status || !strings.Contains(st.Info["config"], cfg.Dir) {
		t.Errorf("status %v, %v", st, err)
	}
	if os.Geteuid() == 0 && (st.GetInfo()["overlay"] != "OK" || st.GetInfo()["overlayIDMapped"] != "OK") {
		t.Errorf("status says of overlay %q, id-mapped %q", st.GetInfo()["overlay"], st.GetInfo()["overlayIDMapped"])
	}
	if _, err := client.ListContainers(call, &runtimeapi.ListContainersRequest{}); err != nil {
		t.Error(err)
	}
	if err := Run(ctx, cfg); !errors.Is(err, errdefs.ErrBusy) {
		t.Errorf("a second daemon: %v, want ErrBusy", err)
	}
	checkMetrics(t, cfg.MetricsAddress)
	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("ended with %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("it does not stop")
	}
	if _, err := os.Stat(cfg.socket()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket stayed: %v", err)
	}
}

// TestMetricsAreOff holds that nobody listens for scrapes unless an address is set.
func TestMetricsAreOff(t *testing.T) {
	cfg, err := Load(write(t, map[string]string{"config.yaml": ""}))
	if err != nil {
		t.Fatal(err)
	}
	h := &house{cfg: cfg, metrics: newMetrics("v")}
	l, err := h.listenMetrics(t.Context())
	if l != nil || err != nil {
		t.Fatalf("without an address: %v, %v", l, err)
	}
	// The other parts of the daemon run on.
	if err := h.serveMetrics(t.Context(), l); err != nil {
		t.Error(err)
	}
}

// TestMetricsAreDocumented holds that docs/ names every metric of ours.
func TestMetricsAreDocumented(t *testing.T) {
	docs := ""
	for _, name := range []string{"cri", "registry", "rootfs"} {
		raw, err := os.ReadFile("../docs/" + name + ".md")
		if err != nil {
			t.Fatal(err)
		}
		docs += string(raw)
	}
	descs := make(chan *prometheus.Desc, 1000)
	newMetrics("v").registry.Describe(descs)
	newPodCollector(nil).Describe(descs)
	close(descs)
	ours := regexp.MustCompile(`"(gantry_[a-z_]+)"`)
	n := 0
	for d := range descs {
		if m := ours.FindStringSubmatch(d.String()); m != nil {
			n++
			if !regexp.MustCompile("`" + m[1] + "[`{]").MatchString(docs) {
				t.Errorf("docs/ do not tell of %s", m[1])
			}
		}
	}
	if n < 10 {
		t.Errorf("%d metrics of ours", n)
	}
}

func checkMetrics(t *testing.T, address string) {
	t.Helper()
	resp, err := http.Get("http://" + address + "/metrics") //nolint:noctx // the test's own server
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		`gantry_cri_calls_total{code="OK",method="Version"} 1`,
		`gantry_pods{kind="container",owner="cri",state="running"} 0`,
		`gantry_prepare_stage_duration_seconds_count{result="failure",stage="resolve"} 0`,
		// The first bucket and the last finite one.
		`gantry_prepare_stage_duration_seconds_bucket{result="failure",stage="allocate",le="0.001"} 0`,
		`gantry_prepare_stage_duration_seconds_bucket{result="success",stage="commit",le="600"} 0
gantry_prepare_stage_duration_seconds_bucket{result="success",stage="commit",le="+Inf"} 0`,
		`gantry_build_info{`, `go_goroutines`, `process_resident_memory_bytes`,
	} {
		if !strings.Contains(string(body), line) {
			t.Errorf("/metrics lacks %s", line)
		}
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// What takes long is told in the log, image by image, and what is quick is not.
func TestFetchesAreLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said bytes.Buffer
		o := &observer{metrics: newMetrics("v"), log: textlogger.NewLogger(textlogger.NewConfig(textlogger.Output(&said)))}
		fetching := func(image string, layer digest.Digest, done int64) {
			o.LayerProgress(stage0.LayerProgress{Image: image, Layer: layer, State: stage0.LayerFetching, Done: done, Size: 100})
		}
		ends := func(image string, layer digest.Digest, how stage0.LayerState) {
			o.LayerProgress(stage0.LayerProgress{Image: image, Layer: layer, State: how, Done: 100, Size: 100})
		}
		want := func(lines ...string) {
			t.Helper()
			got := strings.Split(strings.TrimSuffix(said.String(), "\n"), "\n")
			if said.Len() == 0 {
				got = nil
			}
			said.Reset()
			if len(got) != len(lines) {
				t.Fatalf("logged %q, want %q", got, lines)
			}
			for i, line := range lines {
				if !strings.HasSuffix(got[i], `] "Fetching image" `+line) {
					t.Errorf("logged %q, want %q", got[i], line)
				}
			}
		}
		ends("quick", "sha256:0", stage0.LayerPresent) // without a beginning
		fetching("quick", "sha256:1", 0)
		time.Sleep(9 * time.Second)
		ends("quick", "sha256:1", stage0.LayerDone)
		want()
		time.Sleep(time.Minute)

		fetching("b", "sha256:2", 0)
		fetching("a", "sha256:1", 0)
		fetching("a", "sha256:2", 10)
		want()
		time.Sleep(10 * time.Second)
		fetching("a", "sha256:1", 30)
		want(`image="a" layersInFlight=2 bytes=40 of=200`, `image="b" layersInFlight=1 bytes=0 of=100`)
		for range 9 {
			fetching("a", "sha256:1", 50)
			time.Sleep(time.Second)
		}
		want()
		ends("b", "sha256:2", stage0.LayerFailed)
		ends("a", "sha256:1", stage0.LayerDone)
		ends("a", "sha256:2", stage0.LayerDone)
		time.Sleep(time.Second)
		fetching("a", "sha256:3", 7) // the fetch goes on
		want(`image="a" layersInFlight=1 bytes=7 of=100`)
	})
}

func TestStagesAreObserved(t *testing.T) {
	m := newMetrics("v")
	m.StageDone(stage0.StageResolve, 3*time.Millisecond, nil)
	m.StageDone(stage0.StageResolve, time.Second, errors.New("no"))
	m.BytesFetched(7)
	for _, l := range []stage0.LayerProgress{
		{Image: "a", Layer: "sha256:1", State: stage0.LayerFetching, Size: 10},
		{Image: "a", Layer: "sha256:1", State: stage0.LayerFetching, Size: 10, Done: 4},
		{Image: "a", Layer: "sha256:2", State: stage0.LayerFetching, Size: 100},
		{Image: "b", Layer: "sha256:1", State: stage0.LayerWaiting, Size: 10},
		{Image: "a", Layer: "sha256:2", State: stage0.LayerFetching, Size: 100, Done: 30},
		{Image: "a", Layer: "sha256:2", State: stage0.LayerFailed, Size: 100, Done: 30},
		{Image: "c", Layer: "sha256:3", State: stage0.LayerPresent, Size: 5},
	} {
		m.LayerProgress(l)
	}
	var said bytes.Buffer
	o := &observer{metrics: m, log: textlogger.NewLogger(textlogger.NewConfig(textlogger.Output(&said)))}
	for range 3 {
		o.OverlayDisabled("no types")
	}
	if got := said.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, `reason="no types"`) {
		t.Errorf("logged %q", got)
	}
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, x := range f.Metric {
			name := f.GetName()
			for _, l := range x.Label {
				name += " " + l.GetValue()
			}
			if h := x.GetHistogram(); h != nil {
				got[name] = float64(h.GetSampleCount())
			} else {
				got[name] = x.GetCounter().GetValue() + x.GetGauge().GetValue()
			}
		}
	}
	for name, want := range map[string]float64{
		"gantry_prepare_stage_duration_seconds success resolve": 1,
		"gantry_prepare_stage_duration_seconds failure resolve": 1,
		"gantry_prepare_stage_duration_seconds success fetch":   0,
		"gantry_fetch_bytes_total":                              7,
		"gantry_fetch_layers_total present":                     1,
		"gantry_fetch_layers_total waiting":                     1,
		"gantry_fetch_layers_total failed":                      1,
		"gantry_fetch_layers_total done":                        0,
		"gantry_fetch_layers_in_flight":                         1,
		"gantry_fetch_missing_bytes":                            6,
		"gantry_prepare_overlay_disabled_total":                 3,
	} {
		if got[name] != want {
			t.Errorf("%s is %v, want %v", name, got[name], want)
		}
	}
}
