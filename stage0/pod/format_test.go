package pod

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gantry-cri/gantry/stage0/durable"
	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/format"
	"github.com/gantry-cri/gantry/stage0/format/formattest"
	"github.com/gantry-cri/gantry/stage0/manifest"
)

// TestFormats reads the record of each version of each of a pod's files.
func TestFormats(t *testing.T) {
	formattest.Run(t, format.Pod, func(t *testing.T, text []byte) []byte {
		p := open(t)
		var named struct{ UUID manifest.UUID }
		if err := json.Unmarshal(text, &named); err != nil {
			t.Fatal(err)
		}
		file := p.Path(named.UUID, recordFile)
		put(t, file, text)
		r, err := p.record(named.UUID)
		if err != nil {
			t.Fatal(err)
		}
		r.Schema = format.Pod.Current // as New sets it
		return again(t, file, writeJSON(file, r, durable.Kill))
	})
	rewrite := func(path func(*Dir) string, do func(*Dir) error) func(*testing.T, []byte) []byte {
		return func(t *testing.T, text []byte) []byte {
			p := open(t)
			d := running(t, p)
			put(t, path(d), text)
			return again(t, path(d), do(d))
		}
	}
	formattest.Run(t, format.Exit, rewrite(func(d *Dir) string { return d.Path(exitFile) }, func(d *Dir) error {
		exits, _, err := d.pods.exits(d.uuid)
		return errors.Join(err, writeExits(d.Path(exitFile), exits, durable.Kill))
	}))
	formattest.Run(t, format.Intents, rewrite(func(d *Dir) string { return d.Path(intentsFile) }, func(d *Dir) error {
		intents, err := d.Intents()
		return errors.Join(err, d.Undone(intents))
	}))
	formattest.Run(t, format.Started, rewrite(func(d *Dir) string { return d.pods.AppRunPath(d.uuid, "a", startedFile) }, func(d *Dir) error {
		s, err := d.pods.Started(d.uuid, "a")
		return errors.Join(err, d.WriteStarted("a", s))
	}))
	formattest.Run(t, format.Resources, rewrite(func(d *Dir) string { return d.Path(resourcesFile) }, func(d *Dir) error {
		var r json.RawMessage
		err := d.pods.Resources(d.uuid, &r)
		return errors.Join(err, d.WriteResources(r))
	}))
}

// running is a pod of one app that was moved to run, locked.
func running(t testing.TB, p *Pods) *Dir {
	t.Helper()
	u := prepared(t, p, Record{Owner: OwnerCLI, Kind: KindPod, Apps: []AppRecord{{Name: "a"}}})
	d, err := p.Lock(t.Context(), u)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	if err := errors.Join(d.MakeRunDir(), d.MoveTo(InRun)); err != nil {
		t.Fatal(err)
	}
	return d
}

func put(t testing.TB, path string, text []byte) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, text, 0o600)); err != nil {
		t.Fatal(err)
	}
}

func again(t *testing.T, path string, err error) []byte {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestLaterFormat holds that a file of a later version, which a downgrade leaves
// behind, is refused by its name and neither written anew nor taken for garbage.
func TestLaterFormat(t *testing.T) {
	for _, tc := range []struct {
		file format.File
		path func(*Dir) string
	}{
		{format.Pod, func(d *Dir) string { return d.Path(recordFile) }},
		{format.Exit, func(d *Dir) string { return d.Path(exitFile) }},
		{format.Exit, func(d *Dir) string { return d.RunPath(exitFile) }},
		{format.Started, func(d *Dir) string { return d.pods.AppRunPath(d.uuid, "a", startedFile) }},
	} {
		t.Run(tc.file.Name, func(t *testing.T) {
			p := open(t)
			d := running(t, p)
			const later = `{"schema":99}`
			put(t, tc.path(d), []byte(later))
			if _, err := p.Load(d.uuid); !errors.Is(err, errdefs.ErrUnsupported) || !strings.Contains(err.Error(), tc.file.Name+" has schema 99") {
				t.Errorf("load: %v", err)
			}
			if err := d.WriteExit("a", Exit{Code: 1}); tc.file == format.Exit && !errors.Is(err, errdefs.ErrUnsupported) {
				t.Errorf("write exit: %v", err)
			}
			if swept, err := p.SweepAborted(); err != nil || len(swept) > 0 {
				t.Errorf("swept %v, %v", swept, err)
			}
			if got := again(t, tc.path(d), nil); string(got) != later {
				t.Errorf("it is now %s", got)
			}
		})
	}
}

// TestLaterRecordIsNotSwept does the same to a pod that was prepared, which a sweep
// would take if its record were merely torn.
func TestLaterRecordIsNotSwept(t *testing.T) {
	p := open(t)
	u := prepared(t, p, Record{Owner: OwnerCLI, Kind: KindPod})
	put(t, p.Path(u, recordFile), []byte(`{"schema":99}`))
	if swept, err := p.SweepAborted(); err != nil || len(swept) > 0 {
		t.Errorf("swept %v, %v", swept, err)
	}
	if d, err := p.Lock(t.Context(), u); !errors.Is(err, errdefs.ErrUnsupported) {
		t.Errorf("locked %v, %v", d, err)
	}
	put(t, p.Path(u, recordFile), []byte(`{"sche`))
	if swept, err := p.SweepAborted(); err != nil || len(swept) != 1 {
		t.Errorf("torn: swept %v, %v", swept, err)
	}
}

// TestLaterIntents claim anything and are not undone.
func TestLaterIntents(t *testing.T) {
	p := open(t)
	d := running(t, p)
	put(t, d.Path(intentsFile), []byte(`{"schema":99}`))
	if claims, err := p.Claims(d.uuid); err != nil || !claims {
		t.Errorf("claims %v, %v", claims, err)
	}
	if _, err := d.Intents(); !errors.Is(err, errdefs.ErrUnsupported) {
		t.Errorf("intents: %v", err)
	}
	if err := d.Intend(Intent{Kind: "mount"}); !errors.Is(err, errdefs.ErrUnsupported) {
		t.Errorf("intend: %v", err)
	}
}
