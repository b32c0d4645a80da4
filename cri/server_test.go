package cri

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/appc/spec/schema"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/stage0"
	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/manifest"
	"github.com/gantry-cri/gantry/stage0/pod"
	"github.com/gantry-cri/gantry/stage0/readonly"
	"github.com/gantry-cri/gantry/stage0/store"
	"github.com/gantry-cri/gantry/stage0/usage"
	"github.com/gantry-cri/gantry/stage1/cgroup"
	"github.com/gantry-cri/gantry/stage1/namespace"
	"github.com/gantry-cri/gantry/stage1/network"
)

func TestMain(m *testing.M) {
	manifest.RegisterIsolators()
	os.Exit(m.Run())
}

// rig is a server over a unix socket and real pod directories, with everything
// that needs the kernel or a network replaced.
type rig struct {
	t      *testing.T
	dir    string
	pods   *pod.Pods
	server *Server
	runtimeapi.RuntimeServiceClient
	images runtimeapi.ImageServiceClient

	mu       sync.Mutex // protects what follows
	runErr   error
	checkErr error         // what CheckApp says
	hold     chan struct{} // while not nil, Run waits for it
	graces   []time.Duration
	stored   []store.Entry
	fetches  int
	fetchErr error
	// The first two collections find a pull that is under way.
	collections int
	unknown     []string
	usage       uint64
	// noNetwork: no sandbox has come as far as a network.
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, dir: t.TempDir(), stored: []store.Entry{busybox}}
	var err error
	if r.pods, err = pod.Open(r.dir, filepath.Join(r.dir, "run")); err != nil {
		t.Fatal(err)
	}
	r.serve()
	return r
}

// open reads what lies on disk.
func (r *rig) open() (*Server, error) {
	ctx := klog.NewContext(context.Background(), klog.Background())
	return New(ctx, Config{
		Pods: r.pods, Preparer: r, Runner: r, Inspector: r, Executor: executor{}, Meter: r,
		Images: imageStore{r}, Puller: r, Disk: r, Node: r,
		StreamURL: &url.URL{Scheme: "http", Host: "127.0.0.1:1"},
		DataDir:   r.dir, Version: "1.2.3", Info: map[string]string{"dir": r.dir},
		Limits: Limits{Collect: time.Millisecond},
	})
}

// serve starts a server on what lies on disk, as a restarted daemon does.
func (r *rig) serve() {
	r.t.Helper()
	server, err := r.open()
	if err != nil {
		r.t.Fatal(err)
	}
	i := NewInterceptors(klog.Background(), r)
	g := grpc.NewServer(grpc.UnaryInterceptor(i.Unary), grpc.StreamInterceptor(i.Stream))
	server.Register(g)
	path := filepath.Join(r.t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		r.t.Fatal(err)
	}
	go func() { _ = g.Serve(l) }()
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		r.t.Fatal(err)
	}
	r.server, r.RuntimeServiceClient, r.images = server, runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn)
	r.t.Cleanup(func() {
		_ = conn.Close()
		g.Stop()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := server.Close(ctx); err != nil {
			r.t.Error(err)
		}
	})
}

func (r *rig) Prepare(ctx context.Context, s stage0.PodSpec) (manifest.UUID, error) {
	rec := pod.Record{Owner: s.Owner, Kind: s.Kind, Sandbox: s.Sandbox}
	for i, img := range s.Images {
		rec.Apps = append(rec.Apps, pod.AppRecord{
			Name: string(s.Manifest.Apps[i].Name), ImageID: img.Image.ID.String(), ImageName: img.Name, ImageRef: img.Ref,
		})
	}
	d, err := r.pods.New(ctx, rec, s.Request)
	if err != nil {
		return "", err
	}
	return d.UUID(), errors.Join(d.Commit(s.Manifest), d.Close())
}

func (r *rig) CheckApp(*schema.PodManifest, string) error { return r.checkErr }

func (r *rig) Run(ctx context.Context, u manifest.UUID) error {
	r.mu.Lock()
	hold, runErr := r.hold, r.runErr
	r.mu.Unlock()
	if hold != nil {
		<-hold
	}
	if runErr != nil {
		return runErr
	}
	return r.change(ctx, u, func(d *pod.Dir) error {
		if err := errors.Join(d.MakeRunDir(), d.MoveTo(pod.InRun)); err != nil {
			return err
		}
		if len(d.Record().Apps) == 0 {
			return d.SetReady()
		}
		app := d.Record().Apps[0].Name
		self, err := pod.ReadProcess(os.Getpid())
		if err != nil {
			return err
		}
		if err := os.MkdirAll(d.RunPath("apps", app), 0o755); err != nil {
			return err
		}
		return d.WriteStarted(app, pod.Started{Init: self, Monitor: self, StartedAt: time.Now(), Cgroup: "/c"})
	})
}

