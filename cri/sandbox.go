package cri

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/stage0"
	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/manifest"
	"github.com/gantry-cri/gantry/stage0/pod"
	"github.com/gantry-cri/gantry/translate"
)

// sandboxes are the RPCs about sandboxes.
type sandboxes struct {
	*lifecycle
	creates    *jobs
	preparer   Preparer
	containers *containers
	inspector  Inspector
}

// sandboxKey names the metadata of a sandbox: what one sandbox at a time may hold.
func sandboxKey(m *runtimeapi.PodSandboxMetadata) string {
	return fmt.Sprintf("sandbox %q of namespace %q, uid %q, attempt %d", m.GetName(), m.GetNamespace(), m.GetUid(), m.GetAttempt())
}

// RunPodSandbox prepares a pod without apps and runs it. The same request again
// joins the first, or gets the same id.
func (s *sandboxes) RunPodSandbox(ctx context.Context, r *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	m := r.GetConfig().GetMetadata()
	if m.GetName() == "" || m.GetNamespace() == "" || m.GetUid() == "" {
		return nil, fmt.Errorf("sandbox metadata needs a name, a namespace and a uid: %w", errdefs.ErrInvalid)
	}
	request, err := translate.SandboxRequest(r.GetConfig(), r.GetRuntimeHandler())
	if err != nil {
		return nil, err
	}
	key := sandboxKey(m)
	id, err := s.creates.do(ctx, work{
		key:     key,
		want:    hex.EncodeToString(request[:]),
		timeout: s.limits.RunSandbox,
		found:   func() (string, error) { return s.existing(key, request) },
		run:     func(ctx context.Context) (string, error) { return s.run(ctx, r, request) },
		undo:    s.undoID,
	})
	if err != nil {
		return nil, err
	}
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: id}, nil
}

// existing answers a request from what was made before. A sandbox that was never
// ready and has no containers is none: its maker died, and run removes it.
func (s *sandboxes) existing(key string, request manifest.Request) (string, error) {
	e := s.index.holder(key)
	switch {
	case e == nil || !e.wasReady && !e.ghost && len(s.index.containers(e.uuid())) == 0:
		return "", nil
	case e.phase != pod.Up:
		return "", fmt.Errorf("%s: %s has it and is stopped, it must be removed first: %w", key, e.id(), errdefs.ErrExists)
	case e.record.ID != e.uuid().ID(request):
		return "", fmt.Errorf("%s: %s has it and was made from another configuration: %w", key, e.id(), errdefs.ErrExists)
	}
	return e.id(), nil
}

func (s *sandboxes) run(ctx context.Context, r *runtimeapi.RunPodSandboxRequest, request manifest.Request) (string, error) {
	if old := s.index.holder(sandboxKey(r.GetConfig().GetMetadata())); old != nil {
		if err := s.remove(ctx, old.uuid()); err != nil {
			return "", fmt.Errorf("remove the sandbox of a run that was cut short: %w", err)
		}
	}
	pm, err := translate.Sandbox(r.GetConfig(), r.GetRuntimeHandler())
	if err != nil {
		return "", err
	}
	u, err := s.preparer.Prepare(ctx, stage0.PodSpec{Owner: pod.OwnerCRI, Kind: pod.KindSandbox, Request: request, Manifest: pm})
	if err != nil {
		return "", err
	}
	if err := s.runner.Run(ctx, u); err != nil {
		return "", errors.Join(err, s.undo(ctx, u))
	}
	s.index.refresh(u)
	return string(u.ID(request)), nil
}

