package store

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/readonly"
)

// TestReadOnlyStores has an image in a read-only store, one in the data directory and
// one in both, and a name that the data directory has moved on.
func TestReadOnlyStores(t *testing.T) {
	made, disk := open(t)
	baked, both, own := newSample(t, 1), newSample(t, 2), newSample(t, 3)
	const tag, moved = "docker.io/library/baked:1", "docker.io/library/x:latest"
	baked.put(t, made, tag, moved)
	both.put(t, made)
	first, dir := open(t)
	both.put(t, first, "docker.io/library/both:1")
	own.put(t, first, moved)
	s, err := Open(dir, readonly.Dir(disk))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]Entry{
		tag:                        {Image: Image{ID: baked.image.ID}, ReadOnly: readonly.Dir(disk), Tags: []string{tag}},
		moved:                      {Image: Image{ID: own.image.ID}, Tags: []string{moved}},
		"docker.io/library/both:1": {Image: Image{ID: both.image.ID}, ReadOnly: readonly.Dir(disk), Tags: []string{"docker.io/library/both:1"}},
	} {
		e, err := s.Lookup(name)
		if err != nil || e.Image.ID != want.Image.ID || e.ReadOnly != want.ReadOnly || !reflect.DeepEqual(e.Tags, want.Tags) {
			t.Errorf("%s: %+v, %v", name, e, err)
		}
	}
	if list, err := s.List(); err != nil || len(list) != 3 {
		t.Errorf("list: %+v, %v", list, err)
	}
	if m, err := s.Manifest(baked.image.ID); err != nil || string(m) != string(baked.manifest) {
		t.Errorf("manifest: %s, %v", m, err)
	}
	baked.put(t, s, "docker.io/library/baked:2") // a pull: a name, no record
	if thereIn(dir, baked.image.ID.Encoded()) {
		t.Error("the record was written again")
	}
	if err := s.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if e, err := s.Lookup("docker.io/library/baked:2"); err != nil || e.Image.ID != baked.image.ID {
		t.Errorf("after the sweep: %+v, %v", e, err)
	}
	for _, x := range []sample{baked, both} {
		if err := s.Remove(t.Context(), x.image.ID); !errors.Is(err, readonly.ErrReadOnly) {
			t.Errorf("remove: %v", err)
		}
		if e, err := s.Lookup(x.image.ID.String()); err != nil || e.ReadOnly == "" {
			t.Errorf("after the removal: %+v, %v", e, err)
		}
	}
	if _, err := s.Lookup("docker.io/library/baked:2"); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("a removed name: %v", err)
	}
	if err := s.RemoveRef(t.Context(), tag); !errors.Is(err, readonly.ErrReadOnly) {
		t.Errorf("remove a name: %v", err)
	}
	if err := s.Remove(t.Context(), own.image.ID); err != nil {
		t.Error(err)
	}
	if err := s.Remove(t.Context(), digest.FromString("absent")); err != nil {
		t.Error(err)
	}
}

// TestReadOnlyBroken pulls an image anew whose record in a read-only store is damaged.
func TestReadOnlyBroken(t *testing.T) {
	made, disk := open(t)
	x := newSample(t, 1)
	x.put(t, made)
	overwrite(t, disk, x)
	s, err := Open(t.TempDir(), readonly.Dir(disk))
	if err != nil {
		t.Fatal(err)
	}
	broken, err := s.Broken()
	if err != nil || len(broken) != 1 || broken[0].ReadOnly != readonly.Dir(disk) {
		t.Errorf("broken: %+v, %v", broken, err)
	}
	x.put(t, s, "docker.io/library/x:1")
	if e, err := s.Lookup("docker.io/library/x:1"); err != nil || e.ReadOnly != "" {
		t.Errorf("lookup: %+v, %v", e, err)
	}
}

func overwrite(t *testing.T, dir string, x sample) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, imagesDir, x.image.ID.Encoded(), imageFile), []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
}
