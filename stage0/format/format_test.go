package format_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/format"
	"github.com/gantry-cri/gantry/stage0/format/formattest"
)

// TestEveryVersionHasARecord fails when a version was counted up and no record of
// it was put into testdata, or when one of before was taken out.
func TestEveryVersionHasARecord(t *testing.T) {
	want := map[string]bool{}
	for _, f := range format.Files {
		if f.Oldest > f.Current {
			t.Errorf("%s is read from %d to %d", f.Name, f.Oldest, f.Current)
		}
		for version := f.Oldest; version <= f.Current; version++ {
			want[formattest.Name(f, version)] = true
			if got, err := f.Version(formattest.Record(t, f, version)); err != nil || got != version {
				t.Errorf("the record of version %d of %s is of %d, %v", version, f.Name, got, err)
			}
		}
	}
	entries, err := os.ReadDir("testdata")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !want[e.Name()] {
			t.Errorf("testdata/%s is of no version that is read", e.Name())
		}
	}
}

func TestVersion(t *testing.T) {
	carries, grown := format.File{Name: "carries", Oldest: 2, Current: 3}, format.File{Name: "grown", Oldest: 0, Current: 1}
	for _, tc := range []struct {
		file    format.File
		text    string
		version int
		refused bool // with ErrUnsupported
		damaged bool
	}{
		{file: carries, text: `{"schema":2}`, version: 2},
		{file: carries, text: `{"schema":3,"later":true}`, version: 3},
		{file: carries, text: `{"schema":1}`, refused: true},
		{file: carries, text: `{"schema":4}`, refused: true},
		{file: carries, text: `{"schema":-1}`, damaged: true},
		{file: carries, text: `{}`, damaged: true},
		{file: carries, text: `[]`, damaged: true},
		{file: carries, text: `{"schema":3`, damaged: true},
		{file: carries, text: ``, damaged: true},
		{file: grown, text: `{"schema":1}`, version: 1},
		{file: grown, text: `{"schema":2}`, refused: true},
		{file: grown, text: `[{"schema":2}]`},
		{file: grown, text: `{"schema":{"code":0}}`}, // an app of that name
		{file: grown, text: `{}`},
		{file: grown, text: "\x00\x00", damaged: true},
	} {
		t.Run(tc.file.Name+" "+tc.text, func(t *testing.T) {
			version, err := tc.file.Version([]byte(tc.text))
			if version != tc.version || (err != nil) != (tc.refused || tc.damaged) || errors.Is(err, errdefs.ErrUnsupported) != tc.refused {
				t.Errorf("version %d, %v", version, err)
			}
			if tc.refused && !strings.Contains(err.Error(), tc.file.Name+" has schema ") {
				t.Errorf("the error names no file and version: %v", err)
			}
		})
	}
}
