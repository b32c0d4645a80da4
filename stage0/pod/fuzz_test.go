package pod

import (
	"errors"
	"os"
	"reflect"
	"testing"
	"time"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/format/formattest"
)

// FuzzRecords holds that whatever a power cut makes of a pod's files, the pod can be
// loaded or is refused with a class, its apps can end, and what is read and written
// is read as the same again.
func FuzzRecords(f *testing.F) {
	formattest.Seed(f)
	for _, s := range []string{"", "null", "{}", "[]", `{"schema":1}`, `{"schema":1,"apps":null,"intents":null,"resources":null}`, `{"schema":9}`, `{"schema":"x"}`} {
		f.Add([]byte(s))
	}
	p := open(f)
	d := running(f, p)
	record, err := os.ReadFile(d.Path(recordFile))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		put(t, d.Path(recordFile), text)
		if _, err := p.Load(d.uuid); err != nil && !errors.Is(err, errBroken) && !errors.Is(err, errdefs.ErrUnsupported) {
			t.Errorf("load: %v", err)
		}
		put(t, d.Path(recordFile), record)
		for _, file := range []string{d.Path(exitFile), d.RunPath(exitFile), d.Path(intentsFile), d.Path(resourcesFile), p.AppRunPath(d.uuid, "a", startedFile)} {
			put(t, file, text)
		}
		defer func() {
			if err := errors.Join(removeFile(d.Path(exitFile)), removeFile(d.RunPath(exitFile)), removeFile(d.Path(intentsFile)), removeFile(d.Path(resourcesFile))); err != nil {
				t.Error(err)
			}
		}()
		if _, err := p.Load(d.uuid); err != nil && !errors.Is(err, errdefs.ErrUnsupported) {
			t.Errorf("load: %v", err)
		}
		endsWith(t, d)
		intendsAgain(t, d)
		var r any
		if err := p.Resources(d.uuid, &r); err == nil {
			if err := d.WriteResources(r); err != nil {
				t.Error(err)
			}
		} else if !errors.Is(err, errBroken) && !errors.Is(err, errdefs.ErrUnsupported) {
			t.Error(err)
		}
	})
}

// endsWith ends the app: its exit record is there then, or was.
func endsWith(t *testing.T, d *Dir) {
	t.Helper()
	before, _, err := d.pods.exits(d.uuid)
	if err != nil {
		if !errors.Is(err, errdefs.ErrUnsupported) {
			t.Error(err)
		}
		return
	}
	had, there := before["a"]
	if err := errors.Join(d.WriteExit("a", Exit{Code: 3, EndedAt: time.Unix(1, 0)}), d.SaveExits()); err != nil {
		t.Fatal(err)
	}
	after, unsaved, err := d.pods.exits(d.uuid)
	if got := after["a"]; err != nil || unsaved || !there && got.Code != 3 || there && !reflect.DeepEqual(got, had) {
		t.Errorf("ended %+v, %v; before %+v", got, err, had)
	}
}

func intendsAgain(t *testing.T, d *Dir) {
	t.Helper()
	claimed, err := d.pods.Claims(d.uuid)
	if err != nil {
		t.Error(err)
	}
	have, err := d.pods.readIntents(d.uuid)
	if err != nil {
		if !claimed {
			t.Errorf("nothing is claimed by what cannot be read: %v", err)
		}
		return
	}
	in, err := NewIntent("k", "a", 1)
	if err := errors.Join(err, d.Intend(in)); err != nil {
		t.Fatal(err)
	}
	now, err := d.Intents()
	if err != nil || len(now) != len(have)+1 || now[len(have)].Kind != "k" || claimed != (len(have) > 0) {
		t.Errorf("%d intents, then %d, %v", len(have), len(now), err)
	}
}

// FuzzResolve holds that what names a pod on the command line never leads to one
// that it does not name.
func FuzzResolve(f *testing.F) {
	for _, s := range []string{"", "1", "../x", "*", "[", "11111111-1111-4111-8111-111111111111"} {
		f.Add(s)
	}
	p := open(f)
	u := prepared(f, p, Record{Owner: OwnerCLI, Kind: KindPod})
	f.Add(string(u))
	f.Add(string(u)[:8])
	f.Fuzz(func(t *testing.T, s string) {
		got, err := p.Resolve(s)
		if err == nil && (got != u || s == "") {
			t.Errorf("%q is %q", s, got)
		}
		if err != nil && !errors.Is(err, errdefs.ErrInvalid) && !errors.Is(err, errdefs.ErrNotFound) {
			t.Errorf("%v is of no class", err)
		}
	})
}
