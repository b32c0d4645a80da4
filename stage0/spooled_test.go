package stage0_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0"
	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/fetch"
	"github.com/gantry-cri/gantry/stage0/fetch/registrytest"
)

// spoolEnv has the data directory and the image for a process that fetches.
const spoolEnv = "GANTRY_TEST_SPOOL"

// noise has no pattern that a wrong offset would hide.
func noise(n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rand.IntN(256)) //nolint:gosec // no secret
	}
	return string(b)
}

// wire is a registry with an image of one large layer, behind a proxy that counts.
type wire struct {
	*registrytest.Wire
	image  string
	layer  v1.Layer
	digest string
	size   int64
}

// newWire returns one that stops in the middle of its first answer, unless there is
// another answer.
func newWire(t *testing.T, answer func(w http.ResponseWriter, q *http.Request, next http.Handler)) *wire {
	t.Helper()
	needRoot(t)
	x := &wire{}
	reg := registrytest.Start(t)
	x.layer = registrytest.PlainLayer(t, false, registrytest.Tar(t, "a", noise(3<<20)))
	x.digest = digestOf(t, x.layer)
	var err error
	if x.size, err = x.layer.Size(); err != nil {
		t.Fatal(err)
	}
	reg.Push(t, "i:1", registrytest.Image(t, registrytest.Spec{Platform: linux, Layers: []v1.Layer{x.layer}}))
	holdAt := x.half()
	if answer != nil {
		holdAt = 0
	}
	x.Wire = reg.Wire(t, x.digest, holdAt, answer)
	x.image = x.Host + "/i:1"
	return x
}

// honest answers as the registry does, to the end.
func honest(w http.ResponseWriter, q *http.Request, next http.Handler) { next.ServeHTTP(w, q) }

func (x *wire) half() int64 { return x.size / 2 }

func (x *wire) spool(dir string) string {
	return filepath.Join(dir, "tmp", "spool-"+strings.Replace(x.digest, ":", "-", 1))
}

// waitHalf waits until the spool has all that was sent.
func (x *wire) waitHalf(t *testing.T, dir string) {
	t.Helper()
	<-x.Held
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		info, err := os.Stat(x.spool(dir))
		if err == nil && info.Size() == x.half() {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the spool does not get what was sent: %v, %v", info, err)
		}
	}
}

// fetcher returns a pipeline that spools and is patient.
func (x *wire) fetcher(t *testing.T, dir string) (*stage0.Pipeline, *observer) {
	t.Helper()
	p, o := newPipeline(t, dir)
	p.Source = fetch.NewRegistry(fetch.Config{})
	p.SpoolAbove = 1 << 20
	return p, o
}

// complete fetches the image, compares it, and holds that nothing else is left.
func (x *wire) complete(t *testing.T, dir string) *observer {
	t.Helper()
	p, o := x.fetcher(t, dir)
	e, err := p.Fetch(t.Context(), request(t, x.image))
	if err != nil {
		t.Fatal(err)
	}
	want, err := x.layer.Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	head := make([]byte, 1024)
	if _, err := want.Read(head); err != nil {
		t.Fatal(err)
	}
	if got := rootfsFile(t, p, e.Image.Layers[0].Tree, "a"); len(got) != 3<<20 || got[:512] != string(head[512:]) {
		t.Error("the layer has other contents")
	}
	wantEmpty(t, dir, "tmp")
	return o
}

func (x *wire) wantRest(t *testing.T) {
	t.Helper()
	asked, sent := x.Traffic()
	if fmt.Sprint(asked) != fmt.Sprintf("[ bytes=%d-]", x.half()) || sent != x.size {
		t.Errorf("asked for %q, %d bytes of %d sent", asked, sent, x.size)
	}
}

// fetchChild starts a process that fetches the image. It is one that only the test
// with the name begins.
func (x *wire) fetchChild(t *testing.T, dir string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestSpoolChild$")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s", spoolEnv, dir, x.image))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() }) // fails only when it has ended
	return cmd
}

