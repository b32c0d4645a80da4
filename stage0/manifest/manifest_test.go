package manifest

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/appc/spec/schema/types"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

func TestMain(m *testing.M) {
	RegisterIsolators()
	os.Exit(m.Run())
}

func TestIDs(t *testing.T) {
	u, err := NewUUID()
	if err != nil {
		t.Fatal(err)
	}
	id := u.ID(Request{0xab, 0xcd})
	if len(id) != 64 || !strings.HasPrefix(string(id), u.Hex()+"abcd00") {
		t.Errorf("id of %s is %s", u, id)
	}
	if back, err := id.UUID(); err != nil || back != u {
		t.Errorf("UUID of %s is %s, %v", id, back, err)
	}
	if same, err := ParseUUID(string(u)); err != nil || same != u {
		t.Errorf("parsed %q, %v", same, err)
	}
	for _, bad := range []string{"", "x", strings.ToUpper(string(u)), u.Hex(), "{" + string(u) + "}"} {
		if _, err := ParseUUID(bad); !errors.Is(err, errdefs.ErrInvalid) {
			t.Errorf("ParseUUID(%q): %v", bad, err)
		}
	}
	for _, bad := range []ID{"", "abc", ID(strings.Repeat("z", 64))} {
		if _, err := bad.UUID(); !errors.Is(err, errdefs.ErrInvalid) {
			t.Errorf("%q.UUID(): %v", bad, err)
		}
	}
}

// decodable is a manifest with one app and the given isolators.
func decodable(isolators string) []byte {
	return []byte(`{"acKind":"PodManifest","acVersion":"0.8.11","apps":[{"name":"a","image":{"id":"sha512-00"},"app":{"exec":["/a"],"user":"0","group":"0","isolators":` + isolators + `}}]}`)
}

func TestDecode(t *testing.T) {
	for _, tc := range []struct {
		name, isolators string
		class           error
	}{
		{"none", `[]`, nil},
		{"ours", `[{"name":"gantry/cri","value":{"apiVersion":"v1","container":{}}}]`, nil},
		{"null", `[{"name":"gantry/cri","value":null}]`, errdefs.ErrInvalid},
		{"missing", `[{"name":"os/linux/oom-score-adj"}]`, errdefs.ErrInvalid},
		{"without a version", `[{"name":"gantry/cri","value":{}}]`, errdefs.ErrInvalid},
		{"unknown", `[{"name":"example.com/magic","value":1}]`, errdefs.ErrInvalid},
		{"twice", `[{"name":"resource/cpu","value":{"limit":"1"}}],"isolators":[{"name":"resource/cpu"}]`, errdefs.ErrInvalid},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Decode(decodable(tc.isolators))
			if !errors.Is(err, tc.class) || (tc.class == nil) != (err == nil) {
				t.Errorf("got %v, want %v", err, tc.class)
			}
		})
	}
	if _, err := Decode([]byte(`{"acKind":"PodManifest","acVersion":"0.8.11","apps":[],"isolators":[{"name":"example.com/magic","value":1}]}`)); !errors.Is(err, errdefs.ErrUnsupported) {
		t.Errorf("unknown isolator of a pod: %v", err)
	}
	if _, err := Decode([]byte(`{"acKind":"PodManifest","acVersion":"0.8.11","apps":[{"name":"a","image":{"id":"sha512-00"}}]}`)); !errors.Is(err, errdefs.ErrInvalid) {
		t.Errorf("app without an app section: %v", err)
	}
}

func TestIsolatorSurvives(t *testing.T) {
	i, err := Isolator(CRIName, CRI{APIVersion: CRIVersion, RuntimeHandler: "h", Container: json.RawMessage(`{"tty":true}`)})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal([]any{i})
	if err != nil {
		t.Fatal(err)
	}
	pm, err := Decode(decodable(string(raw)))
	if err != nil {
		t.Fatal(err)
	}
	c, ok := CRIOf(pm.Apps[0].App.Isolators)
	if !ok || c.RuntimeHandler != "h" || string(c.Container) != `{"tty":true}` || c.APIVersion != CRIVersion {
		t.Errorf("came back as %+v, %t", c, ok)
	}
}

func TestUserNamespace(t *testing.T) {
	const pod = `{"acKind":"PodManifest","acVersion":"0.8.11","apps":[],"isolators":[{"name":"gantry/user-namespace","value":%s}]}`
	pm, err := Decode(fmt.Appendf(nil, pod, `{"uids":[{"containerID":0,"hostID":100000,"size":65536}],"gids":[{"containerID":0,"hostID":200000,"size":10}]}`))
	if err != nil {
		t.Fatal(err)
	}
	ids := UserNamespaceOf(pm.Isolators)
	if ids == nil || ids.UIDs[0].HostID != 100000 || ids.GIDs[0].Size != 10 {
		t.Errorf("ids %+v", ids)
	}
	again, err := Isolator(UserNamespaceName, UserNamespace{IDs: *ids})
	if err != nil || !reflect.DeepEqual(UserNamespaceOf(types.Isolators{again}), ids) {
		t.Errorf("came back as %+v, %v", again, err)
	}
	if ids := UserNamespaceOf(nil); ids != nil {
		t.Errorf("a pod without one has %+v", ids)
	}
	for _, value := range []string{`{}`, `{"uids":[{"hostID":5,"size":1}]}`, `[]`, `{"uids":[{"hostID":-1,"size":1}]}`} {
		if _, err := Decode(fmt.Appendf(nil, pod, value)); !errors.Is(err, errdefs.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", value, err)
		}
	}
}
