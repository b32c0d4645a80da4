package doctor

import (
	"maps"
	"strings"
	"testing"
)

// FuzzOwner holds that no command line, mount or group's name, all of which a
// container may choose, belongs to a pod but by a path of our own directories.
func FuzzOwner(f *testing.F) {
	const u = "11111111-1111-4111-8111-111111111111"
	d := newDoctor(f)
	for _, s := range []string{
		"conmon\x00-b\x00" + d.pods.RunDir() + "/" + u + "/apps/a", d.dir + "/" + u, u, u + "/x",
		"gantry-11111111111141118111111111111111.slice", strings.Repeat("1", 64), "gantry-monitor-" + strings.Repeat("1", 64) + ".scope",
		"gantry-" + strings.Repeat("1", 64) + ".scope", "",
	} {
		f.Add(s)
	}
	names := maps.Clone(groupNames())
	names["/kubepods/pod1"] = containerName()
	f.Fuzz(func(t *testing.T, s string) {
		if u := d.ownerOf(s); u != "" && (len(u) != 36 || !strings.Contains(s, d.dir+"/"+string(u)) && !strings.Contains(s, d.pods.RunDir()+"/"+string(u))) {
			t.Errorf("%q is of pod %q", s, u)
		}
		for parent, name := range names {
			if found, ok := groupOf(parent, s, name); ok && (found.Name != parent+"/"+s || len(found.Pod) != 36 || !strings.Contains(strings.ReplaceAll(s, "-", ""), found.Pod.Hex())) {
				t.Errorf("%q is %+v", s, found)
			}
		}
		if u := fromHex(s); u != "" && u.Hex() != s[:32] {
			t.Errorf("%q is of pod %q", s, u)
		}
	})
}