func (r *rig) change(ctx context.Context, u manifest.UUID, f func(*pod.Dir) error) error {
	d, err := r.pods.Lock(ctx, u)
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(f(d), d.Close())
}

// Stop waits out the grace, as for a process that ignores its signal.
func (r *rig) Stop(ctx context.Context, u manifest.UUID, grace time.Duration) error {
	r.mu.Lock()
	r.graces = append(r.graces, grace)
	r.mu.Unlock()
	select {
	case <-time.After(grace):
	case <-ctx.Done():
		return ctx.Err()
	}
	return r.exit(ctx, u, pod.Exit{Code: 137, Reason: "Error", EndedAt: time.Now()})
}

func (r *rig) exit(ctx context.Context, u manifest.UUID, x pod.Exit) error {
	return r.change(ctx, u, func(d *pod.Dir) error {
		for _, a := range d.Record().Apps {
			if err := d.WriteExit(a.Name, x); err != nil {
				return err
			}
		}
		return r.pods.ClearReady(u)
	})
}

func (r *rig) Remove(ctx context.Context, u manifest.UUID) error {
	return r.change(ctx, u, func(d *pod.Dir) error {
		return errors.Join(d.MoveTo(pod.InGarbage), d.Delete())
	})
}

func (r *rig) UpdateResources(context.Context, manifest.UUID, string, *runtimeapi.LinuxContainerResources) error {
	return nil
}

func (r *rig) Network(manifest.UUID) (network.Result, error) {
	return network.Result{IPs: []netip.Addr{netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("fd00::3")}, Raw: []byte(`{"cniVersion":"1.0.0"}`)}, nil
}

func (r *rig) Namespaces(manifest.UUID) (map[namespace.Kind]string, error) {
	return map[namespace.Kind]string{namespace.Net: "/run/x/ns/net"}, nil
}

func (r *rig) Spec(manifest.UUID, string) (*specs.Spec, error) {
	return &specs.Spec{Process: &specs.Process{User: specs.User{UID: 1000, GID: 1000, AdditionalGids: []uint32{1234, 1000}}}}, nil
}

func (r *rig) Watch(ctx context.Context, u manifest.UUID, app string) (<-chan pod.Exit, error) {
	c := make(chan pod.Exit, 1)
	go func() {
		defer close(c)
		for ctx.Err() == nil {
			p, err := r.pods.Load(u)
			if err != nil {
				return
			}
			if p.AppPhase(app) == pod.Starting { // as stage1 settles a start that was cut short
				_ = r.exit(ctx, u, pod.Exit{Code: 128, Reason: "StartError", EndedAt: time.Now()})
				continue
			}
			if x, ok := p.Exits[app]; ok {
				c <- x
				return
			}
			select {
			case <-ctx.Done():
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	return c, nil
}

func (r *rig) WatchInit(context.Context, manifest.UUID) (<-chan struct{}, error) { return nil, nil }

// executor knows two commands.
type executor struct{}

func (executor) ExecSync(_ context.Context, _ manifest.UUID, _ string, cmd []string, _ time.Duration) (ExecResult, error) {
	if cmd[0] == "sleep" {
		return ExecResult{}, fmt.Errorf("sleep: %w", context.DeadlineExceeded)
	}
	return ExecResult{Stdout: []byte("out"), ExitCode: 3}, nil
}

func (executor) Exec(context.Context, manifest.UUID, string, []string, Streams) (int32, error) {
	return 0, nil
}
func (executor) Attach(context.Context, manifest.UUID, string, Streams) error { return nil }
func (executor) PortForward(context.Context, manifest.UUID, uint16, io.ReadWriteCloser) error {
	return nil
}
func (executor) ReopenLog(context.Context, manifest.UUID, string) error { return nil }

func (r *rig) Stats(manifest.UUID, string) (cgroup.Stats, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.usage += 1e6
	return cgroup.Stats{Timestamp: time.Now(), CPU: cgroup.CPUStats{UsageNano: r.usage}}, nil
}

func (r *rig) NetworkStats(manifest.UUID) ([]namespace.InterfaceStat, error) {
	return []namespace.InterfaceStat{{Name: "eth0", RxBytes: 7}}, nil
}
func (r *rig) Upper(u manifest.UUID, app string) string { return r.pods.Path(u, "upper", app) }

// imageStore is the rig as a store of images: Remove is another than the runner's.
type imageStore struct{ *rig }

var busybox = store.Entry{
	Image:   store.Image{ID: digest.FromString("busybox"), AppcID: "sha512-" + strings.Repeat("0a", 64), Size: 7},
	Tags:    []string{"docker.io/library/busybox:latest"},
	Digests: []string{"docker.io/library/busybox@" + digest.FromString("manifest").String()},
}

func (s imageStore) Lookup(name string) (store.Entry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.stored {
		if name == e.Image.ID.String() || slices.Contains(e.Tags, name) || slices.Contains(e.Digests, name) || name == "busybox" {
			return e, nil
		}
	}
	return store.Entry{}, fmt.Errorf("%q: %w", name, errdefs.ErrNotFound)
}

func (s imageStore) List() ([]store.Entry, error) { return s.stored, nil }

func (s imageStore) Config(digest.Digest) (ocispec.Image, error) {
	return ocispec.Image{Config: ocispec.ImageConfig{User: "1003:web", Cmd: []string{"/bin/sh"}}}, nil
}

func (s imageStore) Manifest(digest.Digest) ([]byte, error) { return []byte("{}"), nil }

func (s imageStore) Remove(_ context.Context, id digest.Digest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if slices.ContainsFunc(s.stored, func(e store.Entry) bool { return e.Image.ID == id && e.ReadOnly != "" }) {
		return readonly.ErrReadOnly
	}
	s.stored = slices.DeleteFunc(s.stored, func(e store.Entry) bool { return e.Image.ID == id })
	return nil
}

func (r *rig) Fetch(_ context.Context, req stage0.FetchRequest) (store.Entry, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fetches++
	return busybox, r.fetchErr
}

func (r *rig) CollectTrees(context.Context) ([]stage0.Freed, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.collections++
	if r.collections < 3 {
		return nil, fmt.Errorf("a pull is under way: %w", errdefs.ErrBusy)
	}
	return nil, nil
}

func (r *rig) ImageUsage(context.Context) (usage.Usage, error) {
	return usage.Usage{Bytes: 4096, Inodes: 2}, nil
}

func (r *rig) Status(context.Context) NodeStatus {
	return NodeStatus{NetworkErr: errors.New("no configuration in /etc/cni/net.d"), Handlers: []Handler{{}}, Runtime: "crun: first in PATH"}
}

func (r *rig) Details(context.Context) map[string]any {
	return map[string]any{"cniconfig": []string{"bridge"}}
}

func (r *rig) CallDone(string, string, time.Duration) {}
func (r *rig) UnknownField(message string)            { r.unknown = append(r.unknown, message) }

func sandboxConfig(name string) *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "default", Uid: "uid-" + name},
		LogDirectory: "/var/log/pods/default_" + name,
		Labels:       map[string]string{"io.kubernetes.pod.uid": "uid-" + name, "app": "x"},
		Annotations:  map[string]string{"Some/Key": "v"},
		Linux:        &runtimeapi.LinuxPodSandboxConfig{},
	}
}

