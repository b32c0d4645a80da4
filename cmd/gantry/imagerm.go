package main

import (
	"context"
	"errors"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/readonly"
	"github.com/gantry-cri/gantry/stage0/store"
)

func newImageRm(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "rm IMAGE...",
		Short: "Remove images by name or id; what pods use of them stays",
		Args:  atLeastOne("image"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := eachImage(cmd, o, args, removeImage); err != nil {
				return err
			}
			h, err := o.house()
			if err != nil {
				return err
			}
			_, err = h.collectTrees(cmd.Context(), cmd.ErrOrStderr())
			return err
		},
	}
}

func removeImage(ctx context.Context, s *store.Store, id digest.Digest) error {
	err := s.Remove(ctx, id)
	if errors.Is(err, errdefs.ErrState) && !errors.Is(err, readonly.ErrReadOnly) {
		return hintError{err, "gantry image unpin lets it go"}
	}
	return err
}
