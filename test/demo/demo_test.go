// Package demo is the tour that make demo gives: a real registry, a real image,
// a pod of two containers through CRI, its log, the list and the metrics. Each
// step is checked, and at the end nothing may be left.
package demo

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/images"
)

// tour is what the steps of the demo share.
type tour struct {
	t        *testing.T
	registry *harness.Registry
	gantry   *harness.Gantry
	cri      harness.Raw
	pod      *runtimeapi.PodSandboxConfig
	id       string
}

// say prints a step as a person would type it.
func say(format string, args ...any) { fmt.Printf("\n\x1b[1m$ "+format+"\x1b[0m\n", args...) }

func TestDemo(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("the demo runs containers: it needs root")
	}
	d := &tour{t: t}
	d.start()
	web, busybox := d.pull("demo/web:1"), d.pull("demo/busybox:1")
	d.run()
	d.container("web", web, nil)
	d.container("client", busybox, []string{"sh", "-c",
		"until wget -qO- http://127.0.0.1/; do sleep 0.1; done; echo heard the web server on the loopback; exec sleep 1000"})
	d.askByIP()
	d.showLog()
	d.list()
	d.metrics()
	d.remove()
}

func (d *tour) start() {
	say("docker-registry serve, with an image of nginx from Debian packages and one of busybox")
	d.registry = harness.StartRegistry(d.t)
	d.push("demo/web:1", must(images.Web(d.t.Context(), images.DefaultCache(), images.Options{})))
	d.push("demo/busybox:1", must(images.Busybox(images.Options{})))
	d.gantry = harness.StartGantry(d.t, harness.GantryOptions{Registries: []string{d.registry.Addr}})
	say("gantry serve --dir %s --listen %s --metrics-address %s", d.gantry.Dir, d.gantry.Endpoint, d.gantry.MetricsAddr)
	d.cri = d.gantry.Raw(d.t)
	status, err := d.cri.Status(d.t.Context(), &runtimeapi.StatusRequest{Verbose: true})
	d.check(err)
	for _, c := range status.GetStatus().GetConditions() {
		fmt.Printf("%s: %t %s\n", c.GetType(), c.GetStatus(), c.GetMessage())
		if !c.GetStatus() {
			d.t.Fatalf("the node is not ready: %s", c.GetMessage())
		}
	}
	fmt.Printf("OCI runtime: %s\n", status.GetInfo()["ociRuntime"])
}

func (d *tour) push(name string, img remote.Taggable) {
	fmt.Println(d.registry.Push(d.t, name, img))
}

func (d *tour) pull(name string) (imageID string) {
	say("crictl pull %s", d.registry.Ref(name))
	start := time.Now()
	answer, err := d.cri.PullImage(d.t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: d.registry.Ref(name)}})
	d.check(err)
	fmt.Printf("%s in %s\n", answer.GetImageRef(), time.Since(start).Round(time.Millisecond))
	return answer.GetImageRef()
}

func (d *tour) run() {
	say("crictl runp pod.json")
	d.pod = &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: "demo", Namespace: "default", Uid: "demo-uid"},
		Hostname:     "demo",
		LogDirectory: filepath.Join(d.gantry.Base, "logs"),
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
		}},
	}
	answer, err := d.cri.RunPodSandbox(d.t.Context(), &runtimeapi.RunPodSandboxRequest{Config: d.pod})
	d.check(err)
	d.id = answer.GetPodSandboxId()
	fmt.Println(d.id)
}

func (d *tour) container(name, image string, command []string) {
	say("crictl create %.13s %s.json pod.json && crictl start …", d.id, name)
	created, err := d.cri.CreateContainer(d.t.Context(), &runtimeapi.CreateContainerRequest{
		PodSandboxId: d.id, SandboxConfig: d.pod,
		Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: name},
			Image:    &runtimeapi.ImageSpec{Image: image},
			Command:  command,
			LogPath:  name + ".log",
			Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
			}},
		},
	})
	d.check(err)
	_, err = d.cri.StartContainer(d.t.Context(), &runtimeapi.StartContainerRequest{ContainerId: created.GetContainerId()})
	d.check(err)
	fmt.Println(created.GetContainerId())
}

// askByIP reaches the web server from the node, as a kubelet's probe would.
func (d *tour) askByIP() {
	status, err := d.cri.PodSandboxStatus(d.t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: d.id})
	d.check(err)
	url := "http://" + status.GetStatus().GetNetwork().GetIp() + "/"
	say("curl %s", url)
	harness.Eventually(d.t, 10*time.Second, func() string {
		answer, err := http.Get(url)
		if err != nil {
			return err.Error()
		}
		defer answer.Body.Close()
		body, err := io.ReadAll(answer.Body)
		if err != nil || string(body) != images.WebBody {
			return fmt.Sprintf("answered %s %q, %v", answer.Status, body, err)
		}
		fmt.Printf("%s", body)
		return ""
	})
}

func (d *tour) showLog() {
	path := filepath.Join(d.pod.GetLogDirectory(), "client.log")
	say("cat %s", path)
	line := regexp.MustCompile(`(?m)^\S+ stdout F heard the web server on the loopback$`)
	harness.Eventually(d.t, 10*time.Second, func() string {
		raw, err := os.ReadFile(path)
		if err != nil || !line.Match(raw) || !strings.Contains(string(raw), strings.TrimSpace(images.WebBody)) {
			return fmt.Sprintf("the client's log is %q, %v", raw, err)
		}
		fmt.Printf("%s", raw)
		return ""
	})
}

func (d *tour) list() {
	say("gantry list")
	table := d.gantry.CLI(d.t, "list")
	fmt.Print(table)
	if n := strings.Count(table, "running"); n < 3 {
		d.t.Fatalf("%d running pods in the list, want the sandbox and two containers", n)
	}
}

func (d *tour) metrics() {
	say("curl http://%s/metrics | grep gantry_prepare_stage_duration_seconds_count", d.gantry.MetricsAddr)
	counts := regexp.MustCompile(`(?m)^gantry_prepare_stage_duration_seconds_count\{.*\} [1-9].*$`).FindAllString(d.gantry.Metrics(d.t), -1)
	fmt.Println(strings.Join(counts, "\n"))
	for _, stage := range []string{"resolve", "fetch", "verify", "extract", "allocate", "rootfs", "commit"} {
		if !strings.Contains(strings.Join(counts, "\n"), fmt.Sprintf(`result="success",stage=%q`, stage)) {
			d.t.Errorf("the histogram has no count for stage %s", stage)
		}
	}
}

func (d *tour) remove() {
	say("crictl stopp %.13s && crictl rmp %.13s", d.id, d.id)
	ctx := context.WithoutCancel(d.t.Context())
	_, err := d.cri.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: d.id})
	d.check(err)
	_, err = d.cri.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: d.id})
	d.check(err)
	if left := strings.TrimSpace(d.gantry.CLI(d.t, "list", "--format=json")); left != "[]" {
		d.t.Errorf("pods are left: %s", left)
	}
	fmt.Println("no pod is left; mounts, namespaces, processes and cgroups are compared next")
}

func (d *tour) check(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
