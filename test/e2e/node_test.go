package e2e

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/harness/kube"
)

// chosen is what the verbose status says of the OCI runtime.
func (n *node) chosen(t *testing.T) string {
	t.Helper()
	return must(n.Status(callContext(t, callTimeout), &runtimeapi.StatusRequest{Verbose: true}))(t).Info["ociRuntime"]
}

func TestKubeletsClient(t *testing.T) {
	n := startNode(t, harness.GantryOptions{})
	ctx := callContext(t, callTimeout)
	runtime, images := kube.RuntimeService(t, n.Endpoint), kube.ImageService(t, n.Endpoint)
	v := must(runtime.Version(ctx, "0.1.0"))(t)
	if v.RuntimeName != "gantry" || v.RuntimeApiVersion != "v1" || v.Version == "" || v.RuntimeVersion == "" {
		t.Errorf("version: %v", v)
	}
	want := runtimeapi.CgroupDriver(runtimeapi.CgroupDriver_value[strings.ToUpper(harness.CgroupDriver())])
	if c := must(runtime.RuntimeConfig(ctx))(t); c.Linux == nil || c.Linux.GetCgroupDriver() != want {
		t.Errorf("configuration: %v", c)
	}
	if err := runtime.UpdateRuntimeConfig(ctx, &runtimeapi.RuntimeConfig{NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: "10.0.0.0/24"}}); err != nil {
		t.Errorf("update: %v", err)
	}
	st := must(runtime.Status(ctx, false))(t)
	if len(st.Info) != 0 || len(st.RuntimeHandlers) == 0 || st.RuntimeHandlers[0].Name != "" {
		t.Errorf("status: %v", st)
	}
	if list := must(images.ListImages(ctx, nil))(t); len(list) != 1 {
		t.Errorf("images: %v", list)
	}
	c := sandboxConfig(t, "kubelet")
	id := must(runtime.RunPodSandbox(ctx, c, ""))(t)
	if s := must(runtime.PodSandboxStatus(ctx, id, true))(t); s.Status.State != runtimeapi.PodSandboxState_SANDBOX_READY || s.Info["info"] == "" {
		t.Errorf("sandbox: %v", s)
	}
}

func TestWhichRuntime(t *testing.T) {
	needs(t, "crun", "runc")
	got := startNode(t, harness.GantryOptions{}).chosen(t)
	controllers, err := os.ReadFile("/sys/fs/cgroup/unified/cgroup.controllers")
	switch {
	case err == nil && strings.TrimSpace(string(controllers)) != "":
		if !strings.HasPrefix(got, "runc ") || !strings.Contains(got, "hybrid") || !strings.Contains(got, strings.TrimSpace(string(controllers))) {
			t.Errorf("on a hybrid hierarchy: %s", got)
		}
	default:
		if !strings.HasPrefix(got, "crun ") {
			t.Errorf("chosen: %s", got)
		}
	}
}

// TestCrun runs the daemon where crun works: in a mount namespace of its own
// without the v2 hierarchy of a hybrid machine.
func TestCrun(t *testing.T) {
	needs(t, "crun", "unshare")
	hide := `if mountpoint -q /sys/fs/cgroup/unified; then umount /sys/fs/cgroup/unified; fi; exec "$@"`
	n := startNode(t, harness.GantryOptions{Wrapper: []string{"unshare", "-m", "sh", "-c", hide, "sh"}})
	if got := n.chosen(t); !strings.HasPrefix(got, "crun ") || !strings.Contains(got, "preferred") {
		t.Fatalf("chosen: %s", got)
	}
	for name, test := range map[string]func(*testing.T, *node){
		"loopback and pod IP": testLoopback, "shared PID namespace": testSharedPID, "shared memory": testSharedMemory,
		"sysctls": testSysctls, "stop": testStopSandbox, "bad command": testBadCommand,
	} {
		t.Run(name, func(t *testing.T) { test(t, n) })
	}
	b := n.pod(t, "crun")
	for name, test := range map[string]func(*testing.T, *box){
		"capabilities": testCapabilities, "users": testUsers, "seccomp": testSeccomp, "mounts": testMounts, "resources": testResources,
		"masked paths": testMaskedPaths, "exec sync": testExecSync, "attach": testAttach, "exec tty": testExecTTY, "stop signal": testStopSignal,
	} {
		t.Run(name, func(t *testing.T) { test(t, b) })
	}
	t.Run("killed", func(t *testing.T) {
		id := b.start(t, "outlives", "exec sleep 1000")
		n.Restart(t)
		n.exec(t, id, "true")
	})
}

