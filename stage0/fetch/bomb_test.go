package fetch

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// TestArchiveLimit holds what archives may decompress to.
func TestArchiveLimit(t *testing.T) {
	for size, want := range map[int64]int64{0: freeArchive, 1000: freeArchive, 1 << 20: 1100 << 20, 1 << 30: maxArchive - maxArchive%maxRatio, 1 << 60: maxArchive - maxArchive%maxRatio} {
		if got := archiveLimit(size); got != want {
			t.Errorf("archive of %d bytes: %d, want %d", size, got, want)
		}
	}
}

// TestArchiveBomb holds that an archive which becomes far larger ends early, with
// a word of the limit, and that a window beyond the limit is refused.
func TestArchiveBomb(t *testing.T) {
	for _, tc := range []struct {
		name   string
		window int
		length int64
		says   string
	}{
		{"zeros", 1 << 20, freeArchive + 1, "larger than 1073741824 bytes"},
		{"window", 16 << 20, 32 << 20, "window"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			f, err := os.Create(filepath.Join(dir, "bomb"))
			if err != nil {
				t.Fatal(err)
			}
			w, err := zstd.NewWriter(f, zstd.WithWindowSize(tc.window), zstd.WithEncoderConcurrency(1))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.CopyN(w, endless{}, tc.length); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			open := unpacker([]byte("\x28\xb5\x2f\xfd"))
			if _, err := f.Seek(0, io.SeekStart); err != nil {
				t.Fatal(err)
			}
			info, err := f.Stat()
			if err != nil {
				t.Fatal(err)
			}
			limit := archiveLimit(info.Size())
			err = decompressTo(t.Context(), &limitWriter{io.Discard, limit, limit}, open, f)
			if err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%v does not say %q", err, tc.says)
			}
			if tc.name == "zeros" && !errors.Is(err, errdefs.ErrInvalid) {
				t.Errorf("%v is not ErrInvalid", err)
			}
		})
	}
}

type endless struct{}

// Read is part of io.Reader.
func (endless) Read(p []byte) (int, error) { clear(p); return len(p), nil }