// TestSpoolChild is the body of the processes that fetchChild starts, and nothing elsewhere.
func TestSpoolChild(t *testing.T) {
	dir, image, ok := strings.Cut(os.Getenv(spoolEnv), " ")
	if !ok {
		return
	}
	p, _ := (&wire{}).fetcher(t, dir)
	if _, err := p.Fetch(t.Context(), request(t, image)); err != nil {
		t.Fatal(err)
	}
}

// A process that is killed in the middle leaves a spool, and the next one asks for the
// rest alone. Every byte comes over the wire once.
func TestSpoolSurvivesKill(t *testing.T) {
	x := newWire(t, nil)
	dir := t.TempDir()
	cmd := x.fetchChild(t, dir)
	x.waitHalf(t, dir)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	// A sweep keeps what may be taken up again.
	p, _ := x.fetcher(t, dir)
	if _, err := p.Trees.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n, err := p.SweepSpools(time.Now().Add(-stage0.SpoolKeep)); err != nil || n != 0 {
		t.Errorf("swept %d bytes, %v", n, err)
	}
	if n, err := p.Left(t.Context(), time.Now()); err != nil || n < x.half() {
		t.Errorf("%d bytes are left, %v", n, err)
	}
	if err := p.Images.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	o := x.complete(t, dir)
	x.wantRest(t)
	if o.bytes < x.size-x.half() || o.bytes > x.size-x.half()+10_000 || len(o.lost) > 0 {
		t.Errorf("%d bytes were counted, lost %q", o.bytes, o.lost)
	}
}

// A process that waits for another's download takes it up when that one is killed.
func TestSpoolChangesHands(t *testing.T) {
	x := newWire(t, nil)
	dir := t.TempDir()
	first := x.fetchChild(t, dir)
	x.waitHalf(t, dir)
	done := make(chan error, 1)
	p, o := x.fetcher(t, dir)
	go func() {
		_, err := p.Fetch(t.Context(), request(t, x.image))
		done <- err
	}()
	for !waits(o) {
		time.Sleep(10 * time.Millisecond)
	}
	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = first.Wait() // it was killed
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	x.wantRest(t)
	if _, err := p.Trees.Sweep(t.Context()); err != nil { // what the first had extracted
		t.Fatal(err)
	}
	wantEmpty(t, dir, "tmp")
}

func waits(o *observer) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.layers) > 0 && o.layers[len(o.layers)-1].State == stage0.LayerWaiting
}

// What a cancelled fetch had stays for the next one; below the size nothing is written.
func TestSpoolSurvivesCancel(t *testing.T) {
	x := newWire(t, nil)
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	p, _ := x.fetcher(t, dir)
	done := make(chan error, 1)
	go func() {
		_, err := p.Fetch(ctx, request(t, x.image))
		done <- err
	}()
	x.waitHalf(t, dir)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v, want Canceled", err)
	}
	left, err := os.ReadDir(filepath.Join(dir, "tmp"))
	if err != nil || len(left) != 1 {
		t.Errorf("tmp holds %v, %v, want the spool", left, err)
	}
	x.complete(t, dir)
	x.wantRest(t)
}

// A layer that is no larger than the limit is not spooled.
func TestSpoolOnlyLarge(t *testing.T) {
	x := newWire(t, nil)
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	p, _ := x.fetcher(t, dir)
	p.SpoolAbove = x.size
	done := make(chan error, 1)
	go func() {
		_, err := p.Fetch(ctx, request(t, x.image))
		done <- err
	}()
	<-x.Held
	if _, err := os.Stat(x.spool(dir)); !os.IsNotExist(err) {
		t.Errorf("spool: %v", err)
	}
	cancel()
	<-done
	wantEmpty(t, dir, "tmp")
}

