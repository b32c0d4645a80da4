package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

const root = "../.."

func readFile(t *testing.T, name string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// layers are the rooms that have a row of their own in docs/architecture.md.
var layers = []string{"cmd/gantry", "shim", "cri", "translate", "stage0", "stage1"}

// TestRoomsAreDocumented holds the table of docs/architecture.md to what TestRooms holds.
func TestRoomsAreDocumented(t *testing.T) {
	row := regexp.MustCompile("(?m)^\\| `([a-z0-9/]+)/` \\|.*\\| ([^|]*) \\|$")
	documented := map[string]string{}
	for _, m := range row.FindAllStringSubmatch(readFile(t, "docs/architecture.md"), -1) {
		documented[m[1]] = m[2]
	}
	for _, room := range layers {
		want := strings.Join(rooms[room], ", ")
		if want == "" {
			want = "nothing above it"
		}
		// Several of stage0 are written stage0/{a,b}.
		got := regexp.MustCompile(`(\w+/)\{([^}]*)\}`).ReplaceAllStringFunc(documented[room], func(s string) string {
			folder, list, _ := strings.Cut(strings.TrimSuffix(s, "}"), "{")
			return folder + strings.ReplaceAll(list, ",", ", "+folder)
		})
		if got != want {
			t.Errorf("docs/architecture.md: %s may import %q, TestRooms says %q", room, got, want)
		}
	}
}

// TestPackagesAreDocumented finds every package of the two stages in docs/architecture.md.
func TestPackagesAreDocumented(t *testing.T) {
	page := readFile(t, "docs/architecture.md")
	for folder := range ours(packages(t)) {
		stage, name, inside := strings.Cut(folder, "/")
		if !inside || stage != "stage0" && stage != "stage1" || strings.Contains(name, "/") {
			continue
		}
		if !strings.Contains(page, "`"+name+"`") && !strings.Contains(page, "`"+folder+"`") {
			t.Errorf("docs/architecture.md does not name %s", folder)
		}
	}
}

// TestRoomsAreLinted holds the rules of .golangci.yml to what TestRooms and TestStrangers hold.
func TestRoomsAreLinted(t *testing.T) {
	var config struct {
		Linters struct {
			Enable   []string
			Settings struct {
				Depguard struct {
					Rules map[string]struct {
						Files    []string
						ListMode string `json:"list-mode"`
						Allow    []string
						Deny     []struct{ Pkg string }
					}
				}
			}
			Exclusions struct{ Paths []string }
		}
	}
	if err := yaml.Unmarshal([]byte(readFile(t, ".golangci.yml")), &config); err != nil {
		t.Fatal(err)
	}
	l := config.Linters
	if !slices.Contains(l.Enable, "depguard") || len(l.Settings.Depguard.Rules) != len(layers) {
		t.Errorf("%d rules, enabled: %q", len(l.Settings.Depguard.Rules), l.Enable)
	}
	for _, room := range layers {
		rule := l.Settings.Depguard.Rules[room]
		var allow, deny []string
		for _, r := range slices.Concat([]string{room}, rooms[room], vocabulary) {
			allow = append(allow, module+r)
		}
		if slices.Contains(allow, module+"stage0") { // and what is in it
			allow = slices.DeleteFunc(allow, func(a string) bool { return strings.HasPrefix(a, module+"stage0/") })
		}
		if !slices.Equal(rule.Allow, allow) {
			t.Errorf("%s: allowed are %q, want %q", room, rule.Allow, allow)
		}
		for _, d := range rule.Deny {
			deny = append(deny, strings.TrimSuffix(d.Pkg, "$"))
		}
		if want := append([]string{strings.TrimSuffix(module, "/")}, strangers[room]...); !slices.Equal(deny, want) {
			t.Errorf("%s: denied are %q, want %q", room, deny, want)
		}
		if rule.ListMode != "lax" || !slices.Contains(rule.Files, "**/"+room+"/**") {
			t.Errorf("%s: the rule is for %q, mode %q", room, rule.Files, rule.ListMode)
		}
	}
	for _, room := range layers {
		for _, p := range l.Exclusions.Paths {
			if regexp.MustCompile(p).MatchString(room + "/a_test.go") {
				t.Errorf("%q keeps %s/a_test.go from being looked at", p, room)
			}
		}
	}
}

// TestPages holds what the pages name to what there is: linked pages, files and folders of
// the repository, and tests.
func TestPages(t *testing.T) {
	tests := testNames(t)
	pages := []string{"README.md", "CONTRIBUTING.md"}
	if err := fs.WalkDir(os.DirFS(root), "docs", func(p string, _ fs.DirEntry, err error) error {
		if filepath.Ext(p) == ".md" {
			pages = append(pages, p)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	link := regexp.MustCompile(`\]\(([^):#]+)(?:#[^)]*)?\)`)
	file := regexp.MustCompile("`((?:cmd|shim|cri|translate|stage0|stage1|hack|manifests|test|docs|\\.ci)/[A-Za-z0-9_./-]*)`")
	test := regexp.MustCompile(`\b(?:Test|Fuzz|Benchmark)[A-Z][A-Za-z0-9]*`)
	for _, page := range pages {
		text := readFile(t, page)
		var named []string
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			named = append(named, filepath.Join(filepath.Dir(page), m[1]))
		}
		for _, m := range file.FindAllStringSubmatch(text, -1) {
			p := m[1]
			if dir, base := filepath.Split(p); base != "" && filepath.Ext(base) != "" && base[0] != '.' {
				if name, symbol, _ := strings.Cut(base, "."); symbol != "" && symbol[0] >= 'A' && symbol[0] <= 'Z' {
					p = dir + name // a package and what is in it
				}
			}
			named = append(named, p)
		}
		for _, p := range named {
			if _, err := os.Stat(filepath.Join(root, p)); err != nil {
				t.Errorf("%s names %s: %v", page, p, err)
			}
		}
		for _, name := range test.FindAllString(text, -1) {
			if !slices.ContainsFunc(tests, func(have string) bool { return strings.HasPrefix(have, name) }) {
				t.Errorf("%s names %s, which is no test", page, name)
			}
		}
	}
}

// testNames lists the tests of all modules of the repository.
func testNames(t *testing.T) []string {
	t.Helper()
	function := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark)\w+)\(`)
	var names []string
	if err := fs.WalkDir(os.DirFS(root), ".", func(p string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(p, "_test.go") {
			return err
		}
		for _, m := range function.FindAllStringSubmatch(readFile(t, p), -1) {
			names = append(names, m[1])
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return names
}

// TestFrontDoor holds README and Makefile to their length, and the Makefile to the targets
// that people and programs outside rely on, each with a line of help.
func TestFrontDoor(t *testing.T) {
	makefile := readFile(t, "Makefile")
	for name, most := range map[string]int{"README.md": 150, "Makefile": 80} {
		if n := strings.Count(readFile(t, name), "\n"); n > most {
			t.Errorf("%s has %d lines, at most %d are wanted", name, n, most)
		}
	}
	for _, target := range strings.Fields("help build demo test lint bench fuzz install clean") {
		if !regexp.MustCompile(`(?m)^` + target + `:.* ## \S`).MatchString(makefile) {
			t.Errorf("Makefile: no target %s with its help", target)
		}
	}
}