func testBadCommand(t *testing.T, n *node) {
	b := n.pod(t, "bad-command")
	id := b.create(t, "c", "true", func(c *runtimeapi.ContainerConfig) { c.Command = []string{"/no-such-program"} })
	_, err := n.StartContainer(callContext(t, callTimeout), &runtimeapi.StartContainerRequest{ContainerId: id})
	if st := n.state(t, id); err == nil || !strings.Contains(err.Error(), "/no-such-program") || st.ExitCode != 128 || st.Reason != "StartError" {
		t.Errorf("start: %v, status %v", err, st)
	}
}

// Patterns by which agents know containers.
var (
	// fluent-bit plugins/filter_kubernetes/kube_regex.h, KUBE_TAG_TO_REGEX; the
	// groups spelt as Go does.
	fluentBit = regexp.MustCompile(`(?P<pod_name>[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*)_(?P<namespace_name>[^_]+)_(?P<container_name>.+)-(?P<docker_id>[a-z0-9]{64})\.log$`)
	// opentelemetry-go sdk/resource/container.go, cgroupContainerIDRe.
	otelCgroup = regexp.MustCompile(`^.*/(?:.*[-:])?([0-9a-f]+)(?:\.|\s*$)`)
	// opentelemetry-collector, the file log receiver's usual regex of log files.
	otelLog = regexp.MustCompile(`^.*\/(?P<namespace>[^_]+)_(?P<pod_name>[^_]+)_(?P<uid>[a-f0-9\-]+)\/(?P<container_name>[^\._]+)\/(?P<restart_count>\d+)\.log$`)
	// The container id pattern of datadog-agent's cgroup reader, with the
	// alternatives for ECS and Cloud Foundry.
	datadog = regexp.MustCompile(`([0-9a-f]{64})|([0-9a-f]{32}-\d+)|([0-9a-f]{8}(-[0-9a-f]{4}){4}$)`)
)

func TestAgentsKnowContainers(t *testing.T) {
	n := startNode(t, harness.GantryOptions{})
	c := sandboxConfig(t, "known-0")
	c.Metadata.Uid = "8c9e6679-7425-40de-944b-e07fc1f90ae7"
	c.LogDirectory = strings.ReplaceAll(c.LogDirectory, "known-0_uid", "known-0_"+c.Metadata.Uid)
	b := n.run(t, c)
	id := b.start(t, "app", "exec sleep 1000")
	if m := fluentBit.FindStringSubmatch("known-0_default_app-" + id + ".log"); !slices.Equal(m[1:], []string{"known-0", "default", "app", id}) {
		t.Errorf("Fluent Bit: %q", m)
	}
	if m := otelLog.FindStringSubmatch(n.state(t, id).LogPath); m == nil || !slices.Equal(m[1:], []string{"default", "known-0", c.Metadata.Uid, "app", "0"}) {
		t.Errorf("OpenTelemetry's log pattern: %q of %s", m, n.state(t, id).LogPath)
	}
	pid := strings.Fields(string(must(os.ReadFile(cgroupDir(t, id, "memory") + "/cgroup.procs"))(t)))[0]
	lines := strings.Split(strings.TrimSpace(string(must(os.ReadFile("/proc/"+pid+"/cgroup"))(t))), "\n")
	i := slices.IndexFunc(lines, func(l string) bool {
		return strings.Contains(l, ":memory:") || strings.HasPrefix(l, "0::/") && len(l) > 5
	})
	if m := otelCgroup.FindStringSubmatch(lines[i]); m == nil || m[1] != id {
		t.Errorf("OpenTelemetry: %q of %s", m, lines[i])
	}
	if m := datadog.FindAllString(lines[i], -1); len(m) == 0 || m[len(m)-1] != id {
		t.Errorf("Datadog: %q of %s", m, lines[i])
	}
	// Datadog walks the tree and takes the directories whose names have an id: with
	// systemd crun's group of the container below its scope has none.
	dir := strings.TrimSuffix(cgroupDir(t, id, "memory"), "/container")
	if m := datadog.FindString(dir[strings.LastIndexByte(dir, '/')+1:]); m != id {
		t.Errorf("Datadog's container filter: %q of %s", m, dir)
	}
}

