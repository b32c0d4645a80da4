package stage0

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/appc/spec/schema"
	"github.com/appc/spec/schema/types"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/failpoint"
	"github.com/gantry-cri/gantry/stage0/fetch"
	"github.com/gantry-cri/gantry/stage0/imageref"
	"github.com/gantry-cri/gantry/stage0/manifest"
	"github.com/gantry-cri/gantry/stage0/render"
	"github.com/gantry-cri/gantry/stage0/store"
	"github.com/gantry-cri/gantry/stage0/tree"
)

// loadACI is Load for an appc image. Its tree lies on those of its dependencies,
// which are found in the store, ErrNotFound where one is not. It gets no name: what
// it calls itself nobody vouches for, and other images find it by its manifest.
func (p *Pipeline) loadACI(ctx context.Context, at imageref.Location) (_ store.Entry, err error) {
	var src *fetch.ACI
	err = p.timed(StageResolve, func() error {
		src, err = fetch.OpenACI(at.Path)
		return err
	})
	if err != nil {
		return store.Entry{}, fmt.Errorf("load image %s: %w", at, err)
	}
	failpoint.Hit(failpoint.FetchResolved)
	times := &fetchTimes{}
	defer func() {
		times.report(p, err)
		err = errors.Join(err, src.Close())
	}()
	id, err := p.fetchACI(ctx, src, at.String(), times)
	if err != nil {
		return store.Entry{}, fmt.Errorf("load image %s: %w", at, err)
	}
	return p.Images.Lookup(id.String())
}

// appcImage is an appc image on its way into the store.
type appcImage struct {
	digest   digest.Digest // SHA-512 of the uncompressed archive
	size     int64         // of the archive, bytes
	text     []byte
	manifest *schema.ImageManifest
	below    []store.Layer // of its dependencies, bottom first
}

// fetchACI commits the image and returns its id. A file that is known is not read.
func (p *Pipeline) fetchACI(ctx context.Context, src *fetch.ACI, label string, times *fetchTimes) (digest.Digest, error) {
	// As for the layers of any image: from here on nothing else keeps trees.
	unlock, err := p.Images.LockShared(ctx)
	if err != nil {
		return "", err
	}
	defer unlock()
	defer times.extracting()()
	file, err := store.Identify(src.Name(), src.Info)
	if err != nil {
		return "", err
	}
	l := layer{Layer: tree.Layer{Size: file.Size, MediaType: mediaTypeACI}, image: label, share: &share{}}
	img, stored, err := p.knownACI(file)
	switch {
	case errors.Is(err, errdefs.ErrNotFound) && stored != "":
		// What it depends on is no image any more, but is below it in the store.
		p.layerIs(l, LayerPresent, 0)
		return stored, nil
	case err != nil:
		return "", err
	case img != nil:
		p.layerIs(l, LayerPresent, 0)
		return p.commitACI(ctx, img)
	}
	if img, err = p.extractACI(ctx, src, l, times); err != nil {
		return "", err
	}
	id, err := p.commitACI(ctx, img)
	if err == nil {
		err = p.remember(ctx, src, file, img.digest)
	}
	return id, err
}

// extractACI reads the archive and commits its tree.
func (p *Pipeline) extractACI(ctx context.Context, src *fetch.ACI, l layer, times *fetchTimes) (*appcImage, error) {
	img := &appcImage{size: l.Size}
	// Before the root filesystem is extracted, where the manifest comes first.
	check := func(text []byte) (err error) {
		if img.manifest, err = manifest.DecodeImage(text); err != nil {
			return err
		}
		img.below, err = p.dependencies(img.manifest.Dependencies)
		return err
	}
	err := p.pass(ctx, l, times, func(r *meteredReader) error {
		r.blob = &countedBlob{src, p}
		start := time.Now()
		pending, a, err := p.Trees.ExtractACI(ctx, tree.ACISource{Reader: r, Size: l.Size, Check: check})
		times.pass(r, time.Since(start))
		img.digest, img.text = a.Digest, a.Manifest
		if err != nil {
			return err
		}
		return errors.Join(p.Trees.Commit(ctx, pending), pending.Discard())
	})
	return img, err
}

// knownACI returns the image of a file that was read before and has not changed, and
// the id that it has in the store; nil where something is missing of what came of it. On
// what it depends is looked up anew: ErrNotFound where that is not there.
func (p *Pipeline) knownACI(file store.KnownFile) (*appcImage, digest.Digest, error) {
	d, ok := p.Images.Known(file)
	if !ok {
		return nil, "", nil
	}
	if _, ok, err := p.Trees.Has(tree.ACIKey(d)); !ok || err != nil {
		return nil, "", err
	}
	e, err := p.Images.Lookup(appcID(d))
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil, "", nil
	}
	if err != nil {
		return nil, "", err
	}
	img := &appcImage{digest: d, size: file.Size}
	if img.text, err = p.Images.Manifest(e.Image.ID); err != nil {
		return nil, "", err
	}
	if img.manifest, err = manifest.DecodeImage(img.text); err != nil {
		return nil, "", err
	}
	img.below, err = p.dependencies(img.manifest.Dependencies)
	return img, e.Image.ID, err
}