func containerConfig(name string) *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{
		Metadata:    &runtimeapi.ContainerMetadata{Name: name},
		Image:       &runtimeapi.ImageSpec{Image: busybox.Image.ID.String(), UserSpecifiedImage: "busybox"},
		Command:     []string{"/bin/sleep", "1000"},
		Labels:      map[string]string{"io.kubernetes.container.name": name},
		Annotations: map[string]string{"io.kubernetes.container.hash": "abc"},
		LogPath:     name + "/0.log",
		Mounts:      []*runtimeapi.Mount{{ContainerPath: "/dev/termination-log", HostPath: "/var/lib/kubelet/x"}},
		Linux:       &runtimeapi.LinuxContainerConfig{Resources: &runtimeapi.LinuxContainerResources{CpuShares: 2, MemoryLimitInBytes: 1 << 20}},
	}
}

func (r *rig) sandbox(name string) string {
	r.t.Helper()
	resp, err := r.RunPodSandbox(r.t.Context(), &runtimeapi.RunPodSandboxRequest{Config: sandboxConfig(name)})
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.PodSandboxId
}

func (r *rig) container(sandbox, name string) string {
	r.t.Helper()
	resp, err := r.CreateContainer(r.t.Context(), &runtimeapi.CreateContainerRequest{
		PodSandboxId: sandbox, Config: containerConfig(name), SandboxConfig: sandboxConfig("a"),
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.ContainerId
}

func (r *rig) start(id string) {
	r.t.Helper()
	if _, err := r.StartContainer(r.t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) containerStatus(id string) *runtimeapi.ContainerStatus {
	r.t.Helper()
	resp, err := r.ContainerStatus(r.t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.Status
}

func (r *rig) listed() (sandboxes, containers []string) {
	r.t.Helper()
	ss, err := r.ListPodSandbox(r.t.Context(), &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		r.t.Fatal(err)
	}
	for _, s := range ss.Items {
		sandboxes = append(sandboxes, s.Id[:6]+" "+strings.TrimPrefix(s.State.String(), "SANDBOX_"))
	}
	cs, err := r.ListContainers(r.t.Context(), &runtimeapi.ListContainersRequest{})
	if err != nil {
		r.t.Fatal(err)
	}
	for _, c := range cs.Containers {
		containers = append(containers, c.Id[:6]+" "+strings.TrimPrefix(c.State.String(), "CONTAINER_"))
	}
	return sandboxes, containers
}

func wantCode(t *testing.T, err error, code codes.Code) {
	t.Helper()
	if status.Code(err) != code {
		t.Errorf("got %v, want code %v", err, code)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); {
		if ok() {
			return
		}
		<-time.After(5 * time.Millisecond)
	}
	t.Errorf("%s: not within 5 s", what)
}

func TestLifeOfAPod(t *testing.T) {
	r := newRig(t)
	box := r.sandbox("a")
	if len(box) != 64 {
		t.Errorf("sandbox id %q", box)
	}
	if again := r.sandbox("a"); again != box {
		t.Errorf("the same request again made %s, want %s", again, box)
	}
	st, err := r.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: box, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	if st.Status.State != runtimeapi.PodSandboxState_SANDBOX_READY || st.Status.Network.Ip != "10.1.2.3" || st.Status.Network.AdditionalIps[0].Ip != "fd00::3" {
		t.Errorf("status %v", st.Status)
	}
	if st.Status.Annotations["Some/Key"] != "v" || !strings.Contains(st.Info["info"], "/run/x/ns/net") {
		t.Errorf("annotations %v, info %s", st.Status.Annotations, st.Info["info"])
	}
	id := r.container(box, "c")
	if again := r.container(box, "c"); again != id {
		t.Errorf("the same container again is %s, want %s", again, id)
	}
	if s := r.containerStatus(id); s.State != runtimeapi.ContainerState_CONTAINER_CREATED || s.CreatedAt == 0 || s.StartedAt != 0 {
		t.Errorf("created: %v", s)
	}
	r.start(id)
	s := r.containerStatus(id)
	if s.State != runtimeapi.ContainerState_CONTAINER_RUNNING || s.StartedAt == 0 || s.Image.Image != busybox.Tags[0] || s.ImageRef != busybox.Digests[0] ||
		s.ImageId != busybox.Image.ID.String() || s.LogPath != "/var/log/pods/default_a/c/0.log" || len(s.Mounts) != 1 ||
		s.Annotations["io.kubernetes.container.hash"] != "abc" || s.Resources.Linux.MemoryLimitInBytes != 1<<20 {
		t.Errorf("running: %v", s)
	}
	if u := s.User.GetLinux(); u.Uid != 1000 || !slices.Equal(u.SupplementalGroups, []int64{1000, 1234}) {
		t.Errorf("user %v", u)
	}
	_, err = r.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id})
	wantCode(t, err, codes.FailedPrecondition)
	if ss, cs := r.listed(); len(ss) != 1 || len(cs) != 1 || !strings.HasSuffix(cs[0], "RUNNING") {
		t.Errorf("listed %v %v", ss, cs)
	}
	for range 2 {
		if _, err := r.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: box}); err != nil {
			t.Error(err)
		}
	}
	if s := r.containerStatus(id); s.State != runtimeapi.ContainerState_CONTAINER_EXITED || s.ExitCode != 137 || s.Reason != "Error" || s.FinishedAt == 0 {
		t.Errorf("stopped: %v", s)
	}
	_, err = r.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: box, Config: containerConfig("late")})
	wantCode(t, err, codes.FailedPrecondition)
	for range 2 {
		if _, err := r.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: box}); err != nil {
			t.Error(err)
		}
	}
	if ss, cs := r.listed(); len(ss) != 0 || len(cs) != 0 {
		t.Errorf("listed after removal: %v %v", ss, cs)
	}
	_, err = r.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
	wantCode(t, err, codes.NotFound)
}

