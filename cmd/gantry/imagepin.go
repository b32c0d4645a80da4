package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/gantry-cri/gantry/stage0/store"
)

func newImagePin(o *options) *cobra.Command {
	var lease time.Duration
	cmd := &cobra.Command{
		Use:   "pin IMAGE...",
		Short: "Keep images from being removed, for ever or for a time",
		Long:  "Keep images from being removed: by image rm, image gc and the kubelet. With --for\nit is a lease, which ends by itself.",
		Args:  atLeastOne("image"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("for") && lease <= 0 {
				return usageError{errors.New("--for: want a time above 0")}
			}
			var until time.Time
			if lease > 0 {
				until = time.Now().Add(lease)
			}
			return eachImage(cmd, o, args, func(ctx context.Context, s *store.Store, id digest.Digest) error {
				return s.Pin(ctx, id, until)
			})
		},
	}
	cmd.Flags().DurationVar(&lease, "for", 0, "hold them for this `TIME` alone")
	return cmd
}

func newImageUnpin(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "unpin IMAGE...",
		Short: "Take the pins and leases of images away",
		Args:  atLeastOne("image"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return eachImage(cmd, o, args, func(ctx context.Context, s *store.Store, id digest.Digest) error {
				return s.Unpin(ctx, id)
			})
		},
	}
}

// eachImage finds all images before it changes the first, and prints their ids.
func eachImage(cmd *cobra.Command, o *options, names []string, do func(context.Context, *store.Store, digest.Digest) error) error {
	return needRoot(func() error {
		h, err := o.house()
		if err != nil {
			return err
		}
		entries, err := h.lookupAll(names)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := do(cmd.Context(), h.Images, e.Image.ID); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), e.Image.ID)
		}
		return nil
	})
}

func (h *house) lookupAll(names []string) ([]store.Entry, error) {
	var entries []store.Entry
	for _, name := range names {
		e, err := h.Images.Lookup(name)
		if err != nil {
			return nil, err
		}
		entries = append(entries, e)
	}
	return entries, nil
}
