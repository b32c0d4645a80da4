package cri

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/stage0"
	"github.com/gantry-cri/gantry/stage0/credential"
	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/fetch"
	"github.com/gantry-cri/gantry/stage0/imageref"
	"github.com/gantry-cri/gantry/stage0/pod"
	"github.com/gantry-cri/gantry/stage0/store"
	"github.com/gantry-cri/gantry/stage0/usage"
)

// Images is the image store. *store.Store is one.
type Images interface {
	Lookup(name string) (store.Entry, error)
	List() ([]store.Entry, error)
	Config(id digest.Digest) (ocispec.Image, error)
	Manifest(id digest.Digest) ([]byte, error)
	Remove(ctx context.Context, id digest.Digest) error
}

// Puller fetches images and frees what no image needs any more. *stage0.Pipeline is one.
type Puller interface {
	Fetch(ctx context.Context, req stage0.FetchRequest) (store.Entry, error)
	CollectTrees(ctx context.Context) ([]stage0.Freed, error)
}

// Disk tells how much images take. *stage0.Pipeline is one.
type Disk interface {
	ImageUsage(ctx context.Context) (usage.Usage, error)
}

// images are the RPCs of the image service.
type images struct {
	store  Images
	puller Puller
	jobs   *jobs
	index  *index
	fs     *filesystem
	limits Limits
	freed  chan struct{} // asks for a collection of trees
	users  sync.Map      // digest.Digest → user: image configurations never change
}

func newImages(cfg Config, x *index, js *jobs, limits Limits) *images {
	i := &images{
		store: cfg.Images, puller: cfg.Puller, jobs: js, index: x, limits: limits,
		fs:    &filesystem{disk: cfg.Disk, dir: cfg.DataDir, every: limits.Sample},
		freed: make(chan struct{}, 1),
	}
	x.tasks.Go(i.collect)
	return i
}

// collect frees the trees of removed images, one collection at a time, off the
// path of any call.
func (i *images) collect() {
	log := klog.FromContext(i.index.ctx)
	var again <-chan time.Time
	for {
		select {
		case <-i.index.ctx.Done():
			return
		case <-i.freed:
		case <-again:
		}
		again = nil
		freed, err := i.puller.CollectTrees(i.index.ctx)
		if errors.Is(err, errdefs.ErrBusy) {
			// A pull is under way, which may take hours.
			log.V(4).Info("Collecting trees was put off", "err", err)
			again = time.After(i.limits.Collect)
		} else if err != nil && i.index.ctx.Err() == nil {
			log.Error(err, "Collecting trees failed")
		}
		if len(freed) > 0 {
			log.V(2).Info("Freed layers", "trees", stage0.NamesOf(freed), "bytes", stage0.BytesOf(freed))
		}
	}
}

// user is whom an image wants to run as: a number or a name, never both.
type user struct {
	uid  *runtimeapi.Int64Value
	name string
}

// userOf takes the user out of "user", "uid", "user:group" or "uid:group".
func userOf(config ocispec.Image) user {
	name, _, _ := strings.Cut(config.Config.User, ":")
	if uid, err := strconv.ParseInt(name, 10, 64); err == nil {
		return user{uid: &runtimeapi.Int64Value{Value: uid}}
	}
	return user{name: name}
}

func (i *images) userOf(id digest.Digest) (user, error) {
	if u, ok := i.users.Load(id); ok {
		return u.(user), nil //nolint:forcetypeassert // nothing else is stored
	}
	config, err := i.store.Config(id)
	if err != nil {
		return user{}, err
	}
	u := userOf(config)
	i.users.Store(id, u)
	return u, nil
}

// answer puts a store's entry into CRI's words. pinned are the images that the
// kubelet must not collect.
func (i *images) answer(e store.Entry, pinned map[string]bool) (*runtimeapi.Image, error) {
	u, err := i.userOf(e.Image.ID)
	if err != nil {
		return nil, err
	}
	id := e.Image.ID.String()
	return &runtimeapi.Image{
		Id:          id,
		RepoTags:    e.Tags,
		RepoDigests: e.Digests,
		Size:        uint64(max(1, e.Image.Size)), // 0 is an error to the kubelet
		Uid:         u.uid,
		Username:    u.name,
		Spec:        &runtimeapi.ImageSpec{Image: id},
		Pinned:      e.Pinned || e.ReadOnly != "" || pinned[id], // the kubelet would try to collect it for ever
	}, nil
}