func TestGoneIsStopped(t *testing.T) {
	r := newRig(t)
	const id = "f7b7c3e2-6d1f-4b7d-9a51-1f6d8f1c0a55"
	_, e1 := r.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: id})
	_, e2 := r.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})
	_, e3 := r.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id})
	_, e4 := r.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: id})
	_, e5 := r.images.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: strings.Repeat("0", 64)}})
	if err := errors.Join(e1, e2, e3, e4, e5); err != nil {
		t.Error(err)
	}
	_, err := r.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{})
	wantCode(t, err, codes.InvalidArgument)
}

func TestOtherConfigurationIsRefused(t *testing.T) {
	r := newRig(t)
	box := r.sandbox("a")
	other := sandboxConfig("a")
	other.Hostname = "other"
	_, err := r.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: other})
	wantCode(t, err, codes.AlreadyExists)
	if !strings.Contains(err.Error(), box) || strings.Contains(err.Error(), "reserved") {
		t.Errorf("the reason is missing: %v", err)
	}
	r.container(box, "c")
	changed := containerConfig("c")
	changed.Mounts[0].HostPath = "/elsewhere"
	_, err = r.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: box, Config: changed})
	wantCode(t, err, codes.AlreadyExists)
}

func TestSandboxInTheMakingIsNotListed(t *testing.T) {
	r := newRig(t)
	hold := make(chan struct{})
	r.hold = hold
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := r.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: sandboxConfig("a")})
	wantCode(t, err, codes.DeadlineExceeded)
	if ss, _ := r.listed(); len(ss) != 0 {
		t.Errorf("listed while it is made: %v", ss)
	}
	close(hold)
	r.mu.Lock()
	r.hold = nil
	r.mu.Unlock()
	box := r.sandbox("a")
	if ss, _ := r.listed(); len(ss) != 1 || !strings.HasSuffix(ss[0], " READY") {
		t.Errorf("listed once it is claimed: %v", ss)
	}
	if all, err := r.pods.List(); err != nil || len(all) != 1 {
		t.Errorf("%d pods for sandbox %s (%v), want the first one's result", len(all), box, err)
	}
}

