// Package formattest holds readers to a record of each version that they read. All
// records of a file tell the same facts, in a file each of format/testdata; those of
// version 0 were written by Gantry before files carried a version, and none is ever
// changed.
package formattest

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/gantry-cri/gantry/stage0/format"
)

// Name is the name of a version's record in testdata.
func Name(f format.File, version int) string { return fmt.Sprintf("%s.%d", f.Name, version) }

// Record is the text of a version's record. The test runs somewhere in this module.
func Record(t *testing.T, f format.File, version int) []byte {
	t.Helper()
	dir := root(t)
	text, err := os.ReadFile(filepath.Join(dir, "stage0", "format", "testdata", Name(f, version)))
	if err != nil {
		t.Fatalf("no record of version %d of %s: %v", version, f.Name, err)
	}
	return text
}

// Seed adds all records, of every file and version, to the corpus of a target that takes
// one text.
func Seed(f *testing.F) {
	f.Helper()
	records, err := filepath.Glob(filepath.Join(root(f), "stage0", "format", "testdata", "*.[0-9]*"))
	if err != nil || len(records) == 0 {
		f.Fatalf("no records: %v", err)
	}
	for _, r := range records {
		text, err := os.ReadFile(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
}

// root is the directory of go.mod: tests run in that of their package.
func root(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	for err == nil && dir != "/" {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		dir = filepath.Dir(dir)
	}
	t.Fatalf("no go.mod above the test: %v", err)
	return ""
}

// Run reads the record of each version of a file and writes what was read: that must
// be the record of the current version, byte for byte. So it fails when a reader
// does not understand a version any more, and when what is written has changed and
// the version has not. rewrite is given a record's text.
func Run(t *testing.T, f format.File, rewrite func(t *testing.T, text []byte) []byte) {
	t.Helper()
	want := Record(t, f, f.Current)
	for version := f.Oldest; version <= f.Current; version++ {
		t.Run(Name(f, version), func(t *testing.T) {
			if got := rewrite(t, Record(t, f, version)); string(got) != string(want) {
				t.Errorf("read and written again it is\n%s\nand not\n%s", got, want)
			}
		})
	}
}
