package contract

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gantry-cri/gantry/test/harness"
)

// TestRepairKilled damages the layers and the fix-up tree of an image, and a layer that a
// pod runs on, and kills fsck --repair at every hit of every point that it passes. The next
// one repairs all but what the running pod has, which stays as it is; a pod that was
// prepared before all of it starts.
func TestRepairKilled(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("runs containers: needs root")
	}
	g, p, image := newStack(t)
	r := &repair{g: g, peace: p, mounted: entries(t, filepath.Join(g.Dir, "trees"))}
	r.age(t)
	pod := strings.TrimSpace(g.CLI(t, "prepare", "--quiet", image))
	r.files = held(t, g)
	kills := 0
	for _, point := range sample(t, r.points(t)) {
		t.Run(point, func(t *testing.T) {
			r.damage(t)
			if _, err := r.fsck(t, "GANTRY_FAILPOINT="+point); !(&life{}).wasKilled(err) {
				t.Fatalf("not killed: %v", err)
			}
			kills++
			whole(t, g.Dir)
			r.again(t)
		})
	}
	g.CLI(t, "run-prepared", "--detach", pod)
	g.CLI(t, "rm", "--force", pod)
	p.unbroken(t)
	t.Logf("%d kills", kills)
}

// repair is a store that is damaged and repaired again and again.
type repair struct {
	g       *harness.Gantry
	peace   *peace
	mounted []string // trees that the bystander runs on
	files   []string // of the directories, when all is well

	// The file in one of them that is damaged: where it lies, its name in the pod, what it
	// was and what is in it.
	aged, name string
	was        fs.FileInfo
	content    []byte
}

// longAgo is a time of no file.
var longAgo = time.Unix(1, 0)

// age damages the time of a file that the bystander has.
func (r *repair) age(t *testing.T) {
	t.Helper()
	if len(r.mounted) != 1 {
		t.Fatalf("the bystander has the trees %v, not one", r.mounted)
	}
	root := filepath.Join(r.g.Dir, "trees", r.mounted[0], "rootfs")
	r.aged = firstFile(t, root)
	must := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	must(os.Chtimes(r.aged, longAgo, longAgo))
	var err error
	r.name, err = filepath.Rel(root, r.aged)
	must(err)
	r.was, err = os.Stat(r.aged)
	must(err)
	r.content, err = os.ReadFile(r.aged)
	must(err)
}

// damage changes a file of each tree that no pod has mounted, or a directory's mode where
// there is none.
func (r *repair) damage(t *testing.T) {
	t.Helper()
	for _, tree := range entries(t, filepath.Join(r.g.Dir, "trees")) {
		if slices.Contains(r.mounted, tree) {
			continue
		}
		root := filepath.Join(r.g.Dir, "trees", tree, "rootfs")
		file := firstFile(t, root)
		var err error
		if file != "" {
			err = os.WriteFile(file, []byte("damaged"), 0o644)
		} else {
			err = os.Chmod(filepath.Join(root, entries(t, root)[0]), 0o711)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// firstFile is the first regular file below a directory; empty: there is none.
func firstFile(t *testing.T, root string) (file string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			file, err = path, filepath.SkipAll
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// points are all hits of failpoints of a repair that nobody kills, as NAME:N.
func (r *repair) points(t *testing.T) []string {
	t.Helper()
	r.damage(t)
	file := filepath.Join(t.TempDir(), "hits")
	if _, err := r.fsck(t, "GANTRY_FAILPOINT_HITS="+file); !refused(err) {
		t.Fatalf("the bystander's tree was not left out: %v", err)
	}
	r.whole(t)
	return pointsOf(t, file)
}

// pointsOf are the points that GANTRY_FAILPOINT_HITS has collected, as NAME:N.
func pointsOf(t *testing.T, file string) (points []string) {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	count := map[string]int{}
	for line := range strings.Lines(string(raw)) {
		name := strings.TrimSpace(line)
		count[name]++
		points = append(points, fmt.Sprintf("%s:%d", name, count[name]))
	}
	return points
}

// checked is what fsck says.
type checked struct {
	Trees []struct {
		Tree     string     `json:"tree"`
		Findings []struct{} `json:"findings"`
		Repair   *struct {
			Done    bool   `json:"done"`
			Problem string `json:"problem"`
		} `json:"repair"`
	} `json:"trees"`
}

// fsck repairs, with a variable in its environment.
func (r *repair) fsck(t *testing.T, env string) (c checked, err error) {
	t.Helper()
	out, err := outputOf(t, r.g, env, "fsck", "--repair", "--format=json")
	if len(out) > 0 {
		err = errors.Join(err, json.Unmarshal(out, &c))
	}
	return c, err
}

// outputOf is what a command prints, with a variable in its environment, also when it fails.
func outputOf(t *testing.T, g *harness.Gantry, env, name string, args ...string) ([]byte, error) {
	t.Helper()
	cmd := g.Command(t, name, args...)
	cmd.Env = append(cmd.Env, env)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("gantry %s: %w\n%s", name, err, stderr.Bytes())
	}
	return out, err
}

// refused says whether fsck ended with the code for damage that is left.
func refused(err error) bool {
	var exit *exec.ExitError
	return errors.As(err, &exit) && exit.ExitCode() == 1
}

// again repairs what a repair that was killed left.
func (r *repair) again(t *testing.T) {
	t.Helper()
	c, err := r.fsck(t, "")
	if !refused(err) {
		t.Errorf("the bystander's tree was not left out: %v", err)
	}
	for _, tree := range c.Trees {
		switch mounted := slices.Contains(r.mounted, tree.Tree); {
		case len(tree.Findings) == 0:
		case tree.Repair == nil, !mounted && !tree.Repair.Done:
			t.Errorf("tree %s was not repaired: %+v", tree.Tree, tree.Repair)
		case mounted && (tree.Repair.Done || !strings.Contains(tree.Repair.Problem, "has it mounted")):
			t.Errorf("tree %s, which is mounted: %+v", tree.Tree, tree.Repair)
		}
	}
	r.whole(t)
}

// whole fails the test unless only the bystander's file is damaged, which it sees
// as before, and nothing else than in peace is in the directories.
func (r *repair) whole(t *testing.T) {
	t.Helper()
	if now := held(t, r.g); !slices.Equal(now, r.files) {
		t.Errorf("there is\n%q\nnot\n%q", now, r.files)
	}
	c, err := r.fsck(t, "")
	if !refused(err) {
		t.Error(err)
	}
	for _, tree := range c.Trees {
		if damaged := len(tree.Findings) > 0; damaged != slices.Contains(r.mounted, tree.Tree) {
			t.Errorf("tree %s: damaged %t, %+v", tree.Tree, damaged, tree.Repair)
		}
	}
	info, err := os.Stat(r.aged)
	if err != nil || !info.ModTime().Equal(longAgo) || !os.SameFile(info, r.was) {
		t.Errorf("the bystander's file was replaced: %v", err)
	}
	seen, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(r.peace.was.Init.PID), "root", r.name))
	if err != nil || !bytes.Equal(seen, r.content) {
		t.Errorf("the bystander sees %d bytes, not %d: %v", len(seen), len(r.content), err)
	}
}
