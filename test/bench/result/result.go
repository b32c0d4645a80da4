// Package result is what make bench measures and keeps, as JSON: every single
// measurement, on what machine and of which programs. What is told of it (medians,
// ratios, goals) is computed from here by the program report.
package result

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
)

// File is one run of all benchmarks.
type File struct {
	Date     string            `json:"date"`   // RFC 3339
	Commit   string            `json:"commit"` // of gantry's source; "+" behind it: and changes
	Machine  Machine           `json:"machine"`
	Versions map[string]string `json:"versions"` // by program
	Samples  []Sample          `json:"samples"`
}

// Machine is where it ran.
type Machine struct {
	CPU        string `json:"cpu"`
	Cores      int    `json:"cores"`
	Memory     int64  `json:"memory_bytes"`
	Kernel     string `json:"kernel"`
	Filesystem string `json:"filesystem"` // of the loop devices' files
}

// Sample is one measurement: one round of one case by one program. What was not
// measured is 0.
type Sample struct {
	Case  string `json:"case"`
	Who   string `json:"who"`
	Round int    `json:"round"`

	Seconds  float64 `json:"seconds"`                      // until the call or the process ended
	Synced   float64 `json:"synced_seconds,omitempty"`     // and until sync -f of the file system ended
	CPU      float64 `json:"cpu_seconds,omitempty"`        // of the process and the children that it waited for
	Peak     int64   `json:"peak_bytes,omitempty"`         // of resident memory
	Idle     int64   `json:"idle_bytes,omitempty"`         // of resident memory before; 0 where the process began with the case
	Written  int64   `json:"written_bytes,omitempty"`      // to the file system's device
	Used     int64   `json:"used_bytes,omitempty"`         // of the file system's space
	Received int64   `json:"received_bytes,omitempty"`     // of blobs, as the registry counts them
	Server   float64 `json:"server_cpu_seconds,omitempty"` // of the registry

	Limit *Limit `json:"limit,omitempty"` // of who "limit", where the times above are 0
}

// Limit is the work that a pull cannot do without, each step measured alone.
type Limit struct {
	Blob    int64 `json:"blob_bytes"`
	Tar     int64 `json:"tar_bytes"`
	Content int64 `json:"content_bytes"` // of regular files
	Entries int   `json:"entries"`

	// Of CPU, seconds.
	Send       float64 `json:"send"`       // the registry, over loopback
	Receive    float64 `json:"receive"`    // over loopback
	HashBlob   float64 `json:"hash_blob"`  // SHA-256 from memory
	Decompress float64 `json:"decompress"` // from memory to nowhere
	HashTar    float64 `json:"hash_tar"`   // SHA-256 from memory
	Write      float64 `json:"write"`      // the files from memory into the page cache
	WriteBack  float64 `json:"write_back"` // of the whole machine, the files from the page cache to the disk

	Disk float64 `json:"disk"` // seconds to write Content to one file, with its sync
}

// CPU is the sum of all steps.
func (l Limit) CPU() float64 {
	return l.Send + l.Receive + l.HashBlob + l.Decompress + l.HashTar + l.Write + l.WriteBack
}

// Seconds is how long a pull must take on so many cores: without sync the CPU's time but
// for what brings the files to disk, and with it all of the CPU's or the disk's,
// whichever is longer.
func (l Limit) Seconds(cores int) (cached, synced float64) {
	return (l.CPU() - l.WriteBack) / float64(cores), max(l.CPU()/float64(cores), l.Disk)
}

// Read reads a file of results.
func Read(path string) (*File, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var f File
	if err := json.Unmarshal(data, &f); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return &f, nil
}

// Write writes a file of results.
func (f *File) Write(path string) error {
	data, err := json.MarshalIndent(f, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(data, '\n'), 0o644)
}

// Of returns the samples of one program in one case.
func (f *File) Of(name, who string) []Sample {
	return slices.DeleteFunc(slices.Clone(f.Samples), func(s Sample) bool { return s.Case != name || s.Who != who })
}
