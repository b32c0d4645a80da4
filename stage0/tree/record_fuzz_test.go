package tree_test

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/gantry-cri/gantry/stage0/tree"
)

// FuzzRecord holds that whatever layer.tarsplit says, its tree is rebuilt or the record
// is damaged, at once, and that nothing outside is written, changed or shown.
func FuzzRecord(f *testing.F) {
	if os.Getuid() != 0 {
		f.Skip("extraction needs root")
	}
	canary := filepath.Join(f.TempDir(), "canary")
	putCanary(f, canary)
	before := snapshot(f, canary)
	s, dir := open(f)
	data := archive(f, folder("d", 0o755), file("d/a", "some content"), hard("d/b", "d/a"), link("out", canary), file("d/a", "other"), device(tar.TypeFifo, "p", 0, 0))
	p, err := s.Extract(f.Context(), plainLayer(data), bytes.NewReader(data))
	if err == nil {
		err = s.Commit(f.Context(), p)
	}
	if err != nil {
		f.Fatal(err)
	}
	record := filepath.Join(s.Path(p.Name()), tree.RecordName)
	line, ops := unpacked(f, record)
	f.Add(ops)
	for _, swap := range [][2]string{{"d/a", "p\x00\x00"}, {"d/a", "../"}, {"d/a", "out"}, {"some", "SOME"}, {"canary", "Canary"}, {"ustar", "usTar"}} {
		f.Add(bytes.ReplaceAll(ops, []byte(swap[0]), []byte(swap[1])))
	}
	for _, it := range []item{
		hard("x", "absent"), hard("x", canary+"/secret"), link("x", ""), file(strings.Repeat("n", 300), ""), file(strings.Repeat("d/", 200)+"x", ""),
		file(".wh..wh..opq", ""), file("d/a", "x", xattr("trusted.overlay.opaque", "y")), file("x", "", owned(-1, 1<<40)),
	} {
		whole := archive(f, it)
		f.Add(slices.Concat(binary.AppendUvarint([]byte{1}, uint64(len(whole))), whole, binary.AppendUvarint([]byte{0}, uint64(len(whole)))))
	}
	f.Add([]byte{0, 0})
	f.Add([]byte("\x02\x03d/a\x00\x00\xff\xff\xff\xff\xff\xff\xff\x7f\x00\x00\x00\x00\x00")) // 2^55 bytes of a file
	z, err := zstd.NewWriter(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, ops []byte) {
		if err := os.WriteFile(record, z.EncodeAll(ops, bytes.Clone(line)), 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := s.Rebuild(t.Context(), p.Name())
		switch {
		case err == nil:
			if r.Meta.TarSize > int64(len(data)) || len(r.Damaged) > 1000 {
				t.Errorf("%+v with %d damaged files", r.Meta, len(r.Damaged))
			}
			if err := r.Discard(); err != nil {
				t.Error(err)
			}
		case !errors.Is(err, tree.ErrRecord):
			t.Errorf("%v is not of a damaged record", err)
		}
		isEmpty(t, filepath.Join(dir, "tmp"))
		diffSnapshots(t, snapshot(t, canary), before)
	})
}

// unpacked is the first line of a record, and its operations.
func unpacked(f *testing.F, record string) (line, ops []byte) {
	f.Helper()
	raw, err := os.ReadFile(record)
	if err != nil {
		f.Fatal(err)
	}
	n := bytes.IndexByte(raw, '\n') + 1
	z, err := zstd.NewReader(nil)
	if err != nil {
		f.Fatal(err)
	}
	defer z.Close()
	if ops, err = z.DecodeAll(raw[n:], nil); err != nil {
		f.Fatal(err)
	}
	return raw[:n], ops
}
