package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// written is what an archive had.
type written struct {
	entries int
	content int64
}

// writeFiles makes the files of an archive below dir with as few calls as there can
// be: modes and times as they are, owners those of this process.
func writeFiles(dir string, archive []byte) (written, error) {
	var w written
	unix.Umask(0)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return w, err
	}
	in := bytes.NewReader(archive)
	for r := tar.NewReader(in); ; w.entries++ {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return w, nil
		}
		if err != nil {
			return w, err
		}
		// The content follows its header and is read from where it lies.
		begin := int64(len(archive)) - int64(in.Len())
		content := archive[begin : begin+h.Size]
		w.content += h.Size
		err = writeEntry(dir, h, content)
		if errors.Is(err, unix.ENOENT) {
			// A parent is only implied.
			err = os.MkdirAll(filepath.Dir(filepath.Join(dir, h.Name)), 0o755)
			if err == nil {
				err = writeEntry(dir, h, content)
			}
		}
		if err != nil {
			return w, fmt.Errorf("write %s: %w", h.Name, err)
		}
	}
}

func writeEntry(dir string, h *tar.Header, content []byte) error {
	path, mode := filepath.Join(dir, h.Name), uint32(h.Mode&0o7777)
	switch h.Typeflag {
	case tar.TypeDir:
		if err := unix.Mkdir(path, mode); !errors.Is(err, unix.EEXIST) {
			return err
		}
		return nil
	case tar.TypeSymlink:
		return unix.Symlink(h.Linkname, path)
	case tar.TypeLink:
		return unix.Link(filepath.Join(dir, h.Linkname), path)
	case tar.TypeReg:
		return writeFile(path, mode, h.ModTime, content)
	}
	return fmt.Errorf("an entry of type %q is not measured", h.Typeflag)
}

func writeFile(path string, mode uint32, mtime time.Time, content []byte) error {
	fd, err := unix.Open(path, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, mode)
	if err != nil {
		return err
	}
	for err == nil && len(content) > 0 {
		var n int
		n, err = unix.Write(fd, content[:min(len(content), bufferSize)])
		content = content[n:]
	}
	err = errors.Join(err, unix.Close(fd))
	if err == nil {
		t := unix.NsecToTimespec(mtime.UnixNano())
		err = unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{t, t}, 0)
	}
	return err
}

// syncFS brings what was written to the file system of a directory to its disk.
func syncFS(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
}

// writeThrough is how many seconds it takes to write so many bytes to a new file and to
// sync its file system, where the kernel writes back meanwhile.
func writeThrough(path string, size int64) (float64, error) {
	unix.Sync()
	buf := bytes.Repeat([]byte("gantry"), 1<<20/6)
	begin := time.Now()
	f, err := os.Create(path)
	if err != nil {
		return 0, err
	}
	for at := int64(0); err == nil && at < size; {
		var n int
		n, err = f.Write(buf[:min(int64(len(buf)), size-at)])
		if err == nil {
			err = unix.SyncFileRange(int(f.Fd()), at, int64(n), unix.SYNC_FILE_RANGE_WRITE)
		}
		at += int64(n)
	}
	if err == nil {
		err = unix.Syncfs(int(f.Fd()))
	}
	took := time.Since(begin).Seconds()
	return took, errors.Join(err, f.Close())
}
