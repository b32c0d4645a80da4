package network

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

func put(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}

const plain = `{"cniVersion":"1.0.0","name":"plain","plugins":[{"type":"alpha","ipam":{"type":"ipam-a"}},{"type":"beta","capabilities":{"portMappings":true,"bandwidth":true,"dns":false}}]}`

func TestStatus(t *testing.T) {
	for _, tt := range []struct {
		name    string
		files   map[string]string
		plugins []string
		want    string // empty: ready; CONF and BIN stand for the directories
		network string
	}{
		{name: "no directory", want: "no CNI configuration: directory CONF does not exist"},
		{
			name: "nothing of interest", files: map[string]string{"README": "", "a.conflist.bak": plain, "d.conflist/x": ""},
			want: "no CNI configuration: no *.conflist, *.conf or *.json file in CONF",
		},
		{name: "ready", files: map[string]string{"10-a.conflist": plain}, plugins: []string{"alpha", "beta", "ipam-a"}, network: "plain"},
		{
			name: "missing plugins", files: map[string]string{"10-a.conflist": plain}, plugins: []string{"alpha"},
			want: "CNI configuration CONF/10-a.conflist: plugin ipam-a, beta not found in BIN",
		},
		{
			name: "first wins", files: map[string]string{"20-b.conflist": plain, "10-a.conf": `{"cniVersion":"0.4.0","name":"one","type":"alpha"}`},
			plugins: []string{"alpha"}, network: "one",
		},
		{name: "json", files: map[string]string{"10-a.json": `{"cniVersion":"0.3.1","name":"j","type":"alpha"}`}, plugins: []string{"alpha"}, network: "j"},
		{
			name: "a broken first one", files: map[string]string{"10-a.conflist": `{"name":`, "20-b.conflist": plain},
			want: "CNI configuration CONF/10-a.conflist: error parsing configuration list: unexpected end of JSON input",
		},
		{name: "no type", files: map[string]string{"a.conf": `{"name":"x"}`}, want: "CNI configuration CONF/a.conf: error parsing configuration: missing 'type'"},
		{name: "no name", files: map[string]string{"a.conf": `{"type":"x"}`}, want: "CNI configuration CONF/a.conf: no name"},
		{
			name: "no plugins", files: map[string]string{"a.conflist": `{"cniVersion":"1.0.0","name":"x","plugins":[]}`},
			want: "CNI configuration CONF/a.conflist: error parsing configuration list: no plugins in list",
		},
		{
			name: "version of the future", files: map[string]string{"a.conflist": `{"cniVersion":"9.0.0","name":"x","plugins":[{"type":"alpha"}]}`},
			want: `CNI configuration CONF/a.conflist: cniVersion "9.0.0" is not supported, the newest is 1.1.0`,
		},
		{
			name: "plugin by path", files: map[string]string{"a.conf": `{"cniVersion":"1.0.0","name":"x","type":"../alpha"}`}, plugins: []string{"alpha"},
			want: "CNI configuration CONF/a.conf: plugin ../alpha not found in BIN",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			conf, bin := filepath.Join(dir, "net.d"), filepath.Join(dir, "bin")
			for name, content := range tt.files {
				put(t, filepath.Join(conf, name), content, 0o644)
			}
			put(t, filepath.Join(bin, "beta-not-executable"), "", 0o644)
			for _, p := range tt.plugins {
				put(t, filepath.Join(bin, p), "", 0o755)
			}
			n := New(Config{ConfDir: conf, BinDirs: []string{bin}})
			want := strings.NewReplacer("CONF", conf, "BIN", bin).Replace(tt.want)
			err := n.Status()
			if want == "" {
				c, lerr := n.Load()
				if err != nil || lerr != nil || c.Name != tt.network {
					t.Errorf("%v, %v, network %q, want %q", err, lerr, c.Name, tt.network)
				}
				return
			}
			if err == nil || err.Error() != want {
				t.Errorf("got  %v\nwant %s", err, want)
			}
		})
	}
}

