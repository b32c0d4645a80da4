package tree

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/format"
	"github.com/gantry-cri/gantry/stage0/format/formattest"
)

// TestFormat reads the record of each version of meta.json.
func TestFormat(t *testing.T) {
	formattest.Run(t, format.Tree, func(t *testing.T, text []byte) []byte {
		dir := t.TempDir()
		file := filepath.Join(dir, metaFile)
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		m, err := readMeta(dir)
		m.Schema = format.Tree.Current // as an extraction sets it
		if err := errors.Join(err, writeMeta(dir, m)); err != nil {
			t.Fatal(err)
		}
		now, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return now
	})
}

// TestLaterFormat holds that a tree of a later version is refused and stays.
func TestLaterFormat(t *testing.T) {
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	id := digest.FromString("a layer")
	dir := s.Path(Name(id))
	if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, metaFile), []byte(`{"schema":99}`), 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Has(id); !errors.Is(err, errdefs.ErrUnsupported) || !strings.Contains(err.Error(), "meta.json has schema 99") {
		t.Errorf("has: %v", err)
	}
	if _, err := s.Sweep(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); err != nil {
		t.Error(err)
	}
}
