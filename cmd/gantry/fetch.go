package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/gantry-cri/gantry/cmd/gantry/podargs"
	"github.com/gantry-cri/gantry/stage0"
	"github.com/gantry-cri/gantry/stage0/store"
)

func newFetch(o *options) *cobra.Command {
	var quiet bool
	var mode progressMode
	cmd := &cobra.Command{
		Use:   "fetch IMAGE...",
		Short: "Fetch images and print their ids",
		Args:  atLeastOne("image"),
		RunE: func(cmd *cobra.Command, args []string) error {
			images, err := fetchable(args)
			if err != nil {
				return usageError{err}
			}
			if quiet {
				mode = progressNone
			}
			return needRoot(func() error { return fetchAll(cmd, o, images, newProgress(cmd.ErrOrStderr(), mode)) })
		},
	}
	cmd.Flags().BoolVar(&quiet, "quiet", false, "as --progress=none")
	mode.register(cmd.Flags())
	return cmd
}

// fetchable reads all images before the first is fetched.
func fetchable(args []string) ([]podargs.Image, error) {
	var images []podargs.Image
	for _, arg := range args {
		image, err := podargs.ParseImage(arg)
		if err != nil {
			return nil, err
		}
		if image.ID != "" {
			return nil, fmt.Errorf("%q is an image id: only names and files can be fetched", image.ID)
		}
		images = append(images, image)
	}
	return images, nil
}

func fetchAll(cmd *cobra.Command, o *options, images []podargs.Image, progress *progress) error {
	h, err := o.house()
	if err != nil {
		return err
	}
	h.Observer = progress
	for _, image := range images {
		progress.begin(image.String())
		var entry store.Entry
		if image.At.IsZero() {
			entry, err = h.Fetch(cmd.Context(), stage0.FetchRequest{Ref: image.Ref})
		} else {
			entry, err = h.Load(cmd.Context(), image.At, nil)
		}
		progress.end(stage0.Pulled{Entry: entry, Fetched: true}, err)
		if err != nil {
			return err
		}
		fmt.Fprintln(cmd.OutOrStdout(), entry.Image.ID)
	}
	return nil
}