func TestFailedRunLeavesNothing(t *testing.T) {
	r := newRig(t)
	r.runErr = errors.New("no network")
	_, err := r.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: sandboxConfig("a")})
	wantCode(t, err, codes.Internal)
	if all, _ := r.pods.List(); len(all) != 0 {
		t.Errorf("left %v", all)
	}
	r.runErr = nil
	r.sandbox("a")
}

func TestFailedStartExits(t *testing.T) {
	r := newRig(t)
	id := r.container(r.sandbox("a"), "c")
	r.runErr = errors.New("exec /nope: no such file")
	_, err := r.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id})
	wantCode(t, err, codes.Internal)
	s := r.containerStatus(id)
	if s.State != runtimeapi.ContainerState_CONTAINER_EXITED || s.ExitCode != 128 || s.Reason != "StartError" || !strings.Contains(s.Message, "/nope") {
		t.Errorf("status %v", s)
	}
}

func TestExitIsNoticed(t *testing.T) {
	r := newRig(t)
	id := r.container(r.sandbox("a"), "c")
	r.start(id)
	u, _ := manifest.ID(id).UUID()
	if err := r.exit(t.Context(), u, pod.Exit{Reason: "Completed", EndedAt: time.Now()}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "EXITED", func() bool { return r.containerStatus(id).State == runtimeapi.ContainerState_CONTAINER_EXITED })
}

func TestShorterStopTakesEffect(t *testing.T) {
	r := newRig(t)
	id := r.container(r.sandbox("a"), "c")
	r.start(id)
	long := make(chan error, 1)
	go func() {
		_, err := r.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 300})
		long <- err
	}()
	eventually(t, "a stop", func() bool { r.mu.Lock(); defer r.mu.Unlock(); return len(r.graces) == 1 })
	start := time.Now()
	if _, err := r.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 1}); err != nil {
		t.Error(err)
	}
	if err := <-long; err != nil || time.Since(start) > 10*time.Second {
		t.Errorf("the long stop: %v after %v", err, time.Since(start))
	}
	if len(r.graces) != 2 || r.graces[1] > time.Second {
		t.Errorf("graces %v", r.graces)
	}
}

func TestRestartFindsEverything(t *testing.T) {
	r := newRig(t)
	box := r.sandbox("a")
	id, created := r.container(box, "c"), r.container(box, "d")
	r.start(id)
	ss, cs := r.listed()
	r.serve()
	if ss2, cs2 := r.listed(); !slices.Equal(ss, ss2) || !slices.Equal(cs, cs2) {
		t.Errorf("listed %v %v, before %v %v", ss2, cs2, ss, cs)
	}
	if again := r.sandbox("a"); again != box {
		t.Errorf("the same sandbox is %s, was %s", again, box)
	}
	if again := r.container(box, "d"); again != created {
		t.Errorf("the same container is %s, was %s", again, created)
	}
}

func TestSandboxThatWasCutShortIsReplaced(t *testing.T) {
	r := newRig(t)
	for _, place := range []pod.Place{pod.InPrepared, pod.InRun} {
		t.Run("killed in "+string(place), func(t *testing.T) {
			box := r.sandbox("a")
			u, _ := manifest.ID(box).UUID()
			if err := r.change(t.Context(), u, func(d *pod.Dir) error {
				return errors.Join(os.Remove(d.RunPath("ready")), d.MoveTo(place))
			}); err != nil {
				t.Fatal(err)
			}
			r.serve()
			if ss, _ := r.listed(); len(ss) != 1 || !strings.HasSuffix(ss[0], "NOTREADY") {
				t.Errorf("listed %v", ss)
			}
			if r.sandbox("a") == box {
				t.Error("a sandbox that never was ready was taken for one")
			}
			if ss, _ := r.listed(); len(ss) != 1 || !strings.HasSuffix(ss[0], " READY") {
				t.Errorf("listed afterwards: %v", ss)
			}
		})
	}
}

