package usage_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/gantry-cri/gantry/stage0/usage"
)

// TestOf holds that the count is that of du: hard links once, holes not at all.
func TestOf(t *testing.T) {
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(dir, "a/b"), 0o755))
	must(os.WriteFile(filepath.Join(dir, "a/f"), make([]byte, 100_001), 0o600))
	must(os.Link(filepath.Join(dir, "a/f"), filepath.Join(dir, "a/b/again")))
	must(os.Symlink("f", filepath.Join(dir, "a/link")))
	must(os.WriteFile(filepath.Join(dir, "hole"), nil, 0o600))
	must(os.Truncate(filepath.Join(dir, "hole"), 1<<30))
	got, err := usage.Of(t.Context(), dir)
	must(err)
	for _, c := range []struct {
		flag string
		got  int64
	}{{"--block-size=1", got.Bytes}, {"--inodes", got.Inodes}} {
		out, err := exec.Command("du", "-s", c.flag, dir).Output()
		must(err)
		if want, err := strconv.ParseInt(strings.Fields(string(out))[0], 10, 64); err != nil || c.got != want {
			t.Errorf("%d, du %s says %d (%v)", c.got, c.flag, want, err)
		}
	}
}

func TestOfNothing(t *testing.T) {
	if u, err := usage.Of(t.Context(), filepath.Join(t.TempDir(), "none")); err != nil || u != (usage.Usage{}) {
		t.Errorf("%+v, %v", u, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := usage.Of(ctx, t.TempDir()); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end of the context: %v", err)
	}
}
