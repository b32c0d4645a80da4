package tree

import (
	"fmt"
	"math"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// Limits bound what one layer may contain. What is zero has its default, which is
// far above any real layer. Going beyond one is ErrInvalid, and the error names the
// limit by its key, which is that of the configuration.
type Limits struct {
	// Bytes is the length of the uncompressed layer, and that of all its files
	// together, holes of sparse ones included.
	Bytes int64 `json:"bytes,omitempty"`
	// Ratio is how many times longer than its blob the uncompressed layer may be,
	// once it is longer than 1 GiB.
	Ratio int64 `json:"ratio,omitempty"`
	// Entries are those of the archive and implied directories together.
	Entries int64 `json:"entries,omitempty"`
	// Memory is what has to be remembered of the layer until its end, bytes: implied
	// directories, whiteouts and opaque marks, attributes of directories, and which files
	// a later entry replaced. The implied directories of an image, each counted once, take
	// no more either.
	Memory int64 `json:"memory,omitempty"`
	// Depth is the number of components of a path.
	Depth int `json:"depth,omitempty"`
	// PathLength and NameLength are the bytes of a path within the tree, and of one
	// component of it.
	PathLength int `json:"pathLength,omitempty"`
	NameLength int `json:"nameLength,omitempty"`
}

// DefaultLimits hold where nothing else is said. Code and data shrink to a half or
// a fifth, logs to a twentieth; only gigabytes of one byte shrink 200 times and more,
// by gzip up to 1032 times and by zstd without a bound that would matter.
var DefaultLimits = Limits{Bytes: 512 << 30, Ratio: 200, Entries: 10_000_000, Memory: 4 << 20, Depth: 1024, PathLength: unix.PathMax - 1, NameLength: unix.NAME_MAX}

// freeBytes is what any layer may have uncompressed, however small its blob is.
const freeBytes = 1 << 30

// limitKeys begins the names by which the configuration knows the limits.
const limitKeys = "layerLimits."

// Check complains of a limit that cannot be kept, by its key.
func (l Limits) Check() error {
	for _, v := range []struct {
		key        string
		value, max int64
	}{
		{"bytes", l.Bytes, math.MaxInt64},
		{"ratio", l.Ratio, math.MaxInt64},
		{"entries", l.Entries, math.MaxInt64},
		{"memory", l.Memory, math.MaxInt64 / sharedPaths},
		{"depth", int64(l.Depth), math.MaxInt64},
		{"pathLength", int64(l.PathLength), int64(DefaultLimits.PathLength)},
		{"nameLength", int64(l.NameLength), int64(DefaultLimits.NameLength)},
	} {
		if v.value < 0 || v.value > v.max {
			return fmt.Errorf("%s%s: %d is not from 1 to %d, or 0 for the default: %w", limitKeys, v.key, v.value, v.max, errdefs.ErrInvalid)
		}
	}
	return nil
}

func (l Limits) withDefaults() Limits {
	d := DefaultLimits
	for _, v := range []struct{ to, from *int64 }{{&d.Bytes, &l.Bytes}, {&d.Ratio, &l.Ratio}, {&d.Entries, &l.Entries}, {&d.Memory, &l.Memory}} {
		if *v.from > 0 {
			*v.to = *v.from
		}
	}
	for _, v := range []struct{ to, from *int }{{&d.Depth, &l.Depth}, {&d.PathLength, &l.PathLength}, {&d.NameLength, &l.NameLength}} {
		if *v.from > 0 {
			*v.to = *v.from
		}
	}
	return d
}

// lengthLimit is what a blob may become, and the error for one that becomes longer.
type lengthLimit struct {
	bytes int64
	err   error
}

func (l Limits) length(blob int64) lengthLimit {
	most := max(freeBytes, min(blob, math.MaxInt64/l.Ratio)*l.Ratio)
	if most < l.Bytes {
		return lengthLimit{most, fmt.Errorf("the layer is larger than %d bytes uncompressed, too large for a blob of %d: %w", most, blob, passed("ratio"))}
	}
	return lengthLimit{l.Bytes, fmt.Errorf("the layer is larger than %d bytes uncompressed: %w", l.Bytes, passed("bytes"))}
}

// errLimit marks an error of a limit that was passed.
var errLimit = fmt.Errorf("%w: limit passed", errdefs.ErrInvalid)

func passed(key string) error { return fmt.Errorf("%w (%s%s)", errLimit, limitKeys, key) }
