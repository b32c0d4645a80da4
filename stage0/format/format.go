// Package format says of each kind of file that Gantry keeps which versions this
// program reads, and which one it writes. A file carries its version as the number
// "schema" of a JSON object.
//
// A change of the layout that a reader of before would take for something else
// makes a new version: Current is counted up, the reader goes on reading from
// Oldest, and testdata gets a record of the new version. The records of the old
// ones stay as they are: formattest holds that today's reader understands each. What
// a reader of before may pass over, as json.Unmarshal does, needs no new version.
//
// A file of a later version is refused with ErrUnsupported, which is neither broken
// nor absent: after a downgrade it stays until a later Gantry is back, and whatever
// may depend on it stays as well.
package format

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// File is one kind of file on disk.
type File struct {
	// Name is the file's, or what it is where each has a name of its own.
	Name string
	// Oldest is the first version that is read, Current the last, which is written.
	// Version 0 are the files of before they carried a version.
	Oldest, Current int
}

// The kinds of files. docs/on-disk.md says what they are for.
var (
	Pod       = File{"pod.json", 1, 1}
	Exit      = File{"exit.json", 0, 1}
	Intents   = File{"intents.json", 0, 1}
	Started   = File{"started.json", 0, 1}
	Resources = File{"resources.json", 0, 1}
	Network   = File{"network.json", 0, 1}
	Image     = File{"image.json", 1, 1}
	Ref       = File{"ref", 0, 1}
	Pin       = File{"pin", 1, 1}
	KnownFile = File{"file", 1, 1}
	Tree      = File{"meta.json", 1, 1}
	TarSplit  = File{"layer.tarsplit", 1, 1}
)

// Files are all of them.
var Files = []File{Pod, Exit, Intents, Started, Resources, Network, Image, Ref, Pin, KnownFile, Tree, TarSplit}

// Version returns the version that a file's text says it is of. ErrUnsupported says
// that this program does not read that one; any other error that the text is damaged.
func (f File) Version(text []byte) (int, error) {
	var whole json.RawMessage
	if err := json.Unmarshal(text, &whole); err != nil {
		return 0, err
	}
	version := versionOf(text)
	switch {
	case version < 1 && f.Oldest > 0:
		return 0, errors.New("it carries no schema version")
	case version < f.Oldest || version > f.Current:
		return 0, fmt.Errorf("%s has schema %d, this version of Gantry reads %d to %d: %w", f.Name, version, f.Oldest, f.Current, errdefs.ErrUnsupported)
	}
	return version, nil
}

// versionOf is 0 for what carries no version: no object, or one in which "schema"
// is something else, such as an app of that name.
func versionOf(text []byte) int {
	var carrier struct {
		Schema json.RawMessage `json:"schema"`
	}
	version := 0
	if json.Unmarshal(text, &carrier) != nil || json.Unmarshal(carrier.Schema, &version) != nil {
		return 0
	}
	return version
}

// Decode reads the text of a file into v if its version is one that is read. The
// errors are those of Version.
func (f File) Decode(text []byte, v any) error {
	if _, err := f.Version(text); err != nil {
		return err
	}
	return json.Unmarshal(text, v)
}