// A spool that is not the layer's beginning is noticed, dropped, and the layer fetched
// again: once.
func TestSpoolIsNotTrusted(t *testing.T) {
	flip := func(w http.ResponseWriter, q *http.Request, next http.Handler) {
		registrytest.Falsify(w, q, next, func(b []byte) []byte {
			b[len(b)-1] ^= 1
			return b
		})
	}
	for _, tc := range []struct {
		name    string
		content func(x *wire) string
		answer  func(w http.ResponseWriter, q *http.Request, next http.Handler)
		asked   int
		lost    int
		err     error
	}{
		{name: "torn", content: func(x *wire) string { return strings.Repeat("\x00", int(x.half())) }, asked: 2, lost: 1},
		{name: "torn, as long as the layer", content: func(x *wire) string { return strings.Repeat("x", int(x.size)) }, asked: 1, lost: 1},
		{name: "longer than the layer", content: func(x *wire) string { return strings.Repeat("x", int(x.size)+1) }, asked: 1},
		{name: "empty", content: func(*wire) string { return "" }, asked: 1},
		{name: "torn, and the registry lies", content: func(x *wire) string { return noise(int(x.half())) }, answer: flip, asked: 2, lost: 1, err: errdefs.ErrUnverified},
		{name: "the registry lies", content: func(*wire) string { return "" }, answer: flip, asked: 1, err: errdefs.ErrUnverified},
	} {
		t.Run(tc.name, func(t *testing.T) {
			answer := tc.answer
			if answer == nil {
				answer = honest
			}
			x := newWire(t, answer)
			dir := t.TempDir()
			if err := os.Mkdir(filepath.Join(dir, "tmp"), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(x.spool(dir), []byte(tc.content(x)), 0o600); err != nil {
				t.Fatal(err)
			}
			var o *observer
			if tc.err == nil {
				o = x.complete(t, dir)
			} else {
				var p *stage0.Pipeline
				p, o = x.fetcher(t, dir)
				if _, err := p.Fetch(t.Context(), request(t, x.image)); !errors.Is(err, tc.err) {
					t.Errorf("error %v, want %v", err, tc.err)
				}
				wantEmpty(t, dir, "tmp")
			}
			if asked, _ := x.Traffic(); len(asked) != tc.asked || asked[len(asked)-1] != "" || len(o.lost) != tc.lost {
				t.Errorf("asked for %q, lost %q", asked, o.lost)
			}
		})
	}
}

// A spool that has all of the layer asks for nothing; a registry that does not give
// parts is read from the beginning.
func TestSpoolWhole(t *testing.T) {
	x := newWire(t, func(w http.ResponseWriter, q *http.Request, next http.Handler) {
		q.Header.Del("Range")
		next.ServeHTTP(w, q)
	})
	want, err := x.layer.Compressed()
	if err != nil {
		t.Fatal(err)
	}
	blob := make([]byte, x.size)
	if _, err := want.Read(blob); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		have int64
		sent int64
	}{{"all", x.size, 0}, {"all but a byte", x.size - 1, x.size}} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.Mkdir(filepath.Join(dir, "tmp"), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(x.spool(dir), blob[:tc.have], 0o600); err != nil {
				t.Fatal(err)
			}
			_, before := x.Traffic()
			o := x.complete(t, dir)
			if _, sent := x.Traffic(); sent-before != tc.sent || len(o.lost) > 0 {
				t.Errorf("%d bytes sent, lost %q", sent-before, o.lost)
			}
		})
	}
}

// Where there is room for the tree and not for the spool beside it, the layer is
// fetched without, and that is said.
func TestSpoolWithoutRoom(t *testing.T) {
	for _, tc := range []struct {
		name string
		room string
		err  error
	}{{"for the tree", "5m", nil}, {"for neither", "2m", errdefs.ErrNoSpace}} {
		t.Run(tc.name, func(t *testing.T) {
			x := newWire(t, honest)
			dir := t.TempDir()
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+tc.room); err != nil {
				t.Skipf("cannot mount a small file system: %v", err)
			}
			t.Cleanup(func() {
				if err := unix.Unmount(dir, 0); err != nil {
					t.Error(err)
				}
			})
			p, o := x.fetcher(t, dir)
			_, err := p.Fetch(t.Context(), request(t, x.image))
			if !errors.Is(err, tc.err) {
				t.Errorf("error %v, want %v", err, tc.err)
			}
			if len(o.lost) != 1 || !strings.Contains(o.lost[0], "no space left") {
				t.Errorf("lost %q", o.lost)
			}
			if asked, _ := x.Traffic(); len(asked) > 2 {
				t.Errorf("asked for %q", asked)
			}
			wantEmpty(t, dir, "tmp")
		})
	}
}
