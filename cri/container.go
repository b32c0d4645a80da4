package cri

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/stage0"
	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/imageref"
	"github.com/gantry-cri/gantry/stage0/manifest"
	"github.com/gantry-cri/gantry/stage0/pod"
	"github.com/gantry-cri/gantry/stage0/store"
	"github.com/gantry-cri/gantry/translate"
)

// containers are the RPCs about containers.
type containers struct {
	*lifecycle
	creates   *jobs
	preparer  Preparer
	images    Images
	stats     *stats
	inspector Inspector
}

// containersOf begins the keys of all containers of a sandbox.
func containersOf(sandbox manifest.UUID) string {
	return fmt.Sprintf("container of sandbox %s ", sandbox.Hex())
}

// containerKey names the metadata of a container within its sandbox.
func containerKey(sandbox manifest.UUID, m *runtimeapi.ContainerMetadata) string {
	return fmt.Sprintf("%snamed %q, attempt %d", containersOf(sandbox), m.GetName(), m.GetAttempt())
}

// CreateContainer prepares a pod with one app in a sandbox that is ready. The
// same request again joins the first, or gets the same id.
func (c *containers) CreateContainer(ctx context.Context, r *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	box, err := c.index.find(pod.KindSandbox, r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	if r.GetConfig().GetMetadata().GetName() == "" {
		return nil, fmt.Errorf("container metadata needs a name: %w", errdefs.ErrInvalid)
	}
	// What the sandbox really is counts, not what the request says that it is.
	request, err := translate.ContainerRequest(box.uuid(), r.GetConfig(), box.sandbox)
	if err != nil {
		return nil, err
	}
	key := containerKey(box.uuid(), r.GetConfig().GetMetadata())
	id, err := c.creates.do(ctx, work{
		key:     key,
		want:    hex.EncodeToString(request[:]),
		timeout: c.limits.Create,
		found:   func() (string, error) { return c.existing(key, request) },
		run:     func(ctx context.Context) (string, error) { return c.create(ctx, box.uuid(), r.GetConfig(), request) },
		undo:    c.undoID,
	})
	if err != nil {
		return nil, err
	}
	return &runtimeapi.CreateContainerResponse{ContainerId: id}, nil
}

// existing answers a request from what was made before.
func (c *containers) existing(key string, request manifest.Request) (string, error) {
	e := c.index.holder(key)
	switch {
	case e == nil:
		return "", nil
	case e.record.ID != e.uuid().ID(request):
		return "", fmt.Errorf("%s: %s has it and was made from another configuration: %w", key, e.id(), errdefs.ErrExists)
	case containerState(e) != runtimeapi.ContainerState_CONTAINER_CREATED:
		return "", fmt.Errorf("%s: %s has it and was started already: %w", key, e.id(), errdefs.ErrExists)
	}
	return e.id(), nil
}

func (c *containers) create(ctx context.Context, sandbox manifest.UUID, cfg *runtimeapi.ContainerConfig, request manifest.Request) (string, error) {
	box := c.index.get(sandbox)
	if box == nil || box.phase != pod.Up {
		return "", fmt.Errorf("sandbox %s is not ready: %w", sandbox, errdefs.ErrState)
	}
	img, app, err := c.image(cfg.GetImage())
	if err != nil {
		return "", err
	}
	pm, err := translate.Container(box.sandbox, cfg, img)
	if err != nil {
		return "", err
	}
	if err := c.runner.CheckApp(pm, string(pm.Apps[0].Name)); err != nil {
		return "", err
	}
	u, err := c.preparer.Prepare(ctx, stage0.PodSpec{
		Owner: pod.OwnerCRI, Kind: pod.KindContainer, Sandbox: sandbox,
		Request: request, Manifest: pm, Images: []stage0.AppImage{app},
	})
	if err != nil {
		return "", err
	}
	c.index.refresh(u)
	return string(u.ID(request)), nil
}

// image looks up the image that a request names, by id or by reference.
func (c *containers) image(spec *runtimeapi.ImageSpec) (translate.Image, stage0.AppImage, error) {
	fail := func(err error) (translate.Image, stage0.AppImage, error) {
		return translate.Image{}, stage0.AppImage{}, fmt.Errorf("image %q: %w", spec.GetImage(), err)
	}
	if spec.GetImage() == "" {
		return fail(fmt.Errorf("the name is missing: %w", errdefs.ErrInvalid))
	}
	e, err := lookup(c.images, spec.GetImage())
	if err != nil {
		return fail(err)
	}
	config, err := c.images.Config(e.Image.ID)
	if err != nil {
		return fail(err)
	}
	appc, err := stage0.AppcManifest(c.images, e.Image)
	if err != nil {
		return fail(err)
	}
	name := imageName(spec, e)
	img := translate.Image{ID: e.Image.ID.String(), AppcID: e.Image.AppcID, Name: name, Config: config, Appc: appc}
	return img, stage0.AppImage{Image: e.Image, Name: name, Ref: imageRef(e)}, nil
}

// imageName is the name that a container shows for its image: the user's, if the
// image bears it, else one that it bears, and always one that ImageStatus takes.
func imageName(spec *runtimeapi.ImageSpec, e store.Entry) string {
	for _, s := range []string{spec.GetUserSpecifiedImage(), spec.GetImage()} {
		if ref, err := imageref.Parse(s); err == nil && (slices.Contains(e.Tags, ref.Tagged()) || slices.Contains(e.Digests, ref.String())) {
			return ref.String()
		}
	}
	for _, names := range [][]string{e.Tags, e.Digests} {
		if len(names) > 0 {
			return names[0]
		}
	}
	return e.Image.ID.String()
}

// imageRef is what the API shows as the image id: the repository digest, if there is one.
func imageRef(e store.Entry) string {
	if len(e.Digests) > 0 {
		return e.Digests[0]
	}
	return e.Image.ID.String()
}

// StartContainer runs a container that is created. Calls while it starts join; a
// start that fails leaves it exited.
func (c *containers) StartContainer(ctx context.Context, r *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	e, err := c.index.find(pod.KindContainer, r.GetContainerId())
	if err != nil {
		return nil, err
	}
	u := e.uuid()
	_, err = c.jobs.do(ctx, work{
		key:     "start/" + string(u),
		timeout: c.limits.Start,
		found:   func() (string, error) { return "", c.startable(u) },
		run: func(ctx context.Context) (string, error) {
			if err := c.start(ctx, u, e.app().Name); err != nil {
				return "", err
			}
			c.stats.sampleNow(u)
			return "", nil
		},
	})
	if err != nil {
		return nil, err
	}
	return &runtimeapi.StartContainerResponse{}, nil
}

func (c *containers) startable(u manifest.UUID) error {
	e := c.index.get(u)
	if e == nil {
		return fmt.Errorf("container %s: %w", u, errdefs.ErrNotFound)
	}
	if st := containerState(e); st != runtimeapi.ContainerState_CONTAINER_CREATED {
		return fmt.Errorf("container %s is in state %s and cannot be started: %w", e.id(), st, errdefs.ErrState)
	}
	if box := c.index.get(e.record.Sandbox); box == nil || box.phase != pod.Up {
		return fmt.Errorf("sandbox %s of container %s is not ready: %w", e.record.Sandbox, e.id(), errdefs.ErrState)
	}
	return nil
}

// StopContainer returns once the container is dead. A container that does not
// run, or is gone, is stopped.
func (c *containers) StopContainer(ctx context.Context, r *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	e, err := c.index.find(pod.KindContainer, r.GetContainerId())
	if errors.Is(err, errdefs.ErrNotFound) {
		return &runtimeapi.StopContainerResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	if isRunning(e) || e.phase == pod.Starting {
		if err := c.halt(ctx, e.uuid(), time.Duration(max(0, r.GetTimeout()))*time.Second); err != nil {
			return nil, err
		}
	}
	return &runtimeapi.StopContainerResponse{}, nil
}

// RemoveContainer stops a container at once and deletes it.
func (c *containers) RemoveContainer(ctx context.Context, r *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	e, err := c.index.find(pod.KindContainer, r.GetContainerId())
	if errors.Is(err, errdefs.ErrNotFound) {
		return &runtimeapi.RemoveContainerResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	if err := c.remove(ctx, e.uuid()); err != nil {
		return nil, err
	}
	return &runtimeapi.RemoveContainerResponse{}, nil
}

// ListContainers answers from memory. A container in the making is not listed.
func (c *containers) ListContainers(_ context.Context, r *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	all, err := c.index.list(pod.KindContainer)
	if err != nil {
		return nil, err
	}
	f, pending := r.GetFilter(), c.creates.pending()
	resp := &runtimeapi.ListContainersResponse{}
	for _, e := range all {
		switch {
		case pending[e.key],
			f.GetState() != nil && f.GetState().GetState() != containerState(e),
			!e.filtered(f.GetId(), f.GetPodSandboxId(), f.GetLabelSelector()):
			continue
		}
		resp.Containers = append(resp.Containers, &runtimeapi.Container{
			Id:           e.id(),
			PodSandboxId: c.sandboxID(e),
			Metadata:     e.container.GetMetadata(),
			Image:        e.imageSpec(),
			ImageRef:     e.app().ImageRef,
			ImageId:      e.app().ImageID,
			State:        containerState(e),
			CreatedAt:    e.record.CreatedAt.UnixNano(),
			Labels:       e.container.GetLabels(),
			Annotations:  e.container.GetAnnotations(),
		})
	}
	return resp, nil
}

// filtered says whether a container passes the filters that lists and statistics
// share; an id and a sandbox may be given by their beginnings.
func (e *entry) filtered(id, sandbox string, selector map[string]string) bool {
	if id != "" && !e.isMeant(pod.KindContainer, strings.ReplaceAll(id, "-", "")) {
		return false
	}
	// The first half of the sandbox's id is its UUID; the second cannot be wrong
	// when the first is right, unless somebody made it up.
	want := strings.ReplaceAll(sandbox, "-", "")
	if len(want) > 32 {
		want = want[:32]
	}
	return strings.HasPrefix(e.record.Sandbox.Hex(), want) && selected(e.container.GetLabels(), selector)
}

// sandboxID is the id of the sandbox that a container is in.
func (c *containers) sandboxID(e *entry) string {
	if box := c.index.get(e.record.Sandbox); box != nil {
		return box.id()
	}
	return e.record.Sandbox.Hex()
}

func (e *entry) imageSpec() *runtimeapi.ImageSpec {
	sent := e.container.GetImage()
	return &runtimeapi.ImageSpec{
		Image:              e.app().ImageName,
		UserSpecifiedImage: sent.GetUserSpecifiedImage(),
		Annotations:        sent.GetAnnotations(),
		RuntimeHandler:     sent.GetRuntimeHandler(),
	}
}

// containerState puts the phase of the state table into CRI's words.
func containerState(e *entry) runtimeapi.ContainerState {
	switch e.phase {
	case pod.Created, pod.Starting:
		return runtimeapi.ContainerState_CONTAINER_CREATED
	case pod.Up, pod.Unmonitored, pod.Draining, pod.Lost:
		// One that is lost gets its exit record within a moment, from its watch.
		return runtimeapi.ContainerState_CONTAINER_RUNNING
	case pod.Ended:
		return runtimeapi.ContainerState_CONTAINER_EXITED
	case pod.Unlisted:
	}
	return runtimeapi.ContainerState_CONTAINER_UNKNOWN
}

func isRunning(e *entry) bool {
	return containerState(e) == runtimeapi.ContainerState_CONTAINER_RUNNING
}

// ContainerStatus tells what is known. It repairs nothing, and fails only for a
// container that is not there.
func (c *containers) ContainerStatus(_ context.Context, r *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	e, err := c.index.find(pod.KindContainer, r.GetContainerId())
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.ContainerStatusResponse{Status: c.status(e)}
	if r.GetVerbose() {
		resp.Info = c.info(e)
	}
	return resp, nil
}

func (c *containers) status(e *entry) *runtimeapi.ContainerStatus {
	cfg := e.container
	st := &runtimeapi.ContainerStatus{
		Id:          e.id(),
		Metadata:    cfg.GetMetadata(),
		State:       containerState(e),
		CreatedAt:   e.record.CreatedAt.UnixNano(),
		Image:       e.imageSpec(),
		ImageRef:    e.app().ImageRef,
		ImageId:     e.app().ImageID,
		Labels:      cfg.GetLabels(),
		Annotations: cfg.GetAnnotations(),
		Mounts:      cfg.GetMounts(),
		LogPath:     c.logPath(e),
		Resources:   &runtimeapi.ContainerResources{Linux: e.limits()},
		StopSignal:  cfg.GetStopSignal(),
	}
	if e.user != nil {
		st.User = &runtimeapi.ContainerUser{Linux: e.user}
	}
	if !e.started.StartedAt.IsZero() && st.State != runtimeapi.ContainerState_CONTAINER_CREATED {
		st.StartedAt = e.started.StartedAt.UnixNano()
	}
	if x := e.exit; x != nil {
		st.FinishedAt, st.ExitCode, st.Reason, st.Message = x.EndedAt.UnixNano(), x.Code, x.Reason, x.Message
		if !x.StartedAt.IsZero() {
			st.StartedAt = x.StartedAt.UnixNano()
		}
	}
	return st
}

// logPath is where the container logs to, absolute, or "" if it does not.
func (c *containers) logPath(e *entry) string {
	box := c.index.get(e.record.Sandbox)
	if e.container.GetLogPath() == "" || box == nil || box.sandbox.GetLogDirectory() == "" {
		return ""
	}
	return filepath.Join(box.sandbox.GetLogDirectory(), e.container.GetLogPath())
}

// limits are the resources in force: as created, then as updated.
func (e *entry) limits() *runtimeapi.LinuxContainerResources {
	if e.resources != nil {
		return e.resources
	}
	return e.container.GetLinux().GetResources()
}

// UpdateContainerResources changes the limits of a running container. A field
// that is zero stays as it is.
func (c *containers) UpdateContainerResources(ctx context.Context, r *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	e, err := c.index.find(pod.KindContainer, r.GetContainerId())
	if err != nil {
		return nil, err
	}
	if r.GetLinux() == nil {
		return nil, fmt.Errorf("linux resources are missing: %w", errdefs.ErrInvalid)
	}
	if !isRunning(e) {
		return nil, fmt.Errorf("container %s does not run: %w", e.id(), errdefs.ErrState)
	}
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(r.GetLinux())
	if err != nil {
		return nil, fmt.Errorf("resources: %w: %w", errdefs.ErrInvalid, err)
	}
	_, err = c.jobs.do(ctx, work{
		key:     "update/" + string(e.uuid()),
		want:    hex.EncodeToString(raw),
		timeout: c.limits.Start,
		run:     func(ctx context.Context) (string, error) { return "", c.update(ctx, e.uuid(), r.GetLinux()) },
	})
	if err != nil {
		return nil, err
	}
	return &runtimeapi.UpdateContainerResourcesResponse{}, nil
}

func (c *containers) update(ctx context.Context, u manifest.UUID, r *runtimeapi.LinuxContainerResources) (err error) {
	e := c.index.get(u)
	if e == nil {
		return fmt.Errorf("container %s: %w", u, errdefs.ErrNotFound)
	}
	if err := c.runner.UpdateResources(ctx, u, e.app().Name, r); err != nil {
		return err
	}
	d, err := c.locker.Lock(ctx, u)
	if err != nil {
		return fmt.Errorf("keep resources: %w", err)
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	defer c.index.refresh(u)
	return d.WriteResources(resources{merged(e.limits(), r)})
}

// merged is what is in force after an update.
func merged(before, update *runtimeapi.LinuxContainerResources) *runtimeapi.LinuxContainerResources {
	now := &runtimeapi.LinuxContainerResources{}
	if before != nil {
		now = proto.CloneOf(before)
	}
	// Lists are repeated whole in every update, they do not grow.
	if len(update.GetHugepageLimits()) > 0 {
		now.HugepageLimits = nil
	}
	proto.Merge(now, update)
	return now
}

// resources are kept beside the manifest as protojson.
type resources struct {
	*runtimeapi.LinuxContainerResources
}

// MarshalJSON is part of json.Marshaler.
func (r resources) MarshalJSON() ([]byte, error) {
	return protojson.Marshal(r.LinuxContainerResources)
}

// UnmarshalJSON is part of json.Unmarshaler.
func (r *resources) UnmarshalJSON(b []byte) error {
	r.LinuxContainerResources = &runtimeapi.LinuxContainerResources{}
	return protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(b, r.LinuxContainerResources)
}
