package pod

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/appc/spec/schema"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/disktest"
	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/manifest"
)

func TestMain(m *testing.M) {
	manifest.RegisterIsolators()
	os.Exit(m.Run())
}

func open(t testing.TB) *Pods {
	t.Helper()
	p, err := Open(t.TempDir(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func prepared(t testing.TB, p *Pods, r Record) manifest.UUID {
	t.Helper()
	d, err := p.New(t.Context(), r, manifest.Request{1, 2, 3})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.Commit(schema.BlankPodManifest()), d.Close()); err != nil {
		t.Fatal(err)
	}
	return d.UUID()
}

func TestPodPassesItsPlaces(t *testing.T) {
	p := open(t)
	u := prepared(t, p, Record{Owner: OwnerCLI, Kind: KindPod, Apps: []AppRecord{{Name: "a"}}})
	pod, err := p.Load(u)
	if err != nil {
		t.Fatal(err)
	}
	if pod.State() != Prepared || pod.AppPhase("a") != Created || pod.Record.ID != u.ID(manifest.Request{1, 2, 3}) {
		t.Fatalf("after commit: state %s, phase %s, id %s", pod.State(), pod.AppPhase("a"), pod.Record.ID)
	}
	target, err := os.Readlink(filepath.Join(p.PlaceDir(InPrepared), string(u)))
	if err != nil || target != "../by-id/"+string(u) {
		t.Fatalf("link %q: %v", target, err)
	}
	d, err := p.Lock(t.Context(), u)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Delete(); !errors.Is(err, errdefs.ErrState) {
		t.Fatalf("deleting a prepared pod: %v", err)
	}
	if err := d.MoveTo(InExitedGarbage); !errors.Is(err, errdefs.ErrState) || d.Place() != InPrepared {
		t.Fatalf("from prepared to exited-garbage: %v, now in %s", err, d.Place())
	}
	self, err := ReadProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	steps := []struct {
		name  string
		do    func() error
		state State
		phase Phase
	}{
		{"run", func() error { return errors.Join(d.MakeRunDir(), d.MoveTo(InRun)) }, Running, Starting},
		{"started", func() error { return d.WriteStarted("a", Started{Init: self, Monitor: self}) }, Running, Up},
		{"monitor gone", func() error { return d.WriteStarted("a", Started{Init: self}) }, Running, Unmonitored},
		{"draining", func() error { return d.WriteStarted("a", Started{Monitor: self}) }, Running, Draining},
		{"lost", func() error { return d.WriteStarted("a", Started{}) }, Exited, Lost},
		{"recorded", func() error { return d.WriteExit("a", Exit{Code: 3}) }, Exited, Ended},
		{"recorded once", func() error { return d.WriteExit("a", Exit{Code: 4}) }, Exited, Ended},
		{"reboot", d.RemoveRunDir, Exited, Ended},
		{"reboot without record", func() error { return removeFile(d.Path(exitFile)) }, Exited, Lost},
		{"garbage", func() error { return d.MoveTo(InExitedGarbage) }, ExitedGarbage, Unlisted},
	}
	for _, s := range steps {
		if err := s.do(); err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		if err := pod.Refresh(); err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		if pod.State() != s.state || pod.AppPhase("a") != s.phase {
			t.Errorf("%s: state %q, phase %q; want %q, %q", s.name, pod.State(), pod.AppPhase("a"), s.state, s.phase)
		}
		if s.name == "recorded once" && pod.Exits["a"].Code != 3 {
			t.Errorf("a second record replaced the first: %+v", pod.Exits)
		}
	}
	if err := errors.Join(d.Delete(), d.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Load(u); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("after delete: %v", err)
	}
}

func TestResolve(t *testing.T) {
	p := open(t)
	u := prepared(t, p, Record{Owner: OwnerCLI})
	v := prepared(t, p, Record{Owner: OwnerCLI})
	id := string(u.ID(manifest.Request{1, 2, 3}))
	for _, tc := range []struct {
		name, spelling string
		want           manifest.UUID
		err            error
	}{
		{"uuid", string(u), u, nil},
		{"id", id, u, nil},
		{"upper case", strings.ToUpper(string(v)), v, nil},
		{"prefix of the uuid", string(u)[:11], u, nil},
		{"crictl's 13", id[:13], u, nil},
		{"longer prefix of the id", id[:50], u, nil},
		{"id of another request", id[:40] + strings.Repeat("f", 24), "", errdefs.ErrNotFound},
		{"empty", "", "", errdefs.ErrInvalid},
		{"nothing", "zzz", "", errdefs.ErrNotFound},
		{"unknown uuid", "00000000-0000-4000-8000-000000000000", "", errdefs.ErrNotFound},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := p.Resolve(tc.spelling)
			if got != tc.want || !errors.Is(err, tc.err) {
				t.Errorf("Resolve(%q) = %q, %v; want %q, %v", tc.spelling, got, err, tc.want, tc.err)
			}
		})
	}
}