// StopPodSandbox stops what runs in a sandbox, without grace, and takes its
// network down. It succeeds as often as it is asked; a sandbox that is gone is stopped.
func (s *sandboxes) StopPodSandbox(ctx context.Context, r *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	e, err := s.index.find(pod.KindSandbox, r.GetPodSandboxId())
	if errors.Is(err, errdefs.ErrNotFound) {
		return &runtimeapi.StopPodSandboxResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	if err := s.haltAll(ctx, e); err != nil {
		return nil, err
	}
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

func (s *sandboxes) haltAll(ctx context.Context, e *entry) error {
	err := s.each(ctx, e, func(ctx context.Context, c *entry) error {
		if !isRunning(c) && c.phase != pod.Starting {
			return nil
		}
		return s.halt(ctx, c.uuid(), 0)
	})
	if err != nil || e.ghost {
		return err
	}
	return s.halt(ctx, e.uuid(), 0)
}

// each does something with every container of a sandbox, all at once.
func (s *sandboxes) each(ctx context.Context, e *entry, do func(context.Context, *entry) error) error {
	var g errgroup.Group
	for _, c := range s.index.containers(e.uuid()) {
		g.Go(func() error { return do(ctx, c) })
	}
	return g.Wait()
}

// RemovePodSandbox stops a sandbox, removes its containers and then itself.
func (s *sandboxes) RemovePodSandbox(ctx context.Context, r *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	e, err := s.index.find(pod.KindSandbox, r.GetPodSandboxId())
	if errors.Is(err, errdefs.ErrNotFound) {
		return &runtimeapi.RemovePodSandboxResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	if err := s.haltAll(ctx, e); err != nil {
		return nil, err
	}
	// Containers in the making fail now or are taken back, before the list is read.
	if err := s.creates.drain(ctx, containersOf(e.uuid())); err != nil {
		return nil, err
	}
	if err := s.each(ctx, e, func(ctx context.Context, c *entry) error { return s.remove(ctx, c.uuid()) }); err != nil {
		return nil, err
	}
	if err := s.remove(ctx, e.uuid()); err != nil {
		return nil, err
	}
	return &runtimeapi.RemovePodSandboxResponse{}, nil
}

// ListPodSandbox answers from memory. A sandbox in the making is not listed.
func (s *sandboxes) ListPodSandbox(_ context.Context, r *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	all, err := s.index.list(pod.KindSandbox)
	if err != nil {
		return nil, err
	}
	f, pending := r.GetFilter(), s.creates.pending()
	resp := &runtimeapi.ListPodSandboxResponse{}
	for _, e := range all {
		switch {
		case pending[e.key],
			f.GetId() != "" && !e.isMeant(pod.KindSandbox, strings.ReplaceAll(f.GetId(), "-", "")),
			f.GetState() != nil && f.GetState().GetState() != sandboxState(e),
			!selected(e.sandbox.GetLabels(), f.GetLabelSelector()):
			continue
		}
		resp.Items = append(resp.Items, &runtimeapi.PodSandbox{
			Id:             e.id(),
			Metadata:       e.sandbox.GetMetadata(),
			State:          sandboxState(e),
			CreatedAt:      e.record.CreatedAt.UnixNano(),
			Labels:         e.sandbox.GetLabels(),
			Annotations:    e.sandbox.GetAnnotations(),
			RuntimeHandler: e.handler,
		})
	}
	return resp, nil
}

// selected says whether labels have all of what a selector wants.
func selected(labels, selector map[string]string) bool {
	for k, want := range selector {
		if got, ok := labels[k]; !ok || got != want {
			return false
		}
	}
	return true
}

func sandboxState(e *entry) runtimeapi.PodSandboxState {
	if e.phase == pod.Up {
		return runtimeapi.PodSandboxState_SANDBOX_READY
	}
	return runtimeapi.PodSandboxState_SANDBOX_NOTREADY
}

// PodSandboxStatus tells what is known. It repairs nothing, and fails only for a
// sandbox that is not there.
func (s *sandboxes) PodSandboxStatus(_ context.Context, r *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	now := time.Now()
	e, err := s.index.find(pod.KindSandbox, r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.PodSandboxStatusResponse{Status: sandboxStatus(e), Timestamp: now.UnixNano()}
	pending := s.creates.pending()
	for _, c := range s.index.containers(e.uuid()) {
		if !pending[c.key] {
			resp.ContainersStatuses = append(resp.ContainersStatuses, s.containers.status(c))
		}
	}
	if r.GetVerbose() {
		resp.Info = s.info(e)
	}
	return resp, nil
}

func sandboxStatus(e *entry) *runtimeapi.PodSandboxStatus {
	st := &runtimeapi.PodSandboxStatus{
		Id:             e.id(),
		Metadata:       e.sandbox.GetMetadata(),
		State:          sandboxState(e),
		CreatedAt:      e.record.CreatedAt.UnixNano(),
		Network:        &runtimeapi.PodSandboxNetworkStatus{},
		Linux:          &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{Options: namespaces(e.sandbox)}},
		Labels:         e.sandbox.GetLabels(),
		Annotations:    e.sandbox.GetAnnotations(),
		RuntimeHandler: e.handler,
	}
	for i, ip := range e.network.IPs {
		if i == 0 {
			st.Network.Ip = ip.String()
			continue
		}
		st.Network.AdditionalIps = append(st.Network.AdditionalIps, &runtimeapi.PodIP{Ip: ip.String()})
	}
	return st
}

func namespaces(c *runtimeapi.PodSandboxConfig) *runtimeapi.NamespaceOption {
	if o := c.GetLinux().GetSecurityContext().GetNamespaceOptions(); o != nil {
		return o
	}
	return &runtimeapi.NamespaceOption{}
}

func hostNetwork(c *runtimeapi.PodSandboxConfig) bool {
	return namespaces(c).GetNetwork() == runtimeapi.NamespaceMode_NODE
}

// UpdatePodSandboxResources is told of limits that the kubelet has set on the
// pod's cgroup itself: there is nothing left to do but to know the sandbox.
func (s *sandboxes) UpdatePodSandboxResources(_ context.Context, r *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	if _, err := s.index.find(pod.KindSandbox, r.GetPodSandboxId()); err != nil {
		return nil, err
	}
	return &runtimeapi.UpdatePodSandboxResourcesResponse{}, nil
}