// pinned are the images that pods of the command line hold: the kubelet knows
// nothing of those pods and would collect their images.
func (i *images) pinned() map[string]bool {
	held := map[string]bool{}
	for _, e := range i.index.all() {
		if e.record.Owner == pod.OwnerCRI {
			continue
		}
		for _, a := range e.record.Apps {
			held[a.ImageID] = true
		}
	}
	return held
}

// lookup finds an image by its id or by its name. A name that stands for an image
// which does not run on this node, because the command line fetched it for another
// platform, is the name of none: the kubelet would run it instead of pulling.
func lookup(in Images, name string) (store.Entry, error) {
	e, err := in.Lookup(name)
	if err != nil || fetch.FitOf(e.Image.Platform, nil) != fetch.Unfit {
		return e, err
	}
	ref, err := imageref.Parse(name)
	if err != nil || !slices.Contains(e.Tags, ref.Name()) && !slices.Contains(e.Digests, ref.Name()) {
		return e, nil // an id
	}
	return store.Entry{}, fmt.Errorf("image %q is for %s: %w", name, fetch.PlatformName(&e.Image.Platform), errdefs.ErrNotFound)
}

// ListImages lists what the store has. An image that cannot be read costs itself.
func (i *images) ListImages(ctx context.Context, r *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	var entries []store.Entry
	if name := r.GetFilter().GetImage().GetImage(); name != "" {
		e, err := lookup(i.store, name)
		if errors.Is(err, errdefs.ErrNotFound) {
			return &runtimeapi.ListImagesResponse{}, nil
		}
		if err != nil {
			return nil, err
		}
		entries = append(entries, e)
	} else {
		all, err := i.store.List()
		if err != nil {
			return nil, err
		}
		entries = all
	}
	pinned := i.pinned()
	resp := &runtimeapi.ListImagesResponse{}
	for _, e := range entries {
		img, err := i.answer(e, pinned)
		if err != nil {
			klog.FromContext(ctx).V(2).Info("Image left out", "image", e.Image.ID, "err", err)
			continue
		}
		resp.Images = append(resp.Images, img)
	}
	return resp, nil
}

