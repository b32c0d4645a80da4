package main

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/gantry-cri/gantry/"

// rooms is the table of rooms in docs/architecture.md: which packages of this
// module the packages of a room may import, besides those of the room itself.
// The longest room that a package lies in counts.
var rooms = map[string][]string{
	"cmd/gantry":        {"shim", "stage0", "stage1", "translate"},
	"shim":              {"cri", "stage0", "stage1"},
	"cri":               {"translate", "stage0", "stage1"},
	"translate":         {"stage0/manifest"},
	"stage0":            {},
	"stage1":            {"stage0/pod", "stage0/overlay", "stage0/tree", "stage0/manifest", "stage0/idmap", "stage0/durable", "stage0/format", "stage0/thread", "translate"},
	"hack":              {},
	"hack/limit":        {"stage0/inflate"},
	"stage0/errdefs":    {},
	"stage0/failpoint":  {},
	"stage0/format":     {"stage0/errdefs"},
	"stage0/thread":     {},
	"stage0/usage":      {},
	"stage0/durable":    {"stage0/errdefs"},
	"stage0/manifest":   {"stage0/errdefs", "stage0/idmap"},
	"stage0/imageref":   {"stage0/errdefs"},
	"stage0/readonly":   {"stage0/errdefs"},
	"stage0/store":      {"stage0/errdefs", "stage0/imageref", "stage0/durable", "stage0/format", "stage0/usage", "stage0/readonly"},
	"stage0/inflate":    {},
	"stage0/inode":      {},
	"stage0/credential": {"stage0/errdefs"},
	"stage0/tree":       {"stage0/errdefs", "stage0/inflate", "stage0/inode", "stage0/durable", "stage0/format", "stage0/usage", "stage0/readonly"},
	"stage0/idmap":      {"stage0/errdefs", "stage0/durable"},
	"stage0/overlay":    {"stage0/errdefs", "stage0/tree", "stage0/durable", "stage0/idmap", "stage0/thread"},
	"stage0/render":     {"stage0/errdefs", "stage0/inode", "stage0/tree", "stage0/durable", "stage0/idmap"},
	"stage0/verify":     {"stage0/errdefs", "stage0/tree"},
	"stage0/pod":        {"stage0/errdefs", "stage0/manifest", "stage0/durable", "stage0/format", "stage0/usage"},
}

// vocabulary may be imported from everywhere: it holds words and does nothing.
var vocabulary = []string{"stage0/errdefs", "stage0/failpoint"}

// strangers are packages that no package of a room imports: these rooms do not
// log, serve or measure.
var strangers = map[string][]string{
	"stage0":    {"google.golang.org/grpc", "k8s.io/klog", "github.com/prometheus", "log"},
	"stage1":    {"google.golang.org/grpc", "k8s.io/klog", "github.com/prometheus", "log"},
	"translate": {"google.golang.org/grpc", "k8s.io/klog", "github.com/prometheus", "log"},
}

// listed is what go list says about a package.
type listed struct {
	ImportPath string
	Doc        string
	Imports    []string
	Module     *struct{ Main bool }
}

// packages lists the packages of this module, and all that they depend on.
func packages(t *testing.T) map[string]listed {
	t.Helper()
	cmd := exec.Command("go", "list", "-e", "-deps", "-json=ImportPath,Doc,Imports,Module", "./...")
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	all := map[string]listed{}
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all[p.ImportPath] = p
	}
}

// ours lists the packages of the module itself, by their folder.
func ours(all map[string]listed) map[string]listed {
	mine := map[string]listed{}
	for path, p := range all {
		if p.Module != nil && p.Module.Main {
			mine[strings.TrimPrefix(path, module)] = p
		}
	}
	return mine
}

func within(folder, room string) bool {
	return folder == room || strings.HasPrefix(folder, room+"/")
}

func roomOf(folder string) string {
	best := ""
	for room := range rooms {
		if within(folder, room) && len(room) > len(best) {
			best = room
		}
	}
	return best
}

func TestRooms(t *testing.T) {
	for folder, p := range ours(packages(t)) {
		room := roomOf(folder)
		if room == "" {
			t.Errorf("%s lies in no room of docs/architecture.md", folder)
			continue
		}
		may := slices.Concat([]string{room}, rooms[room], vocabulary)
		for _, path := range p.Imports {
			target, ok := strings.CutPrefix(path, module)
			if ok && !slices.ContainsFunc(may, func(m string) bool { return within(target, m) }) {
				t.Errorf("%s imports %s: %s may import %v", folder, target, room, may)
			}
		}
	}
}

func TestStrangers(t *testing.T) {
	all := packages(t)
	for folder, p := range ours(all) {
		for room, unwanted := range strangers {
			if !within(folder, room) {
				continue
			}
			for _, path := range p.Imports {
				if slices.ContainsFunc(unwanted, func(u string) bool { return within(path, u) }) {
					t.Errorf("%s imports %s: %s neither logs nor serves nor measures", folder, path, room)
				}
			}
		}
	}
}

func TestPackageDocs(t *testing.T) {
	for folder, p := range ours(packages(t)) {
		if p.Doc == "" {
			t.Errorf("%s has no package comment", folder)
		}
	}
}
