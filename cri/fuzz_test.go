package cri

import (
	"errors"
	"strconv"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// FuzzCredentials holds that what a pull brings is a credential or invalid, goes to the
// host that it is for alone, and is never quoted.
func FuzzCredentials(f *testing.F) {
	for _, auth := range []string{"", "bWU6c2VjcmV0", "bWU=", "!", "Og==", "bWU6AAAA"} {
		f.Add(auth, "", "", "https://quay.test/v1", "quay.test")
		f.Add(auth, "me", "secret", "", "other.test")
	}
	f.Fuzz(func(t *testing.T, auth, user, password, address, host string) {
		source, err := credentials(&runtimeapi.AuthConfig{Auth: auth, Username: user, Password: password, ServerAddress: address})
		if err != nil {
			if !errors.Is(err, errdefs.ErrInvalid) || len(auth) > 12 && strings.Contains(err.Error(), auth) {
				t.Errorf("%q: %v", auth, err)
			}
			return
		}
		if source == nil {
			return
		}
		c, err := source(t.Context(), host)
		if err != nil || !c.Anonymous() && c.Origin == "" {
			t.Errorf("%v, %v", c, err)
		}
		if strings.Contains(address, "a.test") && host == "b.test" && !c.Anonymous() {
			t.Errorf("credentials of %q for %q", address, host)
		}
	})
}

// FuzzUser holds that a user of an image is a number or a name.
func FuzzUser(f *testing.F) {
	for _, s := range []string{"", "0", "1000:1000", "root", "-1", ":0", "0x0", "99999999999999999999", "+5"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u := userOf(ocispec.Image{Config: ocispec.ImageConfig{User: s}})
		if u.uid != nil && (u.name != "" || !strings.Contains(s, strings.TrimLeft(strconv.FormatInt(u.uid.GetValue(), 10), "-"))) {
			t.Errorf("%q is %v and %q", s, u.uid, u.name)
		}
	})
}

// FuzzResources holds that resources that are kept are read as the same again.
func FuzzResources(f *testing.F) {
	for _, s := range []string{`{"cpuShares":"2","memoryLimitInBytes":"4096","hugepageLimits":[{"pageSize":"2MB","limit":"1"}],"unified":{"a":"b"}}`, `null`, `{"x":1}`, `{"cpuShares":1e3}`, `{"unified":{"\ud800":""}}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var r, again resources
		if r.UnmarshalJSON(text) != nil {
			return
		}
		first, err := r.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		if err := again.UnmarshalJSON(first); err != nil || r.String() != again.String() {
			t.Errorf("%v, then %v, %v", r, again.String(), err)
		}
	})
}