// Where nothing else is said, plugins are where distributions and add-ons put them.
func TestDefaultDirectories(t *testing.T) {
	if n := New(Config{}); n.confDir != "/etc/cni/net.d" {
		t.Errorf("configurations are looked for in %s", n.confDir)
	}
	dir := t.TempDir()
	put(t, filepath.Join(dir, "a.conf"), `{"cniVersion":"1.0.0","name":"n","type":"no-such-plugin"}`, 0o644)
	err := New(Config{ConfDir: dir}).Status()
	if err == nil || !strings.HasSuffix(err.Error(), "plugin no-such-plugin not found in /usr/lib/cni, /opt/cni/bin") {
		t.Errorf("%v", err)
	}
}

// A configuration that appears, changes in place or goes is seen at the next use.
func TestStatusFollows(t *testing.T) {
	dir := t.TempDir()
	n := New(Config{ConfDir: filepath.Join(dir, "net.d"), BinDirs: []string{dir}, CacheDir: "/c"})
	if n.Status() == nil {
		t.Error("ready without a directory")
	}
	put(t, filepath.Join(dir, "alpha"), "", 0o755)
	for _, name := range []string{"one", "two"} {
		put(t, filepath.Join(dir, "net.d/a.conf"), `{"cniVersion":"1.0.0","name":"`+name+`","type":"alpha"}`, 0o644)
		if c, err := n.Load(); err != nil || c.Name != name || n.Status() != nil {
			t.Errorf("%q, %v, want %q", c.Name, err, name)
		}
	}
	if err := os.Remove(filepath.Join(dir, "net.d/a.conf")); err != nil {
		t.Fatal(err)
	}
	_, err := n.Plan(Request{ContainerID: "c", NetNS: "/n"})
	if !errors.Is(err, ErrNotReady) || !strings.HasPrefix(err.Error(), "network is not ready: no CNI configuration: ") {
		t.Errorf("%v", err)
	}
}

// Plugins in files of their own become part of the stored list.
func TestLoadInlines(t *testing.T) {
	dir := t.TempDir()
	put(t, filepath.Join(dir, "a.conflist"), `{"cniVersion":"1.1.0","name":"split","plugins":[{"type":"alpha"}]}`, 0o644)
	put(t, filepath.Join(dir, "split/50-b.conf"), `{"type":"beta","x":1}`, 0o644)
	c, err := New(Config{ConfDir: dir}).Load()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(c.Plugins, []string{"alpha", "beta"}) {
		t.Errorf("plugins %q", c.Plugins)
	}
	list, err := Attachment{Config: c.List}.list()
	if err != nil || len(list.Plugins) != 2 || string(list.Plugins[1].Bytes) != `{"type":"beta","x":1}` {
		t.Errorf("stored %s, %v", c.List, err)
	}
}

// throughJSON is an attachment as DEL gets it: written down and read, by another process perhaps.
func throughJSON(t *testing.T, a Attachment) Attachment {
	t.Helper()
	b, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	var back Attachment
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	if again, err := json.Marshal(back); err != nil || string(again) != string(b) {
		t.Errorf("JSON form changes:\n%s\n%s", b, again)
	}
	return back
}

