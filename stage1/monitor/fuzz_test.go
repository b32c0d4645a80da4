package monitor

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/gantry-cri/gantry/stage1/ociruntime"
)

// FuzzFiles holds that an exit file is a number or nothing.
func FuzzFiles(f *testing.F) {
	for _, s := range []string{"0", "137\n", "-1", "", " 7 ", "2147483648", "0x10", "1_0", "+5", strings.Repeat("0", 40) + "1"} {
		f.Add([]byte(s))
	}
	dir := f.TempDir()
	path := filepath.Join(dir, "id")
	f.Fuzz(func(t *testing.T, text []byte) {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		want, bad := strconv.Atoi(strings.TrimSpace(string(text)))
		e, ok, err := ReadExit(dir, "id")
		if err != nil || ok && (bad != nil || int(e.Code) != want) {
			t.Errorf("%q is exit %d, %v, %v", text, e.Code, ok, err)
		}
	})
}

// FuzzReport holds that what comes through conmon's sync pipe is a pid or an error
// of bounded length.
func FuzzReport(f *testing.F) {
	for _, s := range []string{`{"data":42}` + "\n", `{"data":-1,"message":"no"}` + "\n", `{"data":0}` + "\n", "{\n", "", `{"data":-1,"message":"\x1b"}` + "\n", `{"data":1.5}` + "\n", `{"pid":1}` + "\n"} {
		f.Add([]byte(s))
	}
	exited := make(chan struct{})
	close(exited)
	f.Fuzz(func(t *testing.T, said []byte) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		l := &launched{
			spec:   Spec{Bundle: t.TempDir(), Runtime: &ociruntime.Client{Runtime: ociruntime.Runtime{Name: "crun"}}},
			report: r, exited: exited, stderr: bytes.NewBuffer(said),
		}
		go func() {
			_, _ = w.Write(said) // nobody may read to the end
			_ = w.Close()
		}()
		pid, err := l.readReport(context.Background())
		if (err == nil) != (pid > 0) || err != nil && len(err.Error()) > 3<<10 {
			t.Errorf("pid %d, %v", pid, err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
}