// ImageStatus answers without an image, and without an error, for one that is absent.
func (i *images) ImageStatus(_ context.Context, r *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	name := r.GetImage().GetImage()
	if name == "" {
		return nil, fmt.Errorf("the image's name is missing: %w", errdefs.ErrInvalid)
	}
	e, err := lookup(i.store, name)
	if errors.Is(err, errdefs.ErrNotFound) {
		return &runtimeapi.ImageStatusResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	img, err := i.answer(e, i.pinned())
	if errors.Is(err, errdefs.ErrNotFound) {
		return &runtimeapi.ImageStatusResponse{}, nil // removed meanwhile
	}
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.ImageStatusResponse{Image: img}
	if r.GetVerbose() {
		config, err := i.store.Config(e.Image.ID)
		if err != nil {
			return nil, err
		}
		resp.Info = infoOf(map[string]any{"imageSpec": config, "layers": e.Image.Layers, "manifestDigest": e.Image.ManifestDigest, "appcID": e.Image.AppcID, "readOnlyStore": e.ReadOnly})
	}
	return resp, nil
}

// pullsOf begins the keys of all pulls of a reference.
func pullsOf(ref string) string { return fmt.Sprintf("pull of %q ", ref) }

// PullImage asks the registry, every time and with the caller's credentials.
// Equal requests join. A pull whose callers have all gone is cancelled after a
// grace; layers that were finished stay.
func (i *images) PullImage(ctx context.Context, r *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	ref, err := imageref.Parse(r.GetImage().GetImage())
	if err != nil {
		return nil, err
	}
	creds, err := credentials(r.GetAuth())
	if err != nil {
		return nil, err
	}
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(r.GetAuth())
	if err != nil {
		return nil, fmt.Errorf("auth: %w: %w", errdefs.ErrInvalid, err)
	}
	// A pull without a pod is somebody's who will not wait; one with a pod must not
	// join it and share its end.
	key := fmt.Sprintf("%sfor a pod %t, credentials %x", pullsOf(ref.String()), r.GetSandboxConfig() != nil, sha256.Sum256(raw))
	id, err := i.jobs.do(ctx, work{
		key:   key,
		grace: i.limits.PullGrace,
		run: func(ctx context.Context) (string, error) {
			e, err := i.puller.Fetch(ctx, stage0.FetchRequest{Ref: ref, Credentials: creds})
			return e.Image.ID.String(), err
		},
	})
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PullImageResponse{ImageRef: id}, nil
}

// requestOrigin is what a trace says about credentials that a request brought.
const requestOrigin = "the request's auth"

// credentials are those that the kubelet sent: for the host of server_address, if
// there is one, and for no other. Without any they are nil.
func credentials(a *runtimeapi.AuthConfig) (credential.Source, error) {
	c := credential.Credential{
		User: a.GetUsername(), Password: a.GetPassword(),
		IdentityToken: a.GetIdentityToken(), RegistryToken: a.GetRegistryToken(),
		Origin: requestOrigin,
	}
	if c.Anonymous() && a.GetAuth() != "" {
		raw, err := base64.StdEncoding.DecodeString(a.GetAuth())
		user, secret, ok := strings.Cut(string(raw), ":")
		if err != nil || !ok {
			return nil, fmt.Errorf("auth.auth is not base64 of user:password: %w", errdefs.ErrInvalid)
		}
		c.User, c.Password = user, strings.Trim(secret, "\x00")
	}
	if c.Anonymous() {
		return nil, nil //nolint:nilnil // none were sent
	}
	return credential.For(a.GetServerAddress(), c), nil
}

// RemoveImage removes an image with all its names. What runs from it keeps its
// layers. An image that is absent is removed.
func (i *images) RemoveImage(ctx context.Context, r *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	name := r.GetImage().GetImage()
	if name == "" {
		return nil, fmt.Errorf("the image's name is missing: %w", errdefs.ErrInvalid)
	}
	names := []string{}
	if ref, err := imageref.Parse(name); err == nil {
		names = append(names, ref.String())
	}
	e, err := i.store.Lookup(name)
	if err != nil && !errors.Is(err, errdefs.ErrNotFound) {
		return nil, err
	}
	found := err == nil
	// A pull that nobody waits for must not bring the image back.
	for _, n := range append(append(names, e.Tags...), e.Digests...) {
		if err := i.jobs.send(ctx, pullsOf(n)); err != nil {
			return nil, err
		}
	}
	if !found {
		if e, err = i.store.Lookup(name); errors.Is(err, errdefs.ErrNotFound) {
			return &runtimeapi.RemoveImageResponse{}, nil
		} else if err != nil {
			return nil, err
		}
	}
	if err := i.store.Remove(ctx, e.Image.ID); err != nil {
		return nil, err
	}
	i.users.Delete(e.Image.ID)
	select {
	case i.freed <- struct{}{}:
	default:
	}
	return &runtimeapi.RemoveImageResponse{}, nil
}

// ImageFsInfo tells how much images and their layers take, as of the last sample.
func (i *images) ImageFsInfo(ctx context.Context, _ *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	u, err := i.fs.usage(ctx)
	if err != nil {
		return nil, err
	}
	// Images and writable layers lie on one file system.
	return &runtimeapi.ImageFsInfoResponse{
		ImageFilesystems:     []*runtimeapi.FilesystemUsage{u},
		ContainerFilesystems: []*runtimeapi.FilesystemUsage{proto.CloneOf(u)},
	}, nil
}

// filesystem keeps the last sample of what images take.
type filesystem struct {
	disk  Disk
	dir   string
	every time.Duration

	mu   sync.Mutex // protects last
	last *runtimeapi.FilesystemUsage
}

func (f *filesystem) usage(ctx context.Context) (*runtimeapi.FilesystemUsage, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	if f.last != nil && now.UnixNano()-f.last.GetTimestamp() < f.every.Nanoseconds()/2 {
		return f.last, nil
	}
	taken, err := f.disk.ImageUsage(ctx)
	if err != nil {
		return nil, err
	}
	f.last = fsUsage(f.dir, now, taken)
	return f.last, nil
}

func fsUsage(dir string, at time.Time, taken usage.Usage) *runtimeapi.FilesystemUsage {
	return &runtimeapi.FilesystemUsage{
		Timestamp:  at.UnixNano(),
		FsId:       &runtimeapi.FilesystemIdentifier{Mountpoint: dir},
		UsedBytes:  &runtimeapi.UInt64Value{Value: uint64(max(0, taken.Bytes))},
		InodesUsed: &runtimeapi.UInt64Value{Value: uint64(max(0, taken.Inodes))},
	}
}