func TestStartThatWasCutShortIsSettledFirst(t *testing.T) {
	r := newRig(t)
	id := r.container(r.sandbox("a"), "c")
	u, _ := manifest.ID(id).UUID()
	if err := r.change(t.Context(), u, func(d *pod.Dir) error { return errors.Join(d.MakeRunDir(), d.MoveTo(pod.InRun)) }); err != nil {
		t.Fatal(err)
	}
	r.serve()
	if s := r.containerStatus(id); s.State != runtimeapi.ContainerState_CONTAINER_EXITED || s.ExitCode != 128 {
		t.Errorf("the first answer: %v", s)
	}
}

func TestStoppedSandboxIsNotReplaced(t *testing.T) {
	r := newRig(t)
	box := r.sandbox("a")
	if _, err := r.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: box}); err != nil {
		t.Fatal(err)
	}
	for range 2 { // and after a restart
		_, err := r.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: sandboxConfig("a")})
		wantCode(t, err, codes.AlreadyExists)
		r.serve()
	}
}

func TestSandboxStaysForItsContainers(t *testing.T) {
	r := newRig(t)
	box := r.sandbox("a")
	id := r.container(box, "c")
	u, _ := manifest.ID(box).UUID()
	if err := r.Remove(t.Context(), u); err != nil { // behind the server's back
		t.Fatal(err)
	}
	eventually(t, "NOTREADY", func() bool {
		ss, cs := r.listed()
		return len(cs) == 1 && len(ss) == 1 && strings.HasSuffix(ss[0], "NOTREADY")
	})
	if _, err := r.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: id[:9]}); err != nil {
		t.Fatal(err)
	}
	if ss, cs := r.listed(); len(ss)+len(cs) != 0 {
		t.Errorf("listed %v %v", ss, cs)
	}
}

func TestOwner(t *testing.T) {
	r := newRig(t)
	box := r.sandbox("a")
	u, _ := manifest.ID(box).UUID()
	pm, err := r.pods.Manifest(u)
	if err != nil {
		t.Fatal(err)
	}
	cli, err := r.Prepare(t.Context(), stage0.PodSpec{Owner: pod.OwnerCLI, Kind: pod.KindPod, Manifest: pm})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "counted", func() bool { return r.server.Counts()[Count{pod.Prepared, pod.KindPod, pod.OwnerCLI}] == 1 })
	if ss, _ := r.listed(); len(ss) != 1 {
		t.Errorf("listed %v", ss)
	}
	for _, id := range []string{string(cli), cli.Hex()} {
		_, err = r.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
		wantCode(t, err, codes.NotFound)
		if _, err := r.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
			t.Error(err)
		}
	}
	if _, err := r.pods.Load(cli); err != nil {
		t.Errorf("CRI touched a pod of the command line: %v", err)
	}
}

func TestFilters(t *testing.T) {
	r := newRig(t)
	a, b := r.sandbox("a"), r.sandbox("b")
	r.container(a, "one")
	two := r.container(b, "two")
	r.start(two)
	ready := &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}
	for _, tt := range []struct {
		name   string
		filter *runtimeapi.PodSandboxFilter
		want   []string
	}{
		{"none, in order of creation", nil, []string{a, b}},
		{"prefix of an id", &runtimeapi.PodSandboxFilter{Id: b[:8]}, []string{b}},
		{"state", &runtimeapi.PodSandboxFilter{State: ready}, []string{a, b}},
		{"labels, all of them", &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"app": "x", "io.kubernetes.pod.uid": "uid-a"}}, []string{a}},
		{"a label that nobody has", &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"nope": ""}}, nil},
	} {
		t.Run("sandboxes by "+tt.name, func(t *testing.T) {
			resp, err := r.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{Filter: tt.filter})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, s := range resp.Items {
				got = append(got, s.Id)
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
	running := &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}
	for _, tt := range []struct {
		name   string
		filter *runtimeapi.ContainerFilter
		want   int
	}{
		{"none", nil, 2},
		{"state", &runtimeapi.ContainerFilter{State: running}, 1},
		{"sandbox", &runtimeapi.ContainerFilter{PodSandboxId: a}, 1},
		{"beginning of a sandbox", &runtimeapi.ContainerFilter{PodSandboxId: b[:10], State: running}, 1},
		{"id", &runtimeapi.ContainerFilter{Id: two}, 1},
		{"id and another sandbox", &runtimeapi.ContainerFilter{Id: two, PodSandboxId: a}, 0},
	} {
		t.Run("containers by "+tt.name, func(t *testing.T) {
			resp, err := r.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{Filter: tt.filter})
			if err != nil || len(resp.Containers) != tt.want {
				t.Errorf("%d containers, %v; want %d", len(resp.GetContainers()), err, tt.want)
			}
		})
	}
}

