package cgroup

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

const testID = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestContainerPath(t *testing.T) {
	tests := []struct {
		name   string
		driver Driver
		parent string
		want   Paths
	}{
		{"kubelet", Cgroupfs, "/kubepods/burstable/podabc", Paths{"/kubepods/burstable/podabc/" + testID, "/kubepods/burstable/podabc/" + testID}},
		{"no leading slash", Cgroupfs, "kubepods/podabc/", Paths{"/kubepods/podabc/" + testID, "/kubepods/podabc/" + testID}},
		{"default", Cgroupfs, "", Paths{"/gantry/" + testID, "/gantry/" + testID}},
		{"a path through a slice", Cgroupfs, "/system.slice/box", Paths{"/system.slice/box/" + testID, "/system.slice/box/" + testID}},
		{"kubelet", Systemd, "kubepods-burstable-podabc.slice", Paths{
			"kubepods-burstable-podabc.slice:gantry:" + testID,
			"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podabc.slice/gantry-" + testID + ".scope",
		}},
		{"leading slash", Systemd, "/system.slice", Paths{"system.slice:gantry:" + testID, "/system.slice/gantry-" + testID + ".scope"}},
		{"whole path", Systemd, "/a.slice/a-b.slice", Paths{"a-b.slice:gantry:" + testID, "/a.slice/a-b.slice/gantry-" + testID + ".scope"}},
		{"default", Systemd, "", Paths{"gantry.slice:gantry:" + testID, "/gantry.slice/gantry-" + testID + ".scope"}},
		{"root slice", Systemd, "-.slice", Paths{"-.slice:gantry:" + testID, "/gantry-" + testID + ".scope"}},
	}
	for _, tt := range tests {
		t.Run(string(tt.driver)+" "+tt.name, func(t *testing.T) {
			got, err := ContainerPath(tt.driver, tt.parent, testID)
			if err != nil {
				t.Fatal(err)
			}
			if got != tt.want {
				t.Fatalf("got  %+v\nwant %+v", got, tt.want)
			}
		})
	}
}

func TestContainerPathRefused(t *testing.T) {
	tests := []struct {
		name       string
		driver     Driver
		parent, id string
	}{
		{"a slice", Cgroupfs, "kubepods-burstable-podabc.slice", testID},
		{"a slice with a slash", Cgroupfs, "/kubepods.slice", testID},
		{"upwards", Cgroupfs, "/a/../../b", testID},
		{"a path", Systemd, "/kubepods/burstable/podabc", testID},
		{"a scope", Systemd, "a.scope", testID},
		{"a wrong path", Systemd, "/x.slice/a-b.slice", testID},
		{"empty levels", Systemd, "a--b.slice", testID},
		{"a leading dash", Systemd, "-a.slice", testID},
		{"unknown driver", "none", "/a", testID},
		{"no id", Cgroupfs, "/a", ""},
		{"an id with a slash", Cgroupfs, "/a", "b/c"},
	}
	for _, tt := range tests {
		t.Run(string(tt.driver)+" "+tt.name, func(t *testing.T) {
			_, err := ContainerPath(tt.driver, tt.parent, tt.id)
			if !errors.Is(err, errdefs.ErrInvalid) {
				t.Fatalf("got %v", err)
			}
			if tt.id == testID && tt.driver != "none" {
				for _, part := range []string{tt.parent, string(tt.driver)} {
					if !strings.Contains(err.Error(), part) {
						t.Errorf("%q is not in %q", part, err)
					}
				}
			}
		})
	}
}

func TestParse(t *testing.T) {
	tests := []struct {
		name, in string
		mode     Mode
		mounts   []string
		err      error
	}{
		{
			name: "v2", in: "30 22 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n",
			mode: V2, mounts: []string{"/sys/fs/cgroup"},
		},
		{
			name: "v1 with cpu and cpuacct together, and a second view",
			in: "31 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n" +
				"32 30 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n" +
				"39 30 0:36 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n" +
				"50 30 0:29 /a /mnt/memory rw - cgroup cgroup rw,memory\n",
			mode: V1, mounts: []string{"/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/systemd"},
		},
		{
			name: "hybrid with separate cpu and cpuacct",
			in: "31 30 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n" +
				"32 30 0:29 / /sys/fs/cgroup/cpuacct rw - cgroup cgroup rw,cpuacct\n" +
				"40 30 0:37 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
			mode: Hybrid, mounts: []string{"/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpuacct", "/sys/fs/cgroup/unified"},
		},
		{name: "none", in: "30 22 0:26 / /proc rw - proc proc rw\n", err: errdefs.ErrUnsupported},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h, err := parse(strings.NewReader(tt.in))
			if !errors.Is(err, tt.err) {
				t.Fatalf("error %v", err)
			}
			if err != nil {
				return
			}
			if h.Mode() != tt.mode || !slices.Equal(h.mounts(), tt.mounts) {
				t.Fatalf("got %s %v", h.Mode(), h.mounts())
			}
		})
	}
}

func TestScopeProperties(t *testing.T) {
	got := map[string]string{}
	for _, p := range scopeProperties("gantry-monitor-x.scope", 42) {
		got[p.Name] = p.Value.String()
	}
	want := map[string]string{
		"Description": `"gantry container monitor gantry-monitor-x.scope"`, "Slice": `"system.slice"`,
		"PIDs": "@au [42]", "DefaultDependencies": "false", "CollectMode": `"inactive-or-failed"`,
	}
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%s: got %s, want %s", k, got[k], v)
		}
	}
}

func TestMonitorSystemdPath(t *testing.T) {
	m := (&Hierarchy{}).Monitor(Systemd, testID)
	if want := "/system.slice/gantry-monitor-" + testID + ".scope"; m.Path != want {
		t.Fatalf("got %s", m.Path)
	}
}