func TestLockSerialises(t *testing.T) {
	p := open(t)
	u := prepared(t, p, Record{Owner: OwnerCRI})
	d, err := p.Lock(t.Context(), u)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if _, err := p.Lock(ctx, u); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("second lock: %v", err)
	}
	got := make(chan error, 1)
	go func() {
		second, err := p.Lock(t.Context(), u)
		if err == nil {
			err = second.Close()
		}
		got <- err
	}()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Fatalf("lock after unlock: %v", err)
	}
}

func TestLockOfDeletedPod(t *testing.T) {
	p := open(t)
	u := prepared(t, p, Record{Owner: OwnerCRI})
	d, err := p.Lock(t.Context(), u)
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan error, 1)
	go func() { _, err := p.Lock(t.Context(), u); got <- err }()
	time.Sleep(20 * time.Millisecond) // let the waiter queue up; the outcome is the same if it does not
	if err := errors.Join(d.MoveTo(InGarbage), d.Delete(), d.Close()); err != nil {
		t.Fatal(err)
	}
	if err := <-got; !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("lock of a deleted pod: %v", err)
	}
}

func TestSweepTakesWhatNobodyHolds(t *testing.T) {
	p := open(t)
	kept := prepared(t, p, Record{Owner: OwnerCRI})
	held, err := p.New(t.Context(), Record{Owner: OwnerCLI}, manifest.Request{})
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	left, err := p.New(t.Context(), Record{Owner: OwnerCLI}, manifest.Request{})
	if err != nil {
		t.Fatal(err)
	}
	torn := prepared(t, p, Record{Owner: OwnerCRI})
	if err := errors.Join(left.Close(), os.WriteFile(p.Path(torn, recordFile), []byte("{"), 0o600)); err != nil {
		t.Fatal(err)
	}
	linkless := manifest.UUID("11111111-1111-4111-8111-111111111111")
	dangling := manifest.UUID("22222222-2222-4222-8222-222222222222")
	if err := errors.Join(os.Mkdir(p.Path(linkless), 0o750), os.Symlink("../by-id/x", p.link(InGarbage, dangling))); err != nil {
		t.Fatal(err)
	}
	swept, err := p.SweepAborted()
	if err != nil || len(swept) != 3 {
		t.Fatalf("swept %v, %v; want %s, %s, %s", swept, err, left.UUID(), torn, linkless)
	}
	if _, err := os.Lstat(p.link(InGarbage, dangling)); err == nil {
		t.Error("the dangling link is still there")
	}
	for _, u := range []manifest.UUID{kept, held.UUID()} {
		if _, err := os.Stat(p.Path(u)); err != nil {
			t.Errorf("the sweep took a pod that is held or prepared: %v", err)
		}
	}
}

