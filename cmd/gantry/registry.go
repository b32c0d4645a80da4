package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gantry-cri/gantry/shim"
	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/fetch"
	"github.com/gantry-cri/gantry/stage0/imageref"
)

func newRegistry(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "registry",
		Short: "Look at how registries are reached",
		Args:  exactly(0, "a subcommand: explain"),
		RunE: func(*cobra.Command, []string) error {
			return usageError{fmt.Errorf("want a subcommand: explain")}
		},
	}
	cmd.AddCommand(newRegistryExplain(o))
	return cmd
}

func newRegistryExplain(o *options) *cobra.Command {
	var format format
	var probe bool
	cmd := &cobra.Command{
		Use:   "explain IMAGE",
		Short: "Show which endpoints a pull asks, why, as whom, and how they answer",
		Args:  exactly(1, "one image"),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := imageref.ParseArgument(args[0]) // here a name can only be a registry's
			if err != nil {
				return usageError{err}
			}
			cfg, err := o.user()
			if err != nil {
				return err
			}
			endpoints, err := shim.Registry(cfg).Explain(cmd.Context(), ref, nil, probe)
			if err != nil {
				return err
			}
			if err := printEndpoints(cmd.OutOrStdout(), format, ref, endpoints); err != nil {
				return err
			}
			return served(ref, endpoints, probe)
		},
	}
	format.register(cmd.Flags())
	cmd.Flags().BoolVar(&probe, "probe", true, "ask each endpoint for the image")
	return cmd
}

// served makes a failure of an image that no endpoint has, for scripts.
func served(ref imageref.Ref, es []*fetch.Endpoint, probed bool) error { //nolint:revive // probed is the user's flag
	has := func(e *fetch.Endpoint) bool { return e.Probe != nil && e.Probe.Digest != "" }
	if probed && !slices.ContainsFunc(es, has) {
		return fmt.Errorf("no endpoint serves %s: %w", ref, errdefs.ErrNotFound)
	}
	return nil
}

// explanation is what registry explain prints. Programs outside read the JSON:
// fields may be added, never renamed.
type explanation struct {
	Image     string            `json:"image"`
	Endpoints []*fetch.Endpoint `json:"endpoints"`
}

func printEndpoints(w io.Writer, format format, ref imageref.Ref, es []*fetch.Endpoint) error {
	if format.json {
		return printJSON(w, explanation{ref.String(), es})
	}
	fmt.Fprintln(w, ref)
	for i, e := range es {
		fmt.Fprintf(w, "%d. %s\n", i+1, e.URL)
		for _, l := range []struct{ name, text string }{
			{"rule", e.Rule},
			{"may", strings.Join(e.Capabilities, ", ")},
			{"TLS", tlsOf(e)},
			{"headers", strings.Join(e.Headers, ", ")},
			{"proxy", e.Proxy},
			{"credentials", e.Credential},
			{"answer", answerOf(e.Probe)},
		} {
			if l.text != "" {
				fmt.Fprintf(w, "   %-12s %s\n", l.name, l.text)
			}
		}
	}
	return nil
}

func tlsOf(e *fetch.Endpoint) string {
	if !strings.HasPrefix(e.URL, "https://") {
		return "none"
	}
	parts := []string{"certificate is checked"}
	if e.SkipVerify {
		parts[0] = "certificate is not checked"
	}
	if e.OwnCA {
		parts = append(parts, "with CAs of the file")
	}
	if e.ClientCertificates > 0 {
		parts = append(parts, fmt.Sprintf("%d of our own to show", e.ClientCertificates))
	}
	if e.PlainFallback {
		parts = append(parts, "plain http if it knows no TLS")
	}
	return strings.Join(parts, ", ")
}

func answerOf(p *fetch.Probe) string {
	switch {
	case p == nil:
		return ""
	case p.Skipped != "":
		return "not asked: " + p.Skipped
	case p.Error != "":
		return p.Error
	}
	return fmt.Sprintf("%s in %s", p.Digest, p.Took.Round(time.Millisecond))
}
