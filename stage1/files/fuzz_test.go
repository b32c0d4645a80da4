package files

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzResolvConf holds that the node's file is copied as it is or another is taken,
// and that nothing that was asked for makes more than the words of its line.
func FuzzResolvConf(f *testing.F) {
	for _, s := range []string{"nameserver 127.0.0.53\n", "nameserver ::1\nnameserver 8.8.8.8", "nameserver", "nameserver 127.0.0.1%lo\n", "", "# nameserver 1.1.1.1", strings.Repeat("a", 70000) + "\nnameserver 127.0.0.1\n"} {
		f.Add([]byte(s), "a")
		f.Add([]byte(s), "a b")
		f.Add([]byte(s), "a\u2028nameserver")
	}
	dir := f.TempDir()
	node, out := filepath.Join(dir, "node"), filepath.Join(dir, "out")
	f.Fuzz(func(t *testing.T, text []byte, word string) {
		if err := os.WriteFile(node, text, 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := nodeResolvConf(node, filepath.Join(dir, "none"))
		if err != nil || string(got) != string(text) {
			t.Errorf("%q became %q, %v", text, got, err)
		}
		if err := WriteResolvConf(out, &DNS{Servers: []string{word}, Searches: []string{word}, Options: []string{word}}); err == nil {
			holdsLines(t, out, 3, 6)
		}
		if err := WriteHosts(out, word, []netip.Addr{netip.MustParseAddr("10.0.0.2")}); err == nil && word != "" {
			lines := strings.Split(strings.TrimSpace(read(t, out)), "\n")
			if last := strings.Fields(lines[len(lines)-1]); len(last) != 2 || last[1] != word {
				t.Errorf("host %q became %q", word, last)
			}
		}
	})
}

func holdsLines(t *testing.T, path string, lines, words int) {
	t.Helper()
	text := read(t, path)
	if strings.Count(text, "\n") != lines || len(strings.Fields(text)) != words {
		t.Errorf("it is %q", text)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