func TestImages(t *testing.T) {
	r := newRig(t)
	spec := &runtimeapi.ImageSpec{Image: "busybox"}
	pulled, err := r.images.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: spec})
	if err != nil || pulled.ImageRef != busybox.Image.ID.String() {
		t.Fatalf("pulled %v, %v", pulled, err)
	}
	st, err := r.images.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: spec})
	if err != nil || st.Image.Uid.GetValue() != 1003 || st.Image.Username != "" || len(st.Info) != 0 {
		t.Errorf("status %v, %v", st, err)
	}
	absent, err := r.images.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: "nope"}})
	if err != nil || absent.Image != nil {
		t.Errorf("absent: %v, %v", absent, err)
	}
	_, err = r.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: r.sandbox("a"), Config: &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Image: &runtimeapi.ImageSpec{Image: "nope"},
	}})
	wantCode(t, err, codes.NotFound)
	if !strings.Contains(fmt.Sprint(err), "nope") {
		t.Errorf("the image is not named: %v", err)
	}
	r.fetchErr = fmt.Errorf("registry.example: %w", errdefs.ErrUnavailable)
	_, err = r.images.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: spec})
	wantCode(t, err, codes.Unknown)
	if !strings.HasPrefix(status.Convert(err).Message(), "RegistryUnavailable") {
		t.Errorf("got %v", err)
	}
	if r.fetches != 2 {
		t.Errorf("the registry was asked %d times, want 2", r.fetches)
	}
	fs, err := r.images.ImageFsInfo(t.Context(), &runtimeapi.ImageFsInfoRequest{})
	if err != nil || fs.ImageFilesystems[0].UsedBytes.Value != 4096 || fs.ImageFilesystems[0].FsId.Mountpoint != r.dir {
		t.Errorf("file systems %v, %v", fs, err)
	}
	if _, err := r.images.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: busybox.Image.ID.String()}}); err != nil {
		t.Error(err)
	}
	list, err := r.images.ListImages(t.Context(), &runtimeapi.ListImagesRequest{})
	if err != nil || len(list.Images) != 0 {
		t.Errorf("list %v, %v", list, err)
	}
	eventually(t, "the trees to be collected once no pull is under way", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.collections == 3
	})
}

// TestImageOfAnotherPlatform has a name that the command line gave to an image which does
// not run here: to the kubelet it is absent, so that it pulls. Its id finds it.
func TestImageOfAnotherPlatform(t *testing.T) {
	r := newRig(t)
	foreign := busybox
	foreign.Image.Platform = ocispec.Platform{OS: "linux", Architecture: "s390x"}
	r.mu.Lock()
	r.stored = []store.Entry{foreign}
	r.mu.Unlock()
	for name, found := range map[string]bool{busybox.Tags[0]: false, busybox.Digests[0]: false, string(busybox.Image.ID): true} {
		spec := &runtimeapi.ImageSpec{Image: name}
		st, err := r.images.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: spec})
		if err != nil || (st.Image != nil) != found {
			t.Errorf("status of %s: %v, %v", name, st, err)
		}
		list, err := r.images.ListImages(t.Context(), &runtimeapi.ListImagesRequest{Filter: &runtimeapi.ImageFilter{Image: spec}})
		if err != nil || (len(list.Images) == 1) != found {
			t.Errorf("list of %s: %v, %v", name, list, err)
		}
		_, err = r.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: r.sandbox("a"), Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Image: spec,
		}})
		if (err == nil) != found {
			t.Errorf("container of %s: %v", name, err)
		}
	}
	list, err := r.images.ListImages(t.Context(), &runtimeapi.ListImagesRequest{})
	if err != nil || len(list.Images) != 1 {
		t.Errorf("list of all: %v, %v", list, err)
	}
}

// TestReadOnlyImage has an image that cannot be removed, which keeps the kubelet from
// collecting it.
func TestReadOnlyImage(t *testing.T) {
	r := newRig(t)
	baked := busybox
	baked.ReadOnly = "/disk"
	r.mu.Lock()
	r.stored = []store.Entry{baked}
	r.mu.Unlock()
	spec := &runtimeapi.ImageSpec{Image: "busybox"}
	st, err := r.images.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: spec, Verbose: true})
	if err != nil || !st.Image.GetPinned() || !strings.Contains(st.Info["info"], `"readOnlyStore":"/disk"`) {
		t.Errorf("status %v, %v", st, err)
	}
	_, err = r.images.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: spec})
	wantCode(t, err, codes.FailedPrecondition)
	if !strings.Contains(fmt.Sprint(err), "read-only store") {
		t.Errorf("remove: %v", err)
	}
}

