package stage0

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/appc/spec/schema"

	"github.com/gantry-cri/gantry/stage0/durable"
	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/failpoint"
	"github.com/gantry-cri/gantry/stage0/idmap"
	"github.com/gantry-cri/gantry/stage0/manifest"
	"github.com/gantry-cri/gantry/stage0/pod"
	"github.com/gantry-cri/gantry/stage0/store"
)

// PodSpec is what both doors ask Prepare for: a finished manifest and the images
// that its apps run.
type PodSpec struct {
	Owner pod.Owner
	Kind  pod.Kind
	// Sandbox is the pod that a container joins; empty elsewhere.
	Sandbox manifest.UUID
	// Request is the digest of what was asked for; it becomes half of the pod's id.
	Request manifest.Request
	// Manifest is complete and valid. It is not changed.
	Manifest *schema.PodManifest
	// Images has one entry for each app of the manifest, in its order.
	Images []AppImage
	// Rootfs says how root filesystems are laid.
	Rootfs Rootfs
	// PrivateUsers gives a pod of kind KindPod a user namespace, with ids of the node that no
	// other pod has. One whose ids are known is an isolator of the manifest.
	PrivateUsers bool
}

// mapped says whether the pod has a user namespace of its own.
func (s PodSpec) mapped() bool { return s.PrivateUsers || s.ids() != nil }

// ids are those of the pod's user namespace, which own its files; nil without one.
func (s PodSpec) ids() *idmap.Map { return manifest.UserNamespaceOf(s.Manifest.Isolators) }

// AppImage says which image an app runs.
type AppImage struct {
	// Name is the image as the user spelt it, Ref its repository digest or id.
	Name, Ref string
	Image     store.Image
}

// Prepare allocates a UUID, makes sure that the trees are there, lays the root
// filesystems and commits the pod as prepared. It mounts nothing: a prepared pod
// is plain files. When it fails nothing is left but what a sweep finds.
//
// ErrInvalid says that the spec cannot work, ErrNotFound that an image's trees
// are gone from the store, ErrNoSpace that the disk is full.
func (p *Pipeline) Prepare(ctx context.Context, spec PodSpec) (manifest.UUID, error) {
	if err := spec.check(); err != nil {
		return "", fmt.Errorf("prepare: %w", err)
	}
	// Until the commit names the trees, nothing but this lock keeps a collection
	// from taking them.
	unlock, err := p.Images.LockShared(ctx)
	if err != nil {
		return "", fmt.Errorf("prepare: %w", err)
	}
	defer unlock()
	rootfs, err := p.rootfs(ctx, spec)
	if err != nil {
		return "", fmt.Errorf("prepare: %w", err)
	}
	d, err := p.allocate(ctx, spec, rootfs)
	if err != nil {
		return "", fmt.Errorf("prepare: %w", err)
	}
	if spec.PrivateUsers {
		if spec.Manifest, err = p.mapUsers(ctx, d, spec.Manifest); err != nil {
			return "", errors.Join(fmt.Errorf("prepare: %w", err), d.Discard())
		}
	}
	if err := p.timed(StageRootfs, func() error { return p.layRootfs(ctx, d, spec, rootfs) }); err != nil {
		return "", errors.Join(fmt.Errorf("prepare: %w", err), d.Discard())
	}
	failpoint.Hit(failpoint.RootfsLaid)
	if err := p.timed(StageCommit, func() error { return d.Commit(spec.Manifest) }); err != nil {
		return "", errors.Join(fmt.Errorf("prepare: %w", err), d.Discard())
	}
	return d.UUID(), d.Close()
}

func (s PodSpec) check() error {
	if s.Manifest == nil || len(s.Manifest.Apps) != len(s.Images) {
		return fmt.Errorf("a manifest and one image for each of its apps are needed: %w", errdefs.ErrInvalid)
	}
	if s.Kind == pod.KindSandbox && len(s.Images) != 0 {
		return fmt.Errorf("a sandbox has no apps: %w", errdefs.ErrInvalid)
	}
	if s.Kind == pod.KindContainer && (len(s.Images) != 1 || s.Sandbox == "") {
		return fmt.Errorf("a container has one app and a sandbox: %w", errdefs.ErrInvalid)
	}
	if s.Kind == pod.KindPod && len(s.Images) == 0 {
		return fmt.Errorf("a pod has at least one app: %w", errdefs.ErrInvalid)
	}
	if !s.mapped() {
		return nil
	}
	if s.Kind != pod.KindPod {
		return fmt.Errorf("a user namespace is for pods of kind %s: %w", pod.KindPod, errdefs.ErrUnsupported)
	}
	if ids := s.ids(); ids != nil {
		if s.PrivateUsers {
			return fmt.Errorf("the manifest has a user namespace already: %w", errdefs.ErrInvalid)
		}
		return ids.Check()
	}
	return nil
}

func (p *Pipeline) allocate(ctx context.Context, spec PodSpec, rootfs Rootfs) (d *pod.Dir, err error) {
	r := pod.Record{Owner: spec.Owner, Kind: spec.Kind, Sandbox: spec.Sandbox, Apps: []pod.AppRecord{}}
	for i, a := range spec.Manifest.Apps {
		img := spec.Images[i]
		r.Apps = append(r.Apps, pod.AppRecord{
			Name:      string(a.Name),
			ImageID:   string(img.Image.ID),
			ImageName: img.Name,
			ImageRef:  img.Ref,
			Layers:    rootfs.stacked(img.Image),
		})
	}
	err = p.timed(StageAllocate, func() error {
		d, err = p.Pods.New(ctx, r, spec.Request)
		return err
	})
	return d, err
}

// mapUsers takes ids of the node for a pod and returns its manifest with them.
func (p *Pipeline) mapUsers(ctx context.Context, d *pod.Dir, pm *schema.PodManifest) (*schema.PodManifest, error) {
	ids, err := p.Users.Take(ctx, string(d.UUID()), durable.PowerCut, func(owner string) (bool, error) {
		_, err := os.Lstat(p.Pods.Path(manifest.UUID(owner)))
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		return true, err
	})
	if err != nil {
		return nil, err
	}
	isolator, err := manifest.Isolator(manifest.UserNamespaceName, manifest.UserNamespace{IDs: ids})
	if err != nil {
		return nil, err
	}
	mapped := *pm
	mapped.Isolators = append(slices.Clone(pm.Isolators), isolator)
	return &mapped, nil
}