// TestPowerCutAfterCommit has what Commit promised.
func TestPowerCutAfterCommit(t *testing.T) {
	for _, kind := range []string{"ext4 -q", "xfs -q", "btrfs -q"} {
		t.Run(kind, func(t *testing.T) {
			disk, run := disktest.New(t, kind), t.TempDir()
			p, err := Open(disk.Dir, run)
			if err != nil {
				t.Fatal(err)
			}
			unix.Sync() // the folders are older than the pod
			u := prepared(t, p, Record{Owner: OwnerCLI, Kind: KindPod, Apps: []AppRecord{{Name: "a"}}})
			disk.PowerCut(t)
			if p, err = Open(disk.Dir, run); err != nil {
				t.Fatal(err)
			}
			pod, err := p.Load(u)
			if err != nil || pod.State() != Prepared {
				t.Fatalf("%v, %v", pod, err)
			}
			if _, err := pod.Manifest(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestTornInPrepare is about what a power cut leaves of a pod in the making, and of one
// that was promised.
func TestTornInPrepare(t *testing.T) {
	p := open(t)
	left, err := p.New(t.Context(), Record{Owner: OwnerCLI}, manifest.Request{})
	if err != nil {
		t.Fatal(err)
	}
	promised := prepared(t, p, Record{Owner: OwnerCLI})
	linkless := manifest.UUID("11111111-1111-4111-8111-111111111111")
	if err := errors.Join(left.Close(), os.Mkdir(p.Path(linkless), 0o750)); err != nil {
		t.Fatal(err)
	}
	for u, notFound := range map[manifest.UUID]bool{left.UUID(): true, linkless: true, promised: false} {
		if err := os.WriteFile(p.Path(u, recordFile), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Load(u); err == nil || errors.Is(err, errdefs.ErrNotFound) != notFound {
			t.Errorf("%s: %v, want ErrNotFound: %v", u, err, notFound)
		}
	}
}

func TestExpirePreparedKeepsOtherOwners(t *testing.T) {
	p := open(t)
	cri := prepared(t, p, Record{Owner: OwnerCRI})
	cli := prepared(t, p, Record{Owner: OwnerCLI})
	moved, err := p.ExpirePrepared(OwnerCLI, time.Now().Add(time.Hour))
	if err != nil || len(moved) != 1 || moved[0] != cli {
		t.Fatalf("expired %v, %v", moved, err)
	}
	if pl, _ := p.place(cri); pl != InPrepared {
		t.Errorf("pod of CRI is in %q", pl)
	}
	if moved, err = p.ExpirePrepared(OwnerCLI, time.Now().Add(-time.Hour)); err != nil || len(moved) != 0 {
		t.Errorf("young pods expired: %v, %v", moved, err)
	}
}

func TestIntents(t *testing.T) {
	p := open(t)
	u := prepared(t, p, Record{Owner: OwnerCLI})
	d, err := p.Lock(t.Context(), u)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	first, err := NewIntent("mount", "a", map[string]string{"target": "/x"})
	if err != nil {
		t.Fatal(err)
	}
	second := Intent{Kind: "cgroup", Data: json.RawMessage(`"/y"`)}
	if err := errors.Join(d.Intend(first), d.Intend(second)); err != nil {
		t.Fatal(err)
	}
	got, err := d.Intents()
	if err != nil || len(got) != 2 || got[0].Kind != "mount" || got[1].Kind != "cgroup" {
		t.Fatalf("intents %v, %v", got, err)
	}
	if err := d.Undone(got[:1]); err != nil {
		t.Fatal(err)
	}
	if got, err = d.Intents(); err != nil || len(got) != 1 {
		t.Fatalf("after one was undone: %v, %v", got, err)
	}
	if err := d.Undone(nil); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(d.Path(intentsFile)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("empty intents keep their file: %v", err)
	}
}

func TestRunDirOfAnotherBootIsEmptied(t *testing.T) {
	dir, run := t.TempDir(), t.TempDir()
	p, err := Open(dir, run)
	if err != nil {
		t.Fatal(err)
	}
	stale := filepath.Join(p.RunDir(), "stale")
	if err := errors.Join(os.Mkdir(stale, 0o700), os.WriteFile(filepath.Join(p.RunDir(), bootFile), []byte("other"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, run); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(stale); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what lay there from another boot: %v", err)
	}
}

func TestProcess(t *testing.T) {
	self, err := ReadProcess(os.Getpid())
	if err != nil || !self.Alive() {
		t.Fatalf("own process: %+v, %v", self, err)
	}
	reused := self
	reused.StartTime++
	if reused.Alive() || (Process{}).Alive() {
		t.Error("a reused pid, or none, is taken for alive")
	}
	if _, err := ReadProcess(1 << 30); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("no such process: %v", err)
	}
}
