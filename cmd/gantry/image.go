package main

import (
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/containerd/platforms"
	"github.com/spf13/cobra"

	"github.com/gantry-cri/gantry/stage0"
	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/store"
)

func newImage(o *options) *cobra.Command {
	const subcommands = "list, verify, rm, gc, pin or unpin"
	cmd := &cobra.Command{
		Use:   "image",
		Short: "Look at images and remove them",
		Args:  exactly(0, "a subcommand: "+subcommands),
		RunE: func(*cobra.Command, []string) error {
			return usageError{errors.New("want a subcommand: " + subcommands)}
		},
	}
	cmd.AddCommand(newImageList(o), newImageVerify(o), newImageRm(o), newImageGC(o), newImagePin(o), newImageUnpin(o))
	return cmd
}

// imageView is an image as image list prints it. Programs outside read the
// JSON: fields may be added, never renamed.
type imageView struct {
	ID     string   `json:"id"`
	AppcID string   `json:"appcID"`
	Names  []string `json:"names"` // tags, then digests
	// AppcName is what an ACI calls itself, NAME or NAME:VERSION: no name to find it by.
	AppcName string `json:"appcName,omitempty"`
	// Platform is OS/ARCH[/VARIANT], as the image says; empty where it does not.
	Platform string    `json:"platform,omitempty"`
	Size     int64     `json:"size"` // bytes on disk
	Layers   int       `json:"layers"`
	Pinned   bool      `json:"pinned"`
	PulledAt time.Time `json:"pulledAt"`
	// ReadOnlyStore is the one that has it and that it cannot be removed from.
	ReadOnlyStore string `json:"readOnlyStore,omitempty"`
}

func imageViewOf(images *store.Store, e store.Entry) (imageView, error) {
	names := slices.Concat(e.Tags, e.Digests)
	if names == nil {
		names = []string{}
	}
	v := imageView{
		ID: string(e.Image.ID), AppcID: e.Image.AppcID, Names: names, Size: e.Image.Size,
		Layers: len(e.Image.Layers), Pinned: e.Pinned, PulledAt: e.Image.PulledAt, ReadOnlyStore: string(e.ReadOnly),
	}
	if e.Image.Platform.OS != "" {
		v.Platform = platforms.Format(e.Image.Platform)
	}
	im, err := stage0.AppcManifest(images, e.Image)
	if stage0.IsBroken(err) {
		return v, nil // it has no name that could be read; image verify says why
	}
	if err != nil || im == nil {
		return v, err
	}
	v.AppcName = im.Name.String()
	if version, ok := im.Labels.Get("version"); ok {
		v.AppcName += ":" + version
	}
	return v, nil
}

func newImageList(o *options) *cobra.Command {
	var format format
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the images",
		Args:    exactly(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			h, err := o.house()
			if err != nil {
				return err
			}
			entries, err := h.Images.List()
			if err != nil {
				return err
			}
			views := make([]imageView, 0, len(entries))
			for _, e := range entries {
				v, err := imageViewOf(h.Images, e)
				if errors.Is(err, errdefs.ErrNotFound) {
					continue // removed since the list was made
				}
				if err != nil {
					return err
				}
				views = append(views, v)
			}
			if format.json {
				return printJSON(cmd.OutOrStdout(), views)
			}
			return table(cmd.OutOrStdout(), "ID\tNAME\tSIZE\tPULLED", func(row func(...any)) {
				for _, v := range views {
					row(strings.TrimPrefix(v.ID, "sha256:")[:12], v.name(), size(v.Size), ago(&v.PulledAt))
				}
			})
		},
	}
	format.register(cmd.Flags())
	return cmd
}

// name is the one that people know the image by: the first tag, else a digest, or
// what an ACI calls itself.
func (v imageView) name() string {
	switch {
	case len(v.Names) > 0:
		return v.Names[0]
	case v.AppcName != "":
		return v.AppcName
	}
	return "-"
}
