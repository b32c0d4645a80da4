package images

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// DefaultCache is where downloaded packages are kept, and what else is made
// once, outside the checkout: $GANTRY_CACHE, or ~/.cache/gantry.
func DefaultCache() string {
	if dir := os.Getenv("GANTRY_CACHE"); dir != "" {
		return dir
	}
	return filepath.Join(os.Getenv("HOME"), ".cache", "gantry")
}

// debs returns the files of Debian packages, in the order of names, and
// downloads into the cache those that it does not have.
func debs(ctx context.Context, cache string, names []string) ([]string, error) {
	dir := filepath.Join(cache, "debs")
	missing := slices.DeleteFunc(slices.Clone(names), func(n string) bool { return cachedDeb(dir, n) != "" })
	if len(missing) > 0 {
		if err := download(ctx, dir, missing); err != nil {
			return nil, fmt.Errorf("download packages: %w", err)
		}
	}
	var files []string
	for _, n := range names {
		file := cachedDeb(dir, n)
		if file == "" {
			return nil, fmt.Errorf("package %s was not downloaded", n)
		}
		files = append(files, file)
	}
	return files, nil
}

// cachedDeb is the file of a package in dir, or "".
func cachedDeb(dir, name string) string {
	files, err := filepath.Glob(filepath.Join(dir, name+"_*.deb"))
	if err != nil || len(files) == 0 {
		return ""
	}
	return files[len(files)-1]
}

// download fetches packages by apt into a directory beside dir and moves them
// in whole. Package lists that are missing or too old are brought up to date.
func download(ctx context.Context, dir string, names []string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	work, err := os.MkdirTemp(filepath.Dir(dir), ".debs-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if apt(ctx, work, append([]string{"download"}, names...)...) != nil {
		// A foreign repository may fail here; what counts is the download.
		updateErr := apt(ctx, work, "update")
		if err := apt(ctx, work, append([]string{"download"}, names...)...); err != nil {
			return errors.Join(err, updateErr)
		}
	}
	files, err := filepath.Glob(filepath.Join(work, "*.deb"))
	if err != nil {
		return err
	}
	for _, file := range files {
		if err := os.Rename(file, filepath.Join(dir, filepath.Base(file))); err != nil {
			return err
		}
	}
	return nil
}

func apt(ctx context.Context, dir string, args ...string) error {
	cmd := exec.CommandContext(ctx, "apt-get", append([]string{"-q", "-o", "APT::Sandbox::User=root"}, args...)...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("apt-get %s: %w\n%s", args[0], err, out)
	}
	return nil
}

// debEntries reads the files of a package in archive order, names as dpkg wrote
// them ("./usr/bin/x").
func debEntries(ctx context.Context, deb string) (entries []entry, err error) {
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", deb, err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("open %s: %w", deb, err)
	}
	entries, err = readTar(out)
	_, drainErr := io.Copy(io.Discard, out)
	if err := errors.Join(err, drainErr, cmd.Wait()); err != nil {
		return nil, fmt.Errorf("read %s: %w", deb, err)
	}
	return entries, nil
}

// readTar reads an archive into memory.
func readTar(r io.Reader) ([]entry, error) {
	var entries []entry
	archive := tar.NewReader(r)
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return entries, nil
		}
		if err != nil {
			return nil, err
		}
		data, err := io.ReadAll(archive)
		if err != nil {
			return nil, err
		}
		entries = append(entries, entry{*h, data})
	}
}

// packageEntries reads several packages one after another, without what no
// test looks at (manuals, translations).
func packageEntries(ctx context.Context, cache string, names []string) ([]entry, error) {
	files, err := debs(ctx, cache, names)
	if err != nil {
		return nil, err
	}
	var all []entry
	for _, file := range files {
		entries, err := debEntries(ctx, file)
		if err != nil {
			return nil, err
		}
		all = append(all, slices.DeleteFunc(entries, dispensable)...)
	}
	return all, nil
}

func dispensable(e entry) bool {
	name := path.Clean(e.header.Name)
	for _, dir := range []string{"usr/share/man", "usr/share/locale", "usr/share/info", "usr/share/lintian"} {
		if name == dir || strings.HasPrefix(name, dir+"/") {
			return true
		}
	}
	return false
}

// withoutParents cleans names and leaves out every directory that another
// entry's name implies, as some builders do.
func withoutParents(entries []entry) []entry {
	implied := map[string]bool{".": true}
	for _, e := range entries {
		for dir := path.Dir(path.Clean(e.header.Name)); !implied[dir]; dir = path.Dir(dir) {
			implied[dir] = true
		}
	}
	var kept []entry
	for _, e := range entries {
		e.header.Name = path.Clean(e.header.Name)
		switch e.header.Typeflag {
		case tar.TypeDir:
			if implied[e.header.Name] {
				continue
			}
			e.header.Name += "/"
		case tar.TypeLink:
			e.header.Linkname = path.Clean(e.header.Linkname)
		}
		kept = append(kept, e)
	}
	return kept
}
