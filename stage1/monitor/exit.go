package monitor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Exit is how a container's first process ended.
type Exit struct {
	// Code is 0 to 255; 128 and the signal's number for a process that was killed.
	Code int32
	// Time is when conmon wrote it, after the last output went to the log.
	Time time.Time
}

// ReadExit reads the file in which conmon leaves the exit code of the container
// id. It returns false as long as there is none; an empty or torn file counts as
// none. conmon makes the file under another name in the same directory first.
func ReadExit(exitDir, id string) (Exit, bool, error) {
	path := filepath.Join(exitDir, id)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Exit{}, false, nil
	}
	if err != nil {
		return Exit{}, false, fmt.Errorf("exit of %s: %w", id, err)
	}
	defer f.Close() //nolint:errcheck // read only
	buf := make([]byte, 32)
	n, _ := f.Read(buf) // an empty file is io.EOF
	code, err := strconv.ParseInt(strings.TrimSpace(string(buf[:n])), 10, 32)
	if err != nil || n == len(buf) { // what may go on is no code
		return Exit{}, false, nil //nolint:nilerr // torn: not yet
	}
	info, err := f.Stat()
	if err != nil {
		return Exit{}, false, fmt.Errorf("exit of %s: %w", id, err)
	}
	return Exit{Code: int32(code), Time: info.ModTime()}, true, nil
}

// SawOOM says whether conmon saw the kernel kill a process of the container for
// want of memory: it leaves a file "oom" in its working directory, the bundle.
func SawOOM(bundle string) bool {
	_, err := os.Lstat(filepath.Join(bundle, "oom"))
	return err == nil
}
