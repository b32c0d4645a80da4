package main

import (
	"fmt"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/gantry-cri/gantry/cmd/gantry/podargs"
	"github.com/gantry-cri/gantry/stage0"
	"github.com/gantry-cri/gantry/stage0/fetch"
	"github.com/gantry-cri/gantry/stage0/store"
)

func newFetch(o *options) *cobra.Command {
	var quiet bool
	var mode progressMode
	var platform *ocispec.Platform // nil is this machine's
	cmd := &cobra.Command{
		Use:   "fetch IMAGE...",
		Short: "Fetch images and print their ids",
		Args:  atLeastOne("image"),
		RunE: func(cmd *cobra.Command, args []string) error {
			images, err := fetchable(args, platform)
			if err != nil {
				return usageError{err}
			}
			if quiet {
				mode = progressNone
			}
			return needRoot(func() error { return fetchAll(cmd, o, images, platform, newProgress(cmd.ErrOrStderr(), mode)) })
		},
	}
	cmd.Flags().BoolVar(&quiet, "quiet", false, "as --progress=none")
	cmd.Flags().Func("platform", "`OS/ARCH[/VARIANT]` of the images, where they are for several (default this machine's)", func(s string) error {
		p, err := fetch.ParsePlatform(s)
		platform = &p
		return err
	})
	mode.register(cmd.Flags())
	return cmd
}

// fetchable reads all images before the first is fetched.
func fetchable(args []string, platform *ocispec.Platform) ([]podargs.Image, error) {
	var images []podargs.Image
	for _, arg := range args {
		image, err := podargs.ParseImage(arg)
		if err != nil {
			return nil, err
		}
		if image.ID != "" {
			return nil, fmt.Errorf("%q is an image id: only names and files can be fetched", image.ID)
		}
		if err := image.CheckPlatform(platform); err != nil {
			return nil, err
		}
		images = append(images, image)
	}
	return images, nil
}

func fetchAll(cmd *cobra.Command, o *options, images []podargs.Image, platform *ocispec.Platform, progress *progress) error {
	p, err := o.pipeline()
	if err != nil {
		return err
	}
	p.Observer = progress
	for _, image := range images {
		progress.begin(image.String())
		var entry store.Entry
		if image.At.IsZero() {
			entry, err = p.Fetch(cmd.Context(), stage0.FetchRequest{Ref: image.Ref, Platform: platform})
		} else {
			entry, err = p.Load(cmd.Context(), image.At, platform)
		}
		progress.end(stage0.Pulled{Image: entry.Image, Fetched: true}, err)
		if err != nil {
			return err
		}
		fmt.Fprintln(cmd.OutOrStdout(), entry.Image.ID)
	}
	return nil
}
