package store

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/format/formattest"
)

// FuzzRecords holds that whatever lies in the store's files, images are listed, what
// is broken is named, no record leads out of the folder of trees, and a sweep goes by.
func FuzzRecords(f *testing.F) {
	formattest.Seed(f)
	const config = "{}" // of which the image in the records has the id
	id := digest.FromString(config)
	for _, s := range []string{"", "null", `{"schema":1}`, `{"schema":1,"id":"` + string(id) + `","manifestDigest":"` + string(id) + `","layers":[{"tree":".."}]}`} {
		f.Add([]byte(s))
	}
	s, dir := open(f)
	image := filepath.Join(dir, imagesDir, id.Encoded())
	if err := os.Mkdir(image, 0o700); err != nil {
		f.Fatal(err)
	}
	write(f, filepath.Join(image, configFile), []byte(config))
	ref := refFile("registry.example/web:1")
	f.Fuzz(func(t *testing.T, text []byte) {
		s.mu.Lock()
		clear(s.refs) // a write within the clock's tick may look like no change
		s.mu.Unlock()
		write(t, filepath.Join(image, imageFile), text)
		write(t, filepath.Join(dir, refsDir, ref), text)
		write(t, s.pinFile(id), text)
		write(t, s.knownPath("/srv/web.aci"), text)
		if r, err := readRecord(image, id); err == nil {
			for _, name := range r.image.Trees() {
				if !filepath.IsLocal(name) || name == "." || filepath.Base(name) != name {
					t.Errorf("tree %q", name)
				}
			}
		}
		if r, err := s.readRef(ref); err == nil && (r.Name != "registry.example/web:1" || r.Image.Validate() != nil) {
			t.Errorf("reference %+v", r)
		}
		if d, ok := s.Known(KnownFile{Path: "/srv/web.aci"}); ok && d.Validate() != nil {
			t.Errorf("file of digest %q", d)
		}
		if _, err := s.pinned(id); err != nil {
			t.Error(err)
		}
		if _, err := s.List(); err != nil {
			t.Error(err)
		}
		if _, err := s.Lookup("registry.example/web:1"); err != nil && errors.Is(err, errdefs.ErrInvalid) {
			t.Errorf("a name that is one: %v", err)
		}
		if err := s.Sweep(t.Context()); err != nil {
			t.Errorf("sweep: %v", err)
		}
	})
}
