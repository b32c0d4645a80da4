package main

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/gantry-cri/gantry/stage0"
	"github.com/gantry-cri/gantry/stage0/verify"
)

func newFsck(o *options) *cobra.Command {
	var format format
	var repair bool
	cmd := &cobra.Command{
		Use:   "fsck",
		Short: "Check all layers and images on disk, and repair them",
		Long: "Check every layer and image record of the data directory, as image verify does\n" +
			"with one image. Each finding names the images that have the layer and the pods\n" +
			"that use it. Pods may run, and images be fetched, meanwhile.\n\n" +
			"--repair fetches each bad layer again, and no other, from where its image came\n" +
			"from, and puts it in the place of the bad one. A layer that a pod runs on stays:\n" +
			"stop the pod, repair again, and start it.\n\n" +
			"It ends with code 0 if nothing is found or all of it was repaired, else with 1.\n" +
			"Layers that an earlier version extracted can neither be proven nor refuted.",
		Args: exactly(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return needRoot(func() error { return fsck(cmd, o, format, repair) })
		},
	}
	cmd.Flags().BoolVar(&repair, "repair", false, "fetch bad layers again")
	format.register(cmd.Flags())
	return cmd
}

func fsck(cmd *cobra.Command, o *options, format format, repair bool) error { //nolint:revive // repair is the user's flag
	h, err := o.house()
	if err != nil {
		return err
	}
	c, err := h.CheckStore(cmd.Context())
	if err != nil {
		return err
	}
	if repair {
		if err := h.RepairStore(cmd.Context(), &c); err != nil {
			return err
		}
	}
	if err := h.printCheck(cmd.OutOrStdout(), c, format); err != nil {
		return err
	}
	if !c.Good() {
		bad := len(c.Records)
		for _, t := range c.Trees {
			if !t.Good() {
				bad++
			}
		}
		err := fmt.Errorf("%d of %d trees and records are damaged", bad, len(c.Trees)+len(c.Records))
		if !repair {
			return hintError{err, "gantry fsck --repair fetches damaged layers again"}
		}
		return err
	}
	return nil
}

// printCheck prints what a check has found: findings and what was done about them,
// and at the end a sum.
func (h *house) printCheck(w io.Writer, c stage0.Check, format format) error {
	if format.json {
		return printJSON(w, c)
	}
	names, err := h.imageNames()
	if err != nil {
		return err
	}
	proven := 0
	for _, t := range c.Trees {
		if !t.Proven() {
			printTree(w, t, names)
		}
		if t.Proven() || t.Repair != nil && t.Repair.Done {
			proven++
		}
	}
	for _, r := range c.Records {
		fmt.Fprintf(w, "%s: record: %s\n  pull the image again\n", printable(r.Path), r.Problem)
	}
	_, err = fmt.Fprintf(w, "%d of %d trees are proven\n", proven, len(c.Trees))
	return err
}

// imageNames are the names by which people know the images, also those whose records
// are damaged.
func (h *house) imageNames() (map[string]string, error) {
	entries, err := h.Images.List()
	if err != nil {
		return nil, err
	}
	names := map[string]string{}
	for _, e := range entries {
		names[string(e.Image.ID)] = imageView{Names: slices.Concat(e.Tags, e.Digests)}.name()
	}
	return names, nil
}

func printTree(w io.Writer, t stage0.CheckedTree, names map[string]string) {
	what := "layer " + string(t.DiffID)
	if t.Fixup {
		what = "fix-up tree"
	}
	fmt.Fprintf(w, "%s (trees/%s):\n", what, t.Tree)
	if t.Unverifiable != "" {
		fmt.Fprintf(w, "  not verifiable: %s\n", t.Unverifiable)
	}
	for _, f := range t.Findings {
		fmt.Fprintf(w, "  %s: %s%s\n", printable(f.Path), f.What, difference(f))
	}
	if t.Omitted > 0 {
		fmt.Fprintf(w, "  and %d more\n", t.Omitted)
	}
	if t.ReadOnly != "" {
		fmt.Fprintf(w, "  lies in the read-only store %s\n", t.ReadOnly)
	}
	for _, id := range t.Images {
		fmt.Fprintf(w, "  is of image %s (%s)\n", id, names[string(id)])
	}
	for _, u := range t.Pods {
		verb := "uses it"
		if u.Mounted {
			verb = "runs on it"
		}
		fmt.Fprintf(w, "  pod %s (%s) %s\n", u.UUID, u.State, verb)
	}
	switch r := t.Repair; {
	case r == nil:
	case r.Done && t.Fixup:
		fmt.Fprintln(w, "  repaired: rendered again")
	case r.Done:
		fmt.Fprintf(w, "  repaired: fetched again from %s\n", r.From)
	default:
		fmt.Fprintf(w, "  not repaired: %s\n", r.Problem)
	}
}

func difference(f verify.Finding) string {
	text := ""
	if f.Want != "" {
		text += ": want " + printable(f.Want)
	}
	if f.Got != "" {
		text += ": got " + printable(f.Got)
	}
	return text
}

// printable is a text that may have any bytes, quoted where it could be taken for
// something else.
func printable(s string) string {
	if !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return !strconv.IsPrint(r) }) {
		return strconv.Quote(s)
	}
	return s
}
