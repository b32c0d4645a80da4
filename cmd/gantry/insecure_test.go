package main

import (
	"errors"
	"testing"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// Acceptance case 36 of rkt-prepare.md.
func TestInsecureOptions(t *testing.T) {
	for list, want := range map[string]error{
		"none": nil, "image": nil, "Image,ondisk": nil,
		"http": errdefs.ErrUnsupported, "image,tls": errdefs.ErrUnsupported, "all": errdefs.ErrUnsupported, "all-run": errdefs.ErrUnsupported,
		"": errdefs.ErrInvalid, "images": errdefs.ErrInvalid, "image,image": errdefs.ErrInvalid, "image,": errdefs.ErrInvalid,
	} {
		if err := checkInsecure(list); !errors.Is(err, want) || (err == nil) != (want == nil) {
			t.Errorf("%q: %v, want %v", list, err, want)
		}
	}
}
