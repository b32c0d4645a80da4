package tree

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// Paths are paths within a tree, of any bytes but NUL. JSON has text alone, so
// there a byte that is not UTF-8 is written as NUL and its two hexadecimal digits.
type Paths []string

// MarshalJSON is part of json.Marshaler.
func (p Paths) MarshalJSON() ([]byte, error) {
	text := make([]string, len(p))
	for i, s := range p {
		text[i] = toText(s)
	}
	return json.Marshal(text)
}

// UnmarshalJSON is part of json.Unmarshaler.
func (p *Paths) UnmarshalJSON(b []byte) error {
	var text []string
	if err := json.Unmarshal(b, &text); err != nil {
		return err
	}
	*p = make(Paths, len(text))
	for i, s := range text {
		var err error
		if (*p)[i], err = fromText(s); err != nil {
			return err
		}
	}
	return nil
}

// Text is a path as Paths write it.
func Text(path string) string { return toText(path) }

func toText(path string) string {
	if utf8.ValidString(path) {
		return path
	}
	var b strings.Builder
	for len(path) > 0 {
		r, n := utf8.DecodeRuneInString(path)
		if r == utf8.RuneError && n == 1 {
			fmt.Fprintf(&b, "\x00%02x", path[0])
		} else {
			b.WriteString(path[:n])
		}
		path = path[n:]
	}
	return b.String()
}

func fromText(text string) (string, error) {
	before, rest, found := strings.Cut(text, "\x00")
	if !found {
		return text, nil
	}
	var b strings.Builder
	for ; found; before, rest, found = strings.Cut(rest, "\x00") {
		b.WriteString(before)
		if len(rest) < 2 {
			return "", fmt.Errorf("path %q: %w", text, errdefs.ErrInvalid)
		}
		raw, err := hex.DecodeString(rest[:2])
		if err != nil {
			return "", fmt.Errorf("path %q: %w: %w", text, errdefs.ErrInvalid, err)
		}
		b.Write(raw)
		rest = rest[2:]
	}
	b.WriteString(before)
	return b.String(), nil
}