// remember saves the next one to read the file, if it has stayed the same meanwhile.
func (p *Pipeline) remember(ctx context.Context, src *fetch.ACI, file store.KnownFile, d digest.Digest) error {
	info, err := src.Stat()
	if err != nil {
		return err
	}
	after, err := store.Identify(src.Name(), info)
	if err != nil || after != file {
		return err
	}
	file.Digest = d
	return p.Images.Remember(ctx, file)
}

// appcID spells the digest of an ACI as appc does.
func appcID(d digest.Digest) string { return "sha512-" + d.Encoded() }

// mediaTypeACI is that of an appc image's archive, whatever its compression. None is
// registered; mediaTypeRendered is that of no archive at all.
const (
	mediaTypeACI      = "application/vnd.appc.aci"
	mediaTypeRendered = "application/vnd.gantry.appc.rendered"
)

// commitACI makes the record of an image whose own tree is in the store.
func (p *Pipeline) commitACI(ctx context.Context, img *appcImage) (digest.Digest, error) {
	own := store.Layer{Digest: img.digest, DiffID: img.digest, MediaType: mediaTypeACI, Size: img.size, Tree: tree.Name(tree.ACIKey(img.digest))}
	layers := append(slices.Clone(img.below), own)
	if len(img.manifest.PathWhitelist) > 0 {
		rendered, err := p.renderListed(ctx, img, layers)
		if err != nil {
			return "", err
		}
		layers = []store.Layer{rendered}
	}
	config, err := appcConfig(img.manifest, layers)
	if err != nil {
		return "", err
	}
	r := store.Image{
		ID:             digest.FromBytes(config),
		Kind:           store.KindACI,
		ManifestDigest: digest.FromBytes(img.text),
		AppcID:         appcID(img.digest),
		PulledAt:       time.Now().UTC(),
		Layers:         layers,
		Platform:       appcPlatform(img.manifest.Labels),
		Size:           int64(len(img.text) + len(config)),
	}
	if r.Fixup, err = p.fixup(ctx, layers); err != nil {
		return "", err
	}
	treesSize, err := p.treesSize(r)
	if err != nil {
		return "", err
	}
	r.Size += treesSize
	return r.ID, p.Images.Commit(ctx, r, img.text, config)
}

// fixup is the fix-up tree of layers that are trees.
func (p *Pipeline) fixup(ctx context.Context, layers []store.Layer) (string, error) {
	keys, err := p.keys(layers)
	if err != nil {
		return "", err
	}
	return p.Trees.Fixup(ctx, keys)
}

// keys are the diff IDs by which the tree store knows the layers.
func (p *Pipeline) keys(layers []store.Layer) ([]digest.Digest, error) {
	keys := make([]digest.Digest, len(layers))
	for i, l := range layers {
		m, err := p.Trees.Meta(l.Tree)
		if err != nil {
			return nil, err
		}
		keys[i] = m.DiffID
	}
	return keys, nil
}

// dependencies finds what an image lies on, bottom first: in appc a later
// dependency lies on an earlier one. What they lie on themselves was found when they
// came into the store, so images cannot depend on each other.
func (p *Pipeline) dependencies(list types.Dependencies) ([]store.Layer, error) {
	if len(list) == 0 {
		return nil, nil
	}
	images, err := p.appcImages()
	if err != nil {
		return nil, err
	}
	var layers []store.Layer
	for _, d := range list {
		i := slices.IndexFunc(images, func(i appcEntry) bool { return i.satisfies(d) })
		if i < 0 {
			return nil, fmt.Errorf("it depends on %s, which is not in the store, fetch that before: %w", dependencyName(d), errdefs.ErrNotFound)
		}
		layers = append(layers, images[i].Image.Layers...)
	}
	return layers, nil
}

// appcEntry is an appc image of the store.
type appcEntry struct {
	store.Entry
	manifest *schema.ImageManifest
}

// appcImages are all of them, the newest first.
func (p *Pipeline) appcImages() ([]appcEntry, error) {
	all, err := p.Images.List()
	if err != nil {
		return nil, err
	}
	var images []appcEntry
	for _, e := range all {
		im, err := AppcManifest(p.Images, e.Image)
		if errors.Is(err, errdefs.ErrNotFound) || IsBroken(err) {
			continue // removed since the list was made, or nothing that can be depended on
		}
		if err != nil {
			return nil, err
		}
		if im != nil {
			images = append(images, appcEntry{e, im})
		}
	}
	slices.SortStableFunc(images, func(a, b appcEntry) int { return b.Image.PulledAt.Compare(a.Image.PulledAt) })
	return images, nil
}

// minHash is how many digits of a hash name an image: rkt keeps no more of them.
const minHash = 64

// satisfies reports whether the image is what a dependency asks for. Its size is not
// looked at: it bounds what is read of a dependency that has yet to be fetched.
func (e appcEntry) satisfies(d types.Dependency) bool {
	if e.manifest.Name != d.ImageName {
		return false
	}
	if d.ImageID != nil && (len(d.ImageID.Val) < minHash || !strings.HasPrefix(e.Image.AppcID, d.ImageID.String())) {
		return false
	}
	return !slices.ContainsFunc(d.Labels, func(l types.Label) bool {
		value, ok := e.manifest.Labels.Get(l.Name.String())
		return !ok || value != l.Value
	})
}

