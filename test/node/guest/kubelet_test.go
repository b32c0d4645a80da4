//go:build node

package guest

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/harness/kube"
	"github.com/gantry-cri/gantry/test/images"
)

// TestKubelet has a kubelet run a pod over the daemon as the package installed it, in
// whose configuration there is nothing. test/kubelet has the rest of what a kubelet asks for.
func TestKubelet(t *testing.T) {
	n := connect(t)
	n.serve(t)
	img, err := images.Busybox(images.Options{Unique: "kubelet"}) // the daemon has none of it yet
	if err != nil {
		t.Fatal(err)
	}
	image := n.push(t, "kubelet:1", img)
	k := kube.StartKubelet(t, kube.KubeletOptions{Endpoint: endpoint})
	k.AddPod(t, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "installed"},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: new(int64(1)),
			Containers:                    []corev1.Container{{Name: "main", Image: image, Command: []string{"sh", "-c", "echo it runs; exec sleep 100000"}}},
		},
	})
	pod := k.WaitReady(t, "installed", time.Minute)
	id, ok := strings.CutPrefix(pod.Status.ContainerStatuses[0].ContainerID, "gantry://")
	if !ok {
		t.Fatalf("the container is %v", pod.Status.ContainerStatuses)
	}
	if st := n.state(t, id); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the daemon says %v", st)
	}
	if group := cgroupOf(t, pid(t, id)); !strings.HasPrefix(group, k.Cgroup+"/") {
		t.Errorf("the container is in %s, the kubelet's pods belong in %s", group, k.Cgroup)
	}
	main := kube.Container{Pod: "installed", Name: "main"}
	if log, err := k.Logs(t.Context(), main, ""); err != nil || log != "it runs\n" {
		t.Errorf("the kubelet's log: %q, %v", log, err)
	}
	if out, err := k.Exec(t.Context(), main, nil, "hostname"); err != nil || strings.TrimSpace(out.Stdout) != pod.Name {
		t.Errorf("exec by the kubelet: %+v, %v", out, err)
	}
	k.RemovePod(t, "installed")
	k.WaitGone(t, pod, time.Minute)
	list, err := n.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
	if err != nil || len(list.Items) != 1 || list.Items[0].State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("of the removed pod there is %v, %v", list, err)
	}
	harness.RemovePods(t, n.Raw) // as the kubelet does, once a minute
	checkNothingLeft(t)
}
