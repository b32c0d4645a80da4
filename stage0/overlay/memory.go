package overlay

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/gantry-cri/gantry/stage0/durable"
)

// memory is a site's file of trials that worked: a line each, which begins with the boot.
// What two processes add at once may be lost, and then is tried again.
type memory struct {
	path, boot string
	lines      []string // of this boot
}

func (s Site) memory() (memory, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return memory{}, fmt.Errorf("read boot id: %w", err)
	}
	m := memory{path: s.Known, boot: fmt.Sprintf("boot %s ", bytes.TrimSpace(boot))}
	text, err := os.ReadFile(s.Known)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return memory{}, fmt.Errorf("read what trials found: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, m.boot) {
			m.lines = append(m.lines, line)
		}
	}
	return m, nil
}

func (m memory) line(trial string) string { return m.boot + trial + "\n" }

func (m memory) has(trial string) bool { return slices.Contains(m.lines, m.line(trial)) }

// add remembers trials that worked.
func (m memory) add(trials ...string) error {
	lines := slices.Clone(m.lines)
	for _, t := range trials {
		lines = append(lines, m.line(t))
	}
	return durable.WriteFile(m.path, []byte(strings.Join(lines, "")), 0o600, durable.Kill)
}
