package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// insecure are rkt's insecure options: whether this version can do without what they
// switch off. No signature is verified yet, so image changes nothing; ondisk changes
// nothing in rkt either.
var insecure = map[string]bool{
	"none": true, "image": true, "ondisk": true,
	"tls": false, "http": false, "pubkey": false, "capabilities": false, "paths": false, "seccomp": false,
	"all-fetch": false, "all-run": false, "all": false,
}

func registerInsecure(flags *pflag.FlagSet) {
	flags.Func("insecure-options", "comma `LIST` of what to do without: image, signatures of images, which are not verified yet in any case", checkInsecure)
}

// checkInsecure refuses what is no option, and those that this version does not have.
func checkInsecure(list string) error {
	var seen []string
	for word := range strings.SplitSeq(strings.ToLower(list), ",") {
		can, known := insecure[word]
		switch {
		case !known:
			return fmt.Errorf("unknown option %q: %w", word, errdefs.ErrInvalid)
		case slices.Contains(seen, word):
			return fmt.Errorf("duplicated option %q: %w", word, errdefs.ErrInvalid)
		case !can:
			return fmt.Errorf("option %q: %w", word, errdefs.ErrUnsupported)
		}
		seen = append(seen, word)
	}
	return nil
}