func TestUnimplemented(t *testing.T) {
	n := startNode(t, harness.GantryOptions{})
	ctx := callContext(t, callTimeout)
	for name, call := range map[string]func(context.Context) error{
		"CheckpointContainer":   unary(n.CheckpointContainer, &runtimeapi.CheckpointContainerRequest{}),
		"CheckpointPod":         unary(n.CheckpointPod, &runtimeapi.CheckpointPodRequest{}),
		"RestorePod":            unary(n.RestorePod, &runtimeapi.RestorePodRequest{}),
		"ListMetricDescriptors": unary(n.ListMetricDescriptors, &runtimeapi.ListMetricDescriptorsRequest{}),
		"ListPodSandboxMetrics": unary(n.ListPodSandboxMetrics, &runtimeapi.ListPodSandboxMetricsRequest{}),
		"GetContainerEvents":    streamed(n.GetContainerEvents, &runtimeapi.GetEventsRequest{}),
		"StreamPodSandboxes":    streamed(n.StreamPodSandboxes, &runtimeapi.StreamPodSandboxesRequest{}),
		"StreamContainers":      streamed(n.StreamContainers, &runtimeapi.StreamContainersRequest{}),
		"StreamContainerStats":  streamed(n.StreamContainerStats, &runtimeapi.StreamContainerStatsRequest{}),
		"StreamPodSandboxStats": streamed(n.StreamPodSandboxStats, &runtimeapi.StreamPodSandboxStatsRequest{}),
		"StreamPodSandboxMetrics": streamed(n.StreamPodSandboxMetrics,
			&runtimeapi.StreamPodSandboxMetricsRequest{}),
		"StreamImages": streamed(n.StreamImages, &runtimeapi.StreamImagesRequest{}),
	} {
		t.Run(name, func(t *testing.T) { wantCode(t, call(ctx), codes.Unimplemented) })
	}
}

func TestMetrics(t *testing.T) {
	n := startNode(t, harness.GantryOptions{})
	_ = n.pullError(t, n.registry.Ref("none:1"), callTimeout)
	n.pod(t, "measured").output(t, "c", "true")
	text := n.Metrics(t)
	for _, stage := range []string{"resolve", "fetch", "verify", "extract", "allocate", "rootfs", "commit"} {
		if got := sample(t, text, fmt.Sprintf(`gantry_prepare_stage_duration_seconds_count{result="success",stage=%q}`, stage)); got < 1 {
			t.Errorf("stage %s succeeded %v times", stage, got)
		}
	}
	for series, want := range map[string]float64{
		`gantry_prepare_stage_duration_seconds_count{result="failure",stage="resolve"}`: 1,
		`gantry_prepare_stage_duration_seconds_count{result="failure",stage="commit"}`:  0,
		`gantry_cri_calls_total{code="OK",method="RunPodSandbox"}`:                      1,
		`gantry_cri_calls_total{code="NotFound",method="PullImage"}`:                    1,
		`gantry_pods{kind="sandbox",owner="cri",state="running"}`:                       1,
		`gantry_pods{kind="container",owner="cri",state="exited"}`:                      1,
	} {
		if got := sample(t, text, series); got != want {
			t.Errorf("%s is %v, want %v", series, got, want)
		}
	}
	if got := sample(t, text, "gantry_fetch_bytes_total"); got < 100_000 {
		t.Errorf("%v bytes fetched", got)
	}
}

// sample is the value of a series, -1 where it is absent.
func sample(t *testing.T, text, series string) float64 {
	t.Helper()
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, series+" "); ok {
			return must(strconv.ParseFloat(strings.TrimSpace(value), 64))(t)
		}
	}
	return -1
}

// unary makes a call whose answer does not matter.
func unary[Q, A any](call func(context.Context, Q, ...grpc.CallOption) (A, error), q Q) func(context.Context) error {
	return func(ctx context.Context) error {
		_, err := call(ctx, q)
		return err
	}
}

// streamed waits for the first message of a stream.
func streamed[Q, A any](call func(context.Context, Q, ...grpc.CallOption) (grpc.ServerStreamingClient[A], error), q Q) func(context.Context) error {
	return func(ctx context.Context) error {
		s, err := call(ctx, q)
		if err != nil {
			return err
		}
		_, err = s.Recv()
		return err
	}
}

// TestCgroupfs runs a daemon that makes cgroups as directories, also on a node that runs
// systemd and has one hierarchy.
func TestCgroupfs(t *testing.T) {
	t.Setenv("GANTRY_CGROUP_DRIVER", "cgroupfs")
	n := startNode(t, harness.GantryOptions{})
	if c := must(n.RuntimeConfig(callContext(t, callTimeout), &runtimeapi.RuntimeConfigRequest{}))(t); c.Linux.GetCgroupDriver() != runtimeapi.CgroupDriver_CGROUPFS {
		t.Errorf("configuration: %v", c)
	}
	b := n.pod(t, "cgroupfs")
	testResources(t, b)
	st := n.waitExited(t, b.start(t, "hungry", "exec dd if=/dev/zero of=/dev/null bs=40M count=1", limited(15<<20)))
	if st.ExitCode != 137 || st.Reason != "OOMKilled" {
		t.Errorf("out of memory: exit code %d, reason %q", st.ExitCode, st.Reason)
	}
	id := b.start(t, "outlives", "exec sleep 1000")
	if dir := cgroupDir(t, id, "memory"); !strings.HasSuffix(dir, "/"+id) {
		t.Errorf("its cgroup is %s", dir)
	}
	n.Restart(t)
	n.exec(t, id, "true")
	n.stop(t, id, 0)
}
