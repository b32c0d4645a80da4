package credential

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// RktDirs are where rkt looks for its configuration: the vendor's, which the
// administrator's overrides.
func RktDirs() []string { return []string{"/usr/lib/rkt", "/etc/rkt"} }

const (
	rktVersion = "v1"
	rktDocker  = "dockerAuth" // credentials of registries
	rktDomains = "auth"       // of servers of ACIs, which registries are not
)

// rktFile is a file of auth.d, of rktDocker's kind.
type rktFile struct {
	Kind        string   `json:"rktKind"`
	Version     string   `json:"rktVersion"`
	Registries  []string `json:"registries"`
	Credentials struct {
		User     string `json:"user"`
		Password string `json:"password"`
	} `json:"credentials"`
}

// Rkt returns what the files auth.d/*.json in rkt's configuration directories say.
// They are read each time that it is asked. A later directory overrides an earlier one,
// registry by registry; within one a registry may have credentials once. A directory
// that is not there has none, and a file that rkt would not take is ErrInvalid.
func Rkt(dirs ...string) Source {
	return func(_ context.Context, host string) (Credential, error) {
		var found Credential
		for _, dir := range dirs {
			c, err := findRkt(filepath.Join(dir, "auth.d"), host)
			if err != nil {
				return Credential{}, fmt.Errorf("credentials for %s: %w", host, err)
			}
			if !c.Anonymous() {
				found = c
			}
		}
		return found, nil
	}
}

// First asks sources until one has something to say.
func First(sources ...Source) Source {
	return func(ctx context.Context, host string) (Credential, error) {
		for _, s := range sources {
			if c, err := s(ctx, host); err != nil || !c.Anonymous() {
				return c, err
			}
		}
		return Credential{}, nil
	}
}

func findRkt(dir, host string) (found Credential, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return Credential{}, nil
	}
	if err != nil {
		return Credential{}, fmt.Errorf("%w: %w", err, errdefs.ErrInvalid)
	}
	owners := map[string]string{} // the files that name registries
	for _, e := range entries {
		if !e.Type().IsRegular() || filepath.Ext(e.Name()) != ".json" {
			continue
		}
		path := filepath.Join(dir, e.Name())
		f, err := readRkt(path)
		if err != nil {
			return Credential{}, fmt.Errorf("%s: %w: %w", path, err, errdefs.ErrInvalid)
		}
		for _, r := range f.Registries {
			if other := owners[canonical(r)]; other != "" {
				return Credential{}, fmt.Errorf("%s: credentials for registry %q are already specified in %s: %w", path, r, other, errdefs.ErrInvalid)
			}
			owners[canonical(r)] = path
			if canonical(r) == canonical(host) {
				found = Credential{User: f.Credentials.User, Password: f.Credentials.Password, Origin: fmt.Sprintf("registry %q of %s", r, path)}
			}
		}
	}
	return found, nil
}

// readRkt returns a file without registries where it is of the kind that says nothing
// of any.
func readRkt(path string) (rktFile, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return rktFile{}, err
	}
	var f rktFile
	if err := json.Unmarshal(raw, &f); err != nil && f.Kind != rktDomains {
		// What the decoder says may quote what it could not read.
		return rktFile{}, fmt.Errorf("it is no configuration of rkt%s", offset(err))
	}
	switch {
	case f.Kind == "":
		return rktFile{}, errors.New("no rktKind specified")
	case f.Kind != rktDocker && f.Kind != rktDomains:
		return rktFile{}, fmt.Errorf("it has kind %q, and auth.d files of the kinds %s and %s", f.Kind, rktDomains, rktDocker)
	case f.Version != rktVersion:
		return rktFile{}, fmt.Errorf("no parser available for configuration of kind %q and version %q", f.Kind, f.Version)
	case f.Kind == rktDomains:
		return rktFile{}, nil
	case len(f.Registries) == 0:
		return rktFile{}, errors.New("no registries specified")
	case f.Credentials.User == "":
		return rktFile{}, errors.New("user not specified")
	case f.Credentials.Password == "":
		return rktFile{}, errors.New("password not specified")
	}
	return f, nil
}
