package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/gantry-cri/gantry/cmd/gantry/podargs"
	"github.com/gantry-cri/gantry/stage0/errdefs"
)

const podUse = " [FLAG]... IMAGE [APPFLAG]... [-- ARG... [---]] [IMAGE ...]"

const podLong = `
An image is docker://NAME, an ACI (FILE.aci, file:///FILE.aci), oci:DIR, oci-archive:FILE,
docker-archive:FILE, or the id of an image in the store. Flags marked [app]
follow an image and are about it; the others may stand anywhere. Words between --
and a lone --- are arguments of the image before them.`

func newPrepare(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "prepare" + podUse,
		Short: "Prepare a pod and print its UUID",
		Long:  "Fetch the images where needed, and commit a pod of them to disk, ready for\ngantry run-prepared. Only the UUID is printed on stdout." + podLong,
	}
	parser := podargs.New(cmd.Flags())
	var mode progressMode
	mode.register(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		request, err := parsePod(parser, args)
		if err != nil {
			return err
		}
		return needRoot(func() error {
			p, err := o.pipeline()
			if err != nil {
				return err
			}
			u, err := prepare(cmd.Context(), p, request, newProgress(cmd.ErrOrStderr(), mode))
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), u)
			return nil
		})
	}
	return cmd
}

// parsePod reads the command line; what is wrong with it is a usage error.
func parsePod(parser *podargs.Parser, args []string) (*podargs.Request, error) {
	request, err := parser.Parse(args)
	if err == nil {
		return request, nil
	}
	err = podargs.FlagError(err)
	if errors.Is(err, errdefs.ErrInvalid) || errors.Is(err, errdefs.ErrUnsupported) || podargs.IsFlagError(err) {
		return nil, usageError{err}
	}
	return nil, err
}
