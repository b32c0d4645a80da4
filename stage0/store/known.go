package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/gantry-cri/gantry/stage0/durable"
	"github.com/gantry-cri/gantry/stage0/format"
)

const filesDir = "files"

// KnownFile is a file that an image was read from: as long as all that stat says of it
// is the same, so are its bytes. It only saves to read it again.
type KnownFile struct {
	Schema   int           `json:"schema"` // format.KnownFile's
	Path     string        `json:"path"`   // absolute
	Device   uint64        `json:"device"`
	Inode    uint64        `json:"inode"`
	Size     int64         `json:"size"`
	Modified int64         `json:"modified"` // nanoseconds since 1970
	Changed  int64         `json:"changed"`  // status, as Modified; nobody can set it
	Digest   digest.Digest `json:"digest"`   // SHA-512 of the uncompressed ACI
}

// minAge is how long a file must have been the same before it is known: the clocks of
// file systems tick in milliseconds, those of old ones in seconds.
const minAge = 2 * time.Second

// Identify says which file it is, without a digest.
func Identify(path string, info fs.FileInfo) (KnownFile, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return KnownFile{}, fmt.Errorf("identify file: %w", err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return KnownFile{}, fmt.Errorf("identify file %s: no stat of it", path)
	}
	return KnownFile{Path: abs, Device: st.Dev, Inode: st.Ino, Size: st.Size, Modified: st.Mtim.Nano(), Changed: st.Ctim.Nano()}, nil
}

// Known returns the digest that was remembered of a file, if it is still that file.
// What cannot be read is not known.
func (s *Store) Known(file KnownFile) (digest.Digest, bool) {
	known, err := readKnown(s.knownPath(file.Path))
	if err != nil {
		return "", false
	}
	d := known.Digest
	known.Schema, known.Digest = file.Schema, file.Digest
	return d, known == file
}

func readKnown(path string) (KnownFile, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return KnownFile{}, err
	}
	var known KnownFile
	if err := format.KnownFile.Decode(text, &known); err != nil {
		return KnownFile{}, err
	}
	return known, known.Digest.Validate()
}

// Remember keeps what a file is, in place of what was remembered of its path. One that
// changed a moment ago is not remembered: it may change again without a trace.
func (s *Store) Remember(ctx context.Context, file KnownFile) error {
	if time.Since(time.Unix(0, max(file.Modified, file.Changed))) < minAge {
		return nil
	}
	file.Schema = format.KnownFile.Current
	text, err := encode(file)
	if err != nil {
		return fmt.Errorf("remember file %s: %w", file.Path, err)
	}
	return s.change(ctx, func() error {
		return durable.WriteFile(s.knownPath(file.Path), text, fileMode, durable.Kill)
	})
}

func (s *Store) knownPath(path string) string {
	sum := sha256.Sum256([]byte(path))
	return filepath.Join(s.dir, filesDir, hex.EncodeToString(sum[:]))
}

// sweepKnown forgets files whose images are not there any more, and what cannot be read
// or has no name yet. It runs under the lock that Remember takes.
func (s *Store) sweepKnown() error {
	entries, err := os.ReadDir(filepath.Join(s.dir, filesDir))
	if err != nil || len(entries) == 0 {
		return err
	}
	images, err := s.List()
	if err != nil {
		return err
	}
	there := map[string]bool{}
	for _, e := range images {
		there[strings.TrimPrefix(e.Image.AppcID, appcPrefix)] = true
	}
	var errs []error
	for _, e := range entries {
		path := filepath.Join(s.dir, filesDir, e.Name())
		known, err := readKnown(path)
		if isTransient(err) || err == nil && there[known.Digest.Encoded()] && s.knownPath(known.Path) == path {
			continue
		}
		if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