func dependencyName(d types.Dependency) string {
	var b strings.Builder
	b.WriteString(d.ImageName.String())
	for _, l := range d.Labels {
		fmt.Fprintf(&b, ",%s=%s", l.Name, l.Value)
	}
	if d.ImageID != nil {
		fmt.Fprintf(&b, " (%s)", d.ImageID)
	}
	return b.String()
}

// Manifests has the manifests of images. *store.Store is one.
type Manifests interface {
	Manifest(id digest.Digest) ([]byte, error)
}

// AppcManifest returns the manifest of an appc image, nil for any other.
func AppcManifest(from Manifests, img store.Image) (*schema.ImageManifest, error) {
	if img.Kind != store.KindACI {
		return nil, nil
	}
	text, err := from.Manifest(img.ID)
	if err != nil {
		return nil, err
	}
	im, err := manifest.DecodeImage(text)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", img.ID, err)
	}
	return im, nil
}

// IsBroken says whether an error of AppcManifest is of that image alone: its manifest
// is damaged, or of a later version.
func IsBroken(err error) bool {
	return errors.Is(err, errdefs.ErrUnverified) || errors.Is(err, errdefs.ErrInvalid) || errors.Is(err, errdefs.ErrUnsupported)
}

// renderListed makes a tree of what an image's pathWhitelist leaves of its layers:
// what is listed and the directories on the way there, and of the image itself
// every directory, as in rkt.
func (p *Pipeline) renderListed(ctx context.Context, img *appcImage, layers []store.Layer) (store.Layer, error) {
	keys, err := p.keys(layers)
	if err != nil {
		return store.Layer{}, err
	}
	made, err := json.Marshal(struct {
		Layers []digest.Digest
		List   []string
	}{keys, img.manifest.PathWhitelist})
	if err != nil {
		return store.Layer{}, err
	}
	id := digest.FromString("appc rendered " + string(made))
	l := store.Layer{Digest: img.digest, DiffID: id, MediaType: mediaTypeRendered, Size: img.size, Tree: tree.Name(id)}
	if _, ok, err := p.Trees.Has(id); ok || err != nil {
		return l, err
	}
	stack := store.Image{Layers: layers}
	if stack.Fixup, err = p.Trees.Fixup(ctx, keys); err != nil {
		return store.Layer{}, err
	}
	job := render.Job{}
	own := -1
	for i, name := range stack.Trees() {
		job.Roots = append(job.Roots, p.Trees.Root(name))
		if own < 0 && name == layers[len(layers)-1].Tree {
			own = i
		}
	}
	job.Keep = listed(img.manifest.PathWhitelist, own)
	pending, err := p.Trees.Make(ctx, id, func(rootfs string) error {
		job.To = rootfs
		return job.Run(ctx)
	})
	if err != nil {
		return store.Layer{}, err
	}
	return l, errors.Join(p.Trees.Commit(ctx, pending), pending.Discard())
}

// listed is what a pathWhitelist keeps; own is the place of the image's own tree.
func listed(list []string, own int) func(render.Found) bool {
	keep, above := map[string]bool{}, map[string]bool{}
	for _, name := range list {
		name = path.Clean(name)[1:]
		keep[name] = true
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			above[dir] = true
		}
	}
	return func(f render.Found) bool {
		return keep[f.Path] || f.Dir && (above[f.Path] || slices.Contains(f.Trees, own))
	}
}

// appcConfig says of an appc image in OCI's words what these have words for. Its
// digest is the image's id, which so stands for the layers, and with the image's own
// for its manifest too.
func appcConfig(im *schema.ImageManifest, layers []store.Layer) ([]byte, error) {
	c := ocispec.Image{Platform: appcPlatform(im.Labels)}
	if app := im.App; app != nil {
		c.Config = ocispec.ImageConfig{User: app.User + ":" + app.Group, Entrypoint: app.Exec, WorkingDir: app.WorkingDirectory, Labels: app.UserLabels}
		for _, v := range app.Environment {
			c.Config.Env = append(c.Config.Env, v.Name+"="+v.Value)
		}
		for _, m := range app.MountPoints {
			if c.Config.Volumes == nil {
				c.Config.Volumes = map[string]struct{}{}
			}
			c.Config.Volumes[m.Path] = struct{}{}
		}
	}
	c.RootFS.Type = "layers"
	for _, l := range layers {
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, l.DiffID)
	}
	return json.Marshal(c)
}

func appcPlatform(labels types.Labels) ocispec.Platform {
	system, _ := labels.Get("os")
	arch, _ := labels.Get("arch")
	goos, goarch, flavor, err := types.ToGoOSArch(system, arch)
	if err != nil {
		return ocispec.Platform{OS: system, Architecture: arch} // it may only be depended on
	}
	return ocispec.Platform{OS: goos, Architecture: goarch, Variant: flavor}
}
