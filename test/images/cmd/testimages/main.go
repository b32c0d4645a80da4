// Command testimages makes the test images and pushes them to a registry.
//
//	testimages [flags] KIND REFERENCE [KIND REFERENCE]...
//
// KIND is busybox, web, big (500 MB, 20,000 files, 6 layers) or index (web for
// two platforms). The reference by digest of each is printed.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"

	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/gantry-cri/gantry/test/images"
)

func main() {
	var m maker
	flag.StringVar(&m.cache, "cache", images.DefaultCache(), "`directory` of downloaded packages")
	flag.StringVar((*string)(&m.options.Format), "format", string(images.OCI), "oci or docker")
	flag.StringVar(&m.options.Unique, "unique", "", "`text` that makes the image's id another one")
	flag.Parse()
	if err := m.run(context.Background(), flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "testimages:", err)
		os.Exit(1)
	}
}

// maker makes images with the options of the command line.
type maker struct {
	cache   string
	options images.Options
	temp    string // layers of big images
}

func (m *maker) run(ctx context.Context, args []string) (err error) {
	if len(args) == 0 || len(args)%2 != 0 {
		return fmt.Errorf("want pairs of KIND and REFERENCE")
	}
	if m.temp, err = os.MkdirTemp("", "testimages-"); err != nil {
		return err
	}
	defer os.RemoveAll(m.temp)
	for i := 0; i < len(args); i += 2 {
		img, err := m.image(ctx, args[i])
		if err != nil {
			return fmt.Errorf("make %s: %w", args[i], err)
		}
		digest, err := images.Push(ctx, args[i+1], img)
		if err != nil {
			return err
		}
		fmt.Println(digest)
	}
	return nil
}

func (m *maker) image(ctx context.Context, kind string) (remote.Taggable, error) {
	switch kind {
	case "busybox":
		return images.Busybox(m.options)
	case "web":
		return images.Web(ctx, m.cache, m.options)
	case "big":
		return images.Big(m.temp, images.BigSpec{MB: 500, Files: 20000, Layers: 6, Seed: 1}, m.options)
	case "index":
		web, err := images.Web(ctx, m.cache, m.options)
		if err != nil {
			return nil, err
		}
		return images.Index(m.options.Format, web)
	}
	return nil, fmt.Errorf("unknown kind %q", kind)
}