func TestExecSync(t *testing.T) {
	r := newRig(t)
	id := r.container(r.sandbox("a"), "c")
	_, err := r.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}})
	wantCode(t, err, codes.FailedPrecondition)
	r.start(id)
	resp, err := r.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}})
	if err != nil || resp.ExitCode != 3 || string(resp.Stdout) != "out" {
		t.Errorf("got %v, %v", resp, err)
	}
	_, err = r.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sleep"}, Timeout: 1})
	wantCode(t, err, codes.DeadlineExceeded)
	x, err := r.Exec(t.Context(), &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"sh"}, Stdout: true})
	if err != nil || !strings.HasPrefix(x.Url, "http://127.0.0.1:1/exec/") {
		t.Errorf("got %v, %v", x, err)
	}
	_, err = r.Exec(t.Context(), &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"sh"}})
	wantCode(t, err, codes.InvalidArgument)
}

func TestUpdateResourcesIsShown(t *testing.T) {
	r := newRig(t)
	id := r.container(r.sandbox("a"), "c")
	r.start(id)
	_, err := r.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{CpuQuota: 5000},
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // and again after a restart
		if l := r.containerStatus(id).Resources.Linux; l.CpuQuota != 5000 || l.MemoryLimitInBytes != 1<<20 {
			t.Errorf("resources %v", l)
		}
		r.serve()
	}
}

func TestUpdatePodSandboxResources(t *testing.T) {
	r := newRig(t)
	box := r.sandbox("a")
	for id, want := range map[string]codes.Code{box: codes.OK, r.container(box, "c"): codes.NotFound, "none": codes.NotFound} {
		_, err := r.UpdatePodSandboxResources(t.Context(), &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: id})
		if status.Code(err) != want {
			t.Errorf("resources of %s: %v, want %v", id, err, want)
		}
	}
}

func TestStats(t *testing.T) {
	r := newRig(t)
	box := r.sandbox("a")
	id := r.container(box, "c")
	r.start(id)
	first, err := r.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: id})
	if err != nil || first.Stats.Cpu.Timestamp == 0 || first.Stats.Memory.Timestamp == 0 || first.Stats.Attributes.Id != id {
		t.Errorf("got %v, %v", first, err)
	}
	for _, f := range []*runtimeapi.ContainerStatsFilter{nil, {Id: id}, {LabelSelector: map[string]string{"io.kubernetes.container.name": "c"}}} {
		if l, err := r.ListContainerStats(t.Context(), &runtimeapi.ListContainerStatsRequest{Filter: f}); err != nil || len(l.Stats) != 1 {
			t.Errorf("filter %v: %v, %v", f, l, err)
		}
	}
	<-time.After(fresh + 100*time.Millisecond)
	second, err := r.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: id})
	if err != nil || second.Stats.Cpu.UsageNanoCores.GetValue() == 0 || second.Stats.Cpu.Timestamp == first.Stats.Cpu.Timestamp {
		t.Errorf("the second sample: %v, %v", second, err)
	}
	pods, err := r.ListPodSandboxStats(t.Context(), &runtimeapi.ListPodSandboxStatsRequest{})
	if err != nil || len(pods.Stats) != 1 || len(pods.Stats[0].Linux.Containers) != 1 || pods.Stats[0].Linux.Network.DefaultInterface.RxBytes.Value != 7 {
		t.Errorf("pods: %v, %v", pods, err)
	}
	eventually(t, "writable layer", func() bool {
		l, err := r.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: id})
		return err == nil && l.Stats.WritableLayer.GetTimestamp() != 0
	})
}

func TestNode(t *testing.T) {
	r := newRig(t)
	v, err := r.Version(t.Context(), &runtimeapi.VersionRequest{Version: "0.1.0"})
	if err != nil || v.RuntimeName != "gantry" || v.RuntimeVersion != "1.2.3" || v.RuntimeApiVersion != "v1" || v.Version == "" {
		t.Errorf("version %v, %v", v, err)
	}
	st, err := r.RuntimeServiceClient.Status(t.Context(), &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	c := st.Status.Conditions
	if !c[0].Status || c[1].Status || !strings.Contains(c[1].Message, "/etc/cni/net.d") {
		t.Errorf("conditions %v", c)
	}
	if len(st.RuntimeHandlers) != 1 || !st.Features.SupplementalGroupsPolicy || st.Info["ociRuntime"] != "crun: first in PATH" || !strings.HasPrefix(st.Info["config"], "{") || st.Info["cniconfig"] != `["bridge"]` {
		t.Errorf("got %v", st)
	}
	_, err = r.CheckpointContainer(t.Context(), &runtimeapi.CheckpointContainerRequest{})
	wantCode(t, err, codes.Unimplemented)
}

func TestUnknownFieldsAreCounted(t *testing.T) {
	r := newRig(t)
	req := &runtimeapi.VersionRequest{}
	req.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 999, protowire.VarintType), 1))
	if _, err := r.Version(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(r.unknown, []string{"VersionRequest"}) {
		t.Errorf("counted %v", r.unknown)
	}
}
