package fetch

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// ACI is the file of an appc image, opened. It is closed after use.
type ACI struct {
	*os.File
	// Info is what stat said of it.
	Info fs.FileInfo
}

// OpenACI opens the file of an appc image. It returns ErrNotFound where there is
// none, and ErrInvalid for what is no ordinary file.
func OpenACI(name string) (*ACI, error) {
	// Whoever gives us a pipe shall not wait for ever.
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, classed(err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a file: %w", name, errdefs.ErrInvalid)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &ACI{File: f, Info: info}, nil
}
