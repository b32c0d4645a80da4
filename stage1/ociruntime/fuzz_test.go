package ociruntime

import (
	"bytes"
	"testing"
	"unicode/utf8"
)

// FuzzReason holds that what a runtime writes to its log becomes a short text that
// may stand in a message of gRPC, and the same each time.
func FuzzReason(f *testing.F) {
	for _, s := range []string{
		`{"level":"error","msg":"no such file","time":"x"}` + "\n", "plain\nlines\n", `{"msg":"x"}`, "{", "", "\xff\xfe", `{"level":"error","msg":"\ud800"}`, `{"level":"fatal","msg":" "}`, "null\n[]\n1",
	} {
		f.Add([]byte(s))
	}
	f.Add(bytes.Repeat([]byte("a\xff"), maxReason)) // each becomes a character of three bytes
	f.Add(bytes.Repeat([]byte("ä"), maxReason))
	f.Fuzz(func(t *testing.T, log []byte) {
		r := Reason(log)
		if len(r) > maxReason+len("…") || !utf8.ValidString(r) {
			t.Errorf("%d bytes: %q", len(r), r)
		}
		if len(log) == 0 && r != "" {
			t.Errorf("of nothing %q", r)
		}
	})
}
