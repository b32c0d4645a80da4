package kube

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"

	"github.com/gantry-cri/gantry/test/harness"
)

// Container names a container of a pod as the kubelet's API does.
type Container struct {
	Namespace string // default unless set
	Pod       string // the name in the manifest
	Name      string
}

// path is /VERB/NAMESPACE/POD/CONTAINER.
func (c Container) path(verb string) string {
	namespace := c.Namespace
	if namespace == "" {
		namespace = "default"
	}
	path := "/" + verb + "/" + namespace + "/" + PodName(c.Pod)
	if c.Name != "" {
		path += "/" + c.Name
	}
	return path
}

// insecureTransport does not check the kubelet's self-signed certificate.
var insecureTransport = &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}} //nolint:gosec // loopback, made a moment ago

// Get reads a path of the kubelet's HTTPS port, such as /stats/summary.
func (k *Kubelet) Get(ctx context.Context, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+k.Addr+path, nil)
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", path, err)
	}
	resp, err := (&http.Client{Transport: insecureTransport}).Do(req)
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", path, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", path, err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("get %s: %s: %s", path, resp.Status, body)
	}
	return body, nil
}

// Pods are the pods of the kubelet with their status, by the name in the
// manifest.
func (k *Kubelet) Pods(ctx context.Context) (map[string]*corev1.Pod, error) {
	body, err := k.Get(ctx, "/pods")
	if err != nil {
		return nil, err
	}
	var list corev1.PodList
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, fmt.Errorf("decode pods: %w", err)
	}
	pods := map[string]*corev1.Pod{}
	for i := range list.Items {
		p := &list.Items[i]
		pods[p.Name[:max(0, len(p.Name)-len("-"+NodeName))]] = p
	}
	return pods, nil
}

// WaitPod waits until check, given the pod (never nil), has no complaint.
func (k *Kubelet) WaitPod(tb testing.TB, name string, timeout time.Duration, check func(*corev1.Pod) string) *corev1.Pod {
	tb.Helper()
	var pod *corev1.Pod
	harness.Eventually(tb, timeout, func() string {
		pods, err := k.Pods(tb.Context())
		if err != nil {
			return err.Error()
		}
		if pod = pods[name]; pod == nil {
			return fmt.Sprintf("the kubelet does not know pod %s", name)
		}
		if complaint := check(pod); complaint != "" {
			status, _ := json.MarshalIndent(pod.Status, "", " ")
			return fmt.Sprintf("pod %s: %s\n%s", name, complaint, status)
		}
		return ""
	})
	return pod
}

// WaitReady waits until the pod is Ready.
func (k *Kubelet) WaitReady(tb testing.TB, name string, timeout time.Duration) *corev1.Pod {
	tb.Helper()
	return k.WaitPod(tb, name, timeout, func(p *corev1.Pod) string {
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
				return ""
			}
		}
		return "not ready"
	})
}

// WaitGone waits until the kubelet does not know the pod any more and has
// cleared away all of it.
func (k *Kubelet) WaitGone(tb testing.TB, pod *corev1.Pod, timeout time.Duration) {
	tb.Helper()
	harness.Eventually(tb, timeout, func() string {
		pods, err := k.Pods(tb.Context())
		if err != nil {
			return err.Error()
		}
		for _, p := range pods {
			if p.UID == pod.UID {
				return fmt.Sprintf("pod %s is still known to the kubelet", pod.Name)
			}
		}
		return k.podCgroups(string(pod.UID))
	})
}

// Logs reads a container's log through the kubelet; query is one of kubectl's
// options such as previous=true or tailLines=5, or empty.
func (k *Kubelet) Logs(ctx context.Context, c Container, query string) (string, error) {
	body, err := k.Get(ctx, c.path("containerLogs")+"?"+query)
	return string(body), err
}

// Follow reads a container's log with kubectl's -f. When it returns the kubelet has
// answered with the first of it; the whole text comes when the log ends.
func (k *Kubelet) Follow(tb testing.TB, c Container) <-chan string {
	tb.Helper()
	url := "https://" + k.Addr + c.path("containerLogs") + "?follow=true"
	req, err := http.NewRequestWithContext(context.WithoutCancel(tb.Context()), http.MethodGet, url, http.NoBody)
	if err != nil {
		tb.Fatal(err)
	}
	resp, err := (&http.Client{Transport: insecureTransport}).Do(req)
	if err != nil {
		tb.Fatalf("follow log: %v", err)
	}
	text := make(chan string, 1)
	go func() {
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			body = append(body, "\n"+err.Error()...)
		}
		text <- string(body)
	}()
	return text
}

// ExecResult is what a command wrote.
type ExecResult struct{ Stdout, Stderr string }

// Exec runs a command in a container by the way of kubectl exec over SPDY. A
// non-zero exit is an error with an ExitStatus method (client-go's
// util/exec.CodeExitError).
func (k *Kubelet) Exec(ctx context.Context, c Container, stdin io.Reader, command ...string) (ExecResult, error) {
	query := url.Values{"command": command, "output": {"1"}, "error": {"1"}}
	if stdin != nil {
		query.Set("input", "1")
	}
	target := &url.URL{Scheme: "https", Host: k.Addr, Path: c.path("exec"), RawQuery: query.Encode()}
	executor, err := remotecommand.NewSPDYExecutor(k.restConfig(), http.MethodPost, target)
	if err != nil {
		return ExecResult{}, fmt.Errorf("exec: %w", err)
	}
	var stdout, stderr bytes.Buffer
	err = executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: stdin, Stdout: &stdout, Stderr: &stderr})
	result := ExecResult{stdout.String(), stderr.String()}
	if err != nil {
		return result, fmt.Errorf("exec %q: %w", command, err)
	}
	return result, nil
}

// PortForward forwards a loopback port to a port of the pod until the test
// ends, by the way of kubectl port-forward, and returns its host:port.
func (k *Kubelet) PortForward(tb testing.TB, pod string, port int) string {
	tb.Helper()
	transport, upgrader, err := spdy.RoundTripperFor(k.restConfig())
	if err != nil {
		tb.Fatalf("port-forward: %v", err)
	}
	target := &url.URL{Scheme: "https", Host: k.Addr, Path: Container{Pod: pod}.path("portForward")}
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, target)
	stop, ready := make(chan struct{}), make(chan struct{})
	ports := []string{fmt.Sprintf("0:%d", port)}
	forwarder, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, ports, stop, ready, io.Discard, io.Discard)
	if err != nil {
		tb.Fatalf("port-forward: %v", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- forwarder.ForwardPorts() }()
	tb.Cleanup(func() { close(stop) })
	select {
	case <-ready:
	case err := <-ended:
		tb.Fatalf("port-forward: %v", err)
	}
	forwarded, err := forwarder.GetPorts()
	if err != nil {
		tb.Fatalf("port-forward: %v", err)
	}
	return fmt.Sprintf("127.0.0.1:%d", forwarded[0].Local)
}

func (k *Kubelet) restConfig() *rest.Config {
	return &rest.Config{Host: "https://" + k.Addr, TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
}
