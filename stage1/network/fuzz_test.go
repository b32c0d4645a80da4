package network

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/containernetworking/cni/pkg/types/create"
)

// FuzzConf holds that a network configuration is refused or can be kept and read
// again for DEL, and that no plugin's name leads out of the directories of plugins.
func FuzzConf(f *testing.F) {
	for _, s := range []string{
		`{"cniVersion":"1.1.0","name":"n","plugins":[{"type":"bridge","ipam":{"type":"host-local"},"capabilities":{"portMappings":true}}]}`,
		`{"cniVersion":"0.3.1","name":"n","type":"loopback"}`, `{"name":"n","plugins":null}`, `{"name":"n","plugins":[null]}`, `{"name":"n","plugins":[{"type":"../x"}]}`,
		`{"cniVersion":"9.9.9","name":"n","type":"x"}`, `{"name":"n","loadOnlyInlinedPlugins":false,"disableCheck":"true","plugins":[{"type":"a"}]}`, `null`, `{"cniVersions":["1.0.0","1.1.0"],"name":"n","plugins":[{"type":"a"}]}`,
	} {
		f.Add([]byte(s), true)
		f.Add([]byte(s), false)
	}
	dir := f.TempDir()
	list, single := filepath.Join(dir, "a.conflist"), filepath.Join(dir, "a.conf")
	f.Fuzz(func(t *testing.T, text []byte, one bool) {
		file := list
		if one {
			file = single
		}
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := loadFile(file)
		if err != nil {
			return
		}
		c.capabilities()
		if c.Name == "" || len(c.Plugins) == 0 || !json.Valid(c.List) {
			t.Errorf("network %q with plugins %q: %s", c.Name, c.Plugins, c.List)
		}
		for _, p := range c.Plugins {
			if path, err := findPlugin(p, []string{dir}); err == nil && filepath.Dir(path) != dir {
				t.Errorf("plugin %q is %s", p, path)
			}
		}
		a := Attachment{Config: c.List, File: file}
		again, err := a.list()
		if err != nil || again.Name != c.Name || len(again.Plugins) != len(c.Plugins) {
			t.Errorf("kept as %s, which is %+v, %v", c.List, again, err)
		}
	})
}

// FuzzPlugin holds that whatever a plugin says is a result with an address or an
// error of bounded length.
func FuzzPlugin(f *testing.F) {
	for _, s := range []string{
		`{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","mac":"aa:bb:cc:dd:ee:ff","sandbox":"/n"}],"ips":[{"address":"10.0.0.2/24","interface":0}]}`,
		`{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.2/24"}}`, `{"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.0.0.2/24","interface":7}]}`,
		`{"cniVersion":"1.0.0","ips":[null],"interfaces":[null]}`, `{"code":7,"msg":"no","details":"x"}`, `{"cniVersion":"1.0.0","ips":[{"interface":-1}]}`, ``, `null`,
	} {
		f.Add([]byte(s), []byte("plugin says"))
	}
	cause := errors.New("exit status 1")
	f.Fuzz(func(t *testing.T, stdout, stderr []byte) {
		if err := said(cause, stdout, stderr); err == nil {
			t.Error("a plugin that failed said nothing")
		}
		if checkResult(stdout) != nil {
			return
		}
		r, err := create.CreateFromBytes(stdout)
		if err != nil {
			return
		}
		res, err := toResult(r, Interface)
		if err != nil {
			return
		}
		if len(res.IPs) == 0 || !json.Valid(res.Raw) {
			t.Errorf("result %+v", res)
		}
		for _, ip := range res.IPs {
			if !ip.IsValid() || ip.Is4In6() {
				t.Errorf("address %v", ip)
			}
		}
	})
}

// FuzzCached holds that a cached result which is taken can be handed to DEL.
func FuzzCached(f *testing.F) {
	f.Add([]byte(`{"kind":"cniCacheV1","containerId":"c","config":"e30=","ifName":"eth0","networkName":"n","netns":"/n","cniArgs":[["a","b"]],"capabilityArgs":{"dns":{}}}`))
	f.Add([]byte(`{"kind":"cniCacheV1","containerId":"c","config":"bnVsbA==","capabilityArgs":{"dns":null}}`))
	f.Add([]byte(`{}`))
	file := filepath.Join(f.TempDir(), "r")
	f.Fuzz(func(t *testing.T, text []byte) {
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		a, err := readCached(file)
		if err != nil {
			return
		}
		if a.ContainerID == "" || len(a.Config) == 0 {
			t.Errorf("attachment %+v", a)
		}
		a.Within(a.ContainerID, "/run")
		if _, err := a.list(); err == nil {
			a.runtimeConf("")
		}
		_, _ = json.Marshal(a) // a configuration that is no JSON cannot be kept, and is not
	})
}

// TestNullResult holds that a plugin whose result would make libcni follow a nil
// pointer has failed.
func TestNullResult(t *testing.T) {
	plugin := filepath.Join(t.TempDir(), "plugin")
	put(t, plugin, "#!/bin/sh\necho '{\"cniVersion\":\"1.0.0\",\"ips\":[null]}'\n", 0o755)
	var failed *PluginError
	if _, err := (&runner{}).ExecPlugin(t.Context(), plugin, nil, []string{"CNI_COMMAND=ADD"}); !errors.As(err, &failed) {
		t.Errorf("got %v", err)
	}
}
