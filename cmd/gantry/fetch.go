package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/gantry-cri/gantry/cmd/gantry/podargs"
	"github.com/gantry-cri/gantry/stage0"
	"github.com/gantry-cri/gantry/stage0/imageref"
)

func newFetch(o *options) *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use:   "fetch IMAGE...",
		Short: "Fetch images and print their ids",
		Args:  atLeastOne("image"),
		RunE: func(cmd *cobra.Command, args []string) error {
			refs, err := references(args)
			if err != nil {
				return usageError{err}
			}
			if quiet {
				cmd.SetErr(io.Discard)
			}
			return needRoot(func() error { return fetchAll(cmd, o, refs) })
		},
	}
	cmd.Flags().BoolVar(&quiet, "quiet", false, "no progress on stderr")
	return cmd
}

// references reads all images before the first is fetched.
func references(images []string) ([]imageref.Ref, error) {
	var refs []imageref.Ref
	for _, image := range images {
		ref, id, err := podargs.ParseImage(image)
		if err != nil {
			return nil, err
		}
		if id != "" {
			return nil, fmt.Errorf("%q is an image id: only names can be fetched", id)
		}
		refs = append(refs, ref)
	}
	return refs, nil
}

func fetchAll(cmd *cobra.Command, o *options, refs []imageref.Ref) error {
	h, err := o.house()
	if err != nil {
		return err
	}
	progress := newProgress(cmd.ErrOrStderr())
	h.Observer = progress
	for _, ref := range refs {
		progress.begin(ref.String())
		entry, err := h.Fetch(cmd.Context(), stage0.FetchRequest{Ref: ref})
		progress.end(stage0.Pulled{Entry: entry, Fetched: true}, err)
		if err != nil {
			return err
		}
		fmt.Fprintln(cmd.OutOrStdout(), entry.Image.ID)
	}
	return nil
}
