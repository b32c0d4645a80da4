package stage1

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/gantry-cri/gantry/stage0/format"
	"github.com/gantry-cri/gantry/stage0/format/formattest"
	"github.com/gantry-cri/gantry/stage0/manifest"
	"github.com/gantry-cri/gantry/stage0/pod"
	"github.com/gantry-cri/gantry/stage1/network"
)

// FuzzRecords holds that whatever lies in a pod's files of this boot, its network, its
// configuration and its intents are an error, or what their readers take for granted.
func FuzzRecords(f *testing.F) {
	formattest.Seed(f)
	for _, s := range []string{
		`{"schema":1,"ips":["10.0.0.2","fd00::2"],"interface":"eth0","raw":{"ips":[]}}`, `{"schema":1,"ips":[""]}`, `{"schema":1,"ips":["10.0.0.2/24"]}`, `{"schema":1,"ips":null,"raw":null}`, `{"schema":1,"ips":["fe80::1%eth0"]}`,
		`{"ociVersion":"1.0.2","process":{"args":["/a"],"cwd":"/","user":{"uid":0,"additionalGids":[1]}},"root":{"path":"rootfs"}}`, `{"process":null}`, `{}`, `null`, `[]`, ``, "\x00\x00",
		`{"id":"c","cgroup":"/a","driver":"systemd","runtime":{"Name":"crun","Path":"/usr/bin/crun"},"root":"/r"}`, `{"path":"/a","driver":"?"}`, `{"target":"/run/x"}`, `{"dir":"/run/ns"}`,
		`{"network":"n","config":null,"binDirs":[null],"args":[["a"]],"capabilities":{"dns":null}}`,
	} {
		f.Add([]byte(s))
	}
	dir := f.TempDir()
	pods, err := pod.Open(filepath.Join(dir, "data"), filepath.Join(dir, "run"))
	if err != nil {
		f.Fatal(err)
	}
	r := &Runner{pods: pods}
	u, err := manifest.NewUUID()
	if err != nil {
		f.Fatal(err)
	}
	bundle := pods.AppRunPath(u, "a", "bundle")
	if err := os.MkdirAll(bundle, 0o700); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, file := range []string{pods.RunPath(u, networkFile), filepath.Join(bundle, "config.json")} {
			if err := os.WriteFile(file, text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if result, err := r.Network(u); err == nil {
			for _, ip := range result.IPs {
				if !ip.IsValid() {
					t.Errorf("address %v", ip)
				}
			}
			if _, err := json.Marshal(networkContent{format.Network.Current, result}); err != nil {
				t.Error(err)
			}
		}
		if spec, err := r.Spec(u, "a"); err == nil && spec.Process == nil {
			t.Error("a configuration without a process")
		}
		isSame[cgroupIntent](t, text)
		isSame[namespacesIntent](t, text)
		isSame[network.Attachment](t, text)
		isSame[mountIntent](t, text)
		isSame[containerIntent](t, text)
	})
}

// isSame holds that an intent that is understood says the same when it is written and
// read again: an undo that fails writes it anew.
func isSame[T any](t *testing.T, text []byte) {
	t.Helper()
	var first, second []byte
	write := func(to *[]byte) func(T) error {
		return func(v T) (err error) { *to, err = json.Marshal(v); return err }
	}
	if undoWith(pod.Intent{Data: text}, write(&first)) != nil {
		return
	}
	if err := undoWith(pod.Intent{Data: first}, write(&second)); err != nil || string(first) != string(second) {
		t.Errorf("%s is %s then, %v", first, second, err)
	}
}