func TestPlan(t *testing.T) {
	dir := t.TempDir()
	put(t, filepath.Join(dir, "a.conflist"), plain, 0o644)
	n := New(Config{ConfDir: dir, BinDirs: []string{"/b1", "/b2"}, CacheDir: "/cache"})
	base := Request{ContainerID: "c0ffee", NetNS: "/run/ns/net", PodNamespace: "default", PodName: "web", PodUID: "u-1"}
	for _, tt := range []struct {
		name   string
		change func(*Request)
		caps   map[string]string
		bad    string
	}{
		{name: "bare", change: func(*Request) {}},
		{name: "declared ports alone", change: func(r *Request) { r.Ports = []Port{{ContainerPort: 80}} }},
		{name: "host ports", change: func(r *Request) {
			r.Ports = []Port{{HostPort: 8080, ContainerPort: 80, Protocol: "TCP"}, {ContainerPort: 81}, {HostPort: 53, ContainerPort: 53, Protocol: "UDP", HostIP: "10.0.0.1"}}
		}, caps: map[string]string{"portMappings": `[{"hostPort":8080,"containerPort":80,"protocol":"tcp"},{"hostPort":53,"containerPort":53,"protocol":"udp","hostIP":"10.0.0.1"}]`}},
		{name: "protocol", change: func(r *Request) { r.Ports = []Port{{HostPort: 1, ContainerPort: 1, Protocol: "ip"}} }, bad: `protocol "ip"`},
		{name: "range", change: func(r *Request) { r.Ports = []Port{{HostPort: 70000, ContainerPort: 1}} }, bad: "out of range"},
		{
			name: "bandwidth", change: func(r *Request) { r.Annotations = map[string]string{ingressAnnotation: "10M", "x": "y"} },
			caps: map[string]string{"bandwidth": `{"ingressRate":10000000,"ingressBurst":4294967295}`},
		},
		{name: "bandwidth that is none", change: func(r *Request) { r.Annotations = map[string]string{egressAnnotation: "fast"} }, bad: `"fast" is not a quantity`},
		{name: "dns is nobody's", change: func(r *Request) { r.DNS = &DNS{Servers: []string{"1.1.1.1"}} }},
		{name: "args", change: func(r *Request) { r.PodName = "a;b" }, bad: "K8S_POD_NAME"},
		{name: "no id", change: func(r *Request) { r.ContainerID = "" }, bad: "are needed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := base
			tt.change(&r)
			a, err := n.Plan(r)
			if tt.bad != "" {
				if !errors.Is(err, errdefs.ErrInvalid) || !strings.Contains(err.Error(), tt.bad) {
					t.Errorf("%v, want %q", err, tt.bad)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			back := throughJSON(t, a)
			if len(back.Capabilities) != len(tt.caps) || back.Unmet != nil {
				t.Errorf("capabilities %v, unmet %v", back.Capabilities, back.Unmet)
			}
			for name, want := range tt.caps {
				if got := string(back.Capabilities[name]); got != want {
					t.Errorf("%s: %s, want %s", name, got, want)
				}
			}
			want := [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "default"}, {"K8S_POD_NAME", "web"}, {"K8S_POD_INFRA_CONTAINER_ID", "c0ffee"}, {"K8S_POD_UID", "u-1"}}
			if !slices.Equal(back.Args, want) || back.IfName != "eth0" || back.Network != "plain" || back.NetNS != r.NetNS {
				t.Errorf("%+v", back)
			}
		})
	}
}

func TestPlanUnmet(t *testing.T) {
	dir := t.TempDir()
	put(t, filepath.Join(dir, "a.conflist"), `{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"alpha"}]}`, 0o644)
	a, err := New(Config{ConfDir: dir, CacheDir: "/c"}).Plan(Request{ContainerID: "c", NetNS: "/n", Ports: []Port{{HostPort: 80, ContainerPort: 80}}})
	if err != nil || !slices.Equal(a.Unmet, []string{"portMappings"}) || a.Capabilities != nil {
		t.Errorf("%v, %v", a.Unmet, err)
	}
}

func TestRate(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want uint64
		bad  bool
	}{
		{in: "1000", want: 1000},
		{in: "10M", want: 10_000_000},
		{in: "1.5Gi", want: 1610612736},
		{in: "1k", want: 1000},
		{in: "1e6", want: 1_000_000},
		{in: "1E6", want: 1_000_000},
		{in: ".5M", want: 500_000},
		{in: "1P", want: 1e15},
		{in: "1000500m", want: 1001},
		{in: "+2k", want: 2000},
		{in: "2.k", want: 2000},
		{in: "999", bad: true},
		{in: "1E", bad: true},
		{in: "1001T", bad: true},
		{in: "-1M", bad: true},
		{in: "", bad: true},
		{in: ".", bad: true},
		{in: "1 M", bad: true},
		{in: "1K", bad: true},
		{in: "NaN", bad: true},
		{in: "1e99", bad: true},
	} {
		t.Run(tt.in, func(t *testing.T) {
			got, err := rate(tt.in)
			if tt.bad != errors.Is(err, errdefs.ErrInvalid) || (!tt.bad && (err != nil || got != tt.want)) {
				t.Errorf("%d, %v", got, err)
			}
		})
	}
}

func FuzzRate(f *testing.F) {
	for _, s := range []string{"10M", "1.5Gi", "1e6", ".", "1E", "0.0000001P"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := rate(s); err == nil && (n < 1000 || n > 1e15) {
			t.Errorf("%q: %d", s, n)
		}
	})
}
